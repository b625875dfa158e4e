"""What happens around a command: its server is killed, its Prefect home is bad, it is killed.

Each time: one line, seconds, the right exit code, no process left, and the next command goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import Command, command, generate_words, gone
from fault_table import Faults
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect_server import running_server, used

from synthgen.flows.serve import deployment_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def in_the_middle(running: Command, out: Path) -> psutil.Process:
    """Wait until shards are made; gives the command's server."""
    running.wait_until(lambda: len(list(out.glob("stats/*.json"))) > 1)
    (server,) = (p for p in running.family() if "synthgen.flows.server" in p.cmdline())
    return server


def finish(folder: Path) -> None:
    """The same command again, for as many samples as were planned at first, goes on."""
    words = generate_words(folder, num=8)
    with command([*words, "--engine", "inline"], folder) as running:
        assert running.end(seconds=300)[0] == 0, running.said


def test_a_killed_command_leaves_no_server(tmp_path: Path, faults: Faults) -> None:
    with command(generate_words(tmp_path), tmp_path) as running:
        server = in_the_middle(running, tmp_path / "out")
        faults.inject("SIGKILL of a command with its own server", tmp_path / "out")
        os.kill(running.pid, signal.SIGKILL)
        running.process.join()
        assert gone([server])
    faults.survive()


def test_a_command_whose_server_is_killed_says_so(tmp_path: Path, faults: Faults) -> None:
    with command([*generate_words(tmp_path), "--quiet"], tmp_path) as running:
        server = in_the_middle(running, tmp_path / "out")
        faults.inject("SIGKILL of a command's own server", tmp_path / "out")
        server.kill()
        code, seconds = running.end()
        assert (code, running.said.count("\n")) == (1, 1), running.said
        assert "run the same command again" in running.said
        assert seconds < 10
    faults.survive()


def test_a_named_server_that_is_gone_for_good(tmp_path: Path, faults: Faults) -> None:
    with running_server(tmp_path / "server") as server:
        where = {"PREFECT_API_URL": server.environment["PREFECT_API_URL"]}
        with command([*generate_words(tmp_path), "--quiet"], tmp_path, where) as running:
            running.wait_until(lambda: len(list(tmp_path.glob("out/stats/*.json"))) > 1)
            faults.inject("SIGKILL of a named server, for good", tmp_path / "out")
            server.kill()
            code, seconds = running.end(seconds=120)
            assert (code, running.said.count("\n")) == (1, 1), running.said
            assert "does not answer any more" in running.said
            assert seconds < 60
        with command([*generate_words(tmp_path), "--quiet"], tmp_path, where) as running:
            assert running.end(seconds=120)[0] == 1
            assert running.said.count("\n") == 1
            assert "Got no answer" in running.said
    faults.survive()


@pytest.mark.parametrize("home", ["file", "damaged", "absent"])
def test_a_bad_prefect_home(home: str, tmp_path: Path, faults: Faults) -> None:
    where = {"file": tmp_path / "file", "damaged": tmp_path / "home", "absent": Path("/proc/x")}
    (tmp_path / "file").write_text("")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/prefect.db").write_bytes(b"no database" * 1000)
    environment = {"PREFECT_HOME": str(where[home])}
    faults.inject(f"a Prefect home that is {home}")
    with command(generate_words(tmp_path, num=8), tmp_path, environment) as running:
        code, _ = running.end(seconds=300)
        assert (code, running.said.count("\n")) == (1, 1), running.said
        assert "A temporary Prefect server must start" in running.said
    finish(tmp_path)
    faults.survive()


def test_ctrl_c_of_serve_in_the_middle_of_a_run(tmp_path: Path, faults: Faults) -> None:
    """No process and no run are left, and what it had made is finished by hand."""
    out = tmp_path / "out"
    _, prompts, *others = generate_words(tmp_path)
    with running_server(tmp_path / "server") as server:
        words = ["serve", prompts, *others, "--cron", "0 2 1 1 *", "--extend", "1"]
        environment = {**server.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
        name = deployment_name(str(out))
        with (
            command(words, tmp_path, environment) as running,
            used(server.environment),
            get_client(sync_client=True) as client,
        ):
            start_when_there(running, client, name)
            running.wait_until(lambda: len(list(out.glob("stats/*.json"))) > 1)
            started = running.family()
            assert started
            faults.inject("Ctrl-C of serve in the middle of a run", out)
            code, seconds = running.end(signal.SIGINT)
            assert code == 130
            assert seconds < 5
            assert "interrupted" in running.said
            assert gone(started)
            states = {run.state_type for run in client.read_flow_runs()}
            assert StateType.RUNNING not in states, states
            deployment = client.read_deployment_by_name(f"extend/{name}")
            assert [item.active for item in deployment.schedules] == [True]
    with command(["generate", prompts, *others, "--engine", "inline"], tmp_path) as running:
        before = len(list(out.glob("stats/*.json")))
        running.wait_until(lambda: len(list(out.glob("stats/*.json"))) > before + 1)
    faults.survive()


def start_when_there(running: Command, client: SyncPrefectClient, name: str) -> None:
    """Start a run of a deployment as soon as it is on the server."""
    for _ in range(240):
        assert running.process.is_alive(), running.said
        try:
            found = client.read_deployment_by_name(f"extend/{name}")
        except ObjectNotFound:
            time.sleep(1)
        else:
            client.create_flow_run_from_deployment(found.id)
            return
    raise AssertionError(running.said)
