"""A schedule whose worker is killed in the middle of a run, and comes back after some runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_table import Faults
from flow_states import put_zombie_automations, wait_for_true_states
from invariants import check_whole
from ordered import OVERRIDES, ordered_config
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect_server import PrefectServer, running_server, used
from tiny_run import tree_hashes, write_prompts

from synthgen import jobs
from synthgen.flows.serve import deployment_name
from synthgen.jobs.identity import read_config
from synthgen.storage.publish import open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
HELPERS = Path(__file__).parents[1] / "helpers"
MAIN = (sys.executable, "-c", "from synthgen.cli import main; main()")
EVERY_MINUTE = "* * * * *"


def wait_for(condition: Callable[[], Any], log: Path, seconds: float = 900) -> Any:
    """What a condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(1)
    return found


@contextmanager
def served(
    server: PrefectServer, prompts: Path, out: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """``synthgen serve`` that extends a dataset every minute."""
    settings = (*OVERRIDES, "num=200")  # long enough to be struck in the middle
    words = [word for setting in settings for word in ("--set", setting)]
    where = ("--out", str(out), "--cron", EVERY_MINUTE, "--extend", "1")
    paths = os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])])
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*MAIN, "serve", str(prompts), *where, *words],
            env={**os.environ, **server.environment, "PYTHONPATH": paths},
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL of a worker and of the run that it supervises, as when a machine dies."""
    parent = psutil.Process(process.pid)
    for each in [*parent.children(recursive=True), parent]:
        each.kill()
    process.wait()


def versions(out: Path) -> list[int]:
    """Planned samples of every published version."""
    found = sorted((out / "manifests").glob("v*.json"))
    return [json.loads(path.read_text())["totals"]["planned"] for path in found]


def test_a_worker_is_killed_and_the_schedule_goes_on_after_downtime(
    tmp_path: Path, faults: Faults
) -> None:
    out, log = tmp_path / "out", tmp_path / "serve.log"
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    with running_server(tmp_path / "server") as server:
        with served(server, prompts, out, log) as process:
            wait_for(lambda: list(out.glob("stats/*.json")), log)  # in the middle of a run
            faults.inject("SIGKILL of a worker with its run", out)
            kill_with_children(process)
        assert not versions(out)
        faults.inject("schedule after downtime", out)
        wait_for(lambda: late_runs(server) >= 2, log)  # fall due, and nobody is there
        with served(server, prompts, out, log):
            wait_for(lambda: versions(out), log)
            put_zombie_automations(server.environment)  # instead of those with longer times
            wait_for(lambda: len(versions(out)) >= 2, log)
        stop_schedule(server, out)
        found = wait_for_true_states(server.environment)
    assert found["COMPLETED"] >= 2
    if not jobs.status(out).finalized:
        jobs.extend(out, 1)
    check_against_undisturbed(out, tmp_path)
    faults.survive()


def check_against_undisturbed(out: Path, folder: Path) -> None:
    """It has the shards that as many quiet runs give; versions may be cut in other places."""
    config = read_config(open_storage(out))
    whole = folder / "whole"
    jobs.generate(ordered_config(folder, "num=200"), whole)
    while versions(whole)[-1] < config.planned:
        jobs.extend(whole, 1)
    assert shards(out) == shards(whole)
    manifests = {name: sha for name, sha in tree_hashes(out).items() if "manifest" in name}
    check_whole(config, out, shards(whole) | manifests)


def shards(out: Path) -> dict[str, str]:
    """What tree_hashes gives for all but manifests."""
    return {name: sha for name, sha in tree_hashes(out).items() if "manifest" not in name}


def late_runs(server: PrefectServer) -> int:
    """Runs whose time has passed and which nobody took."""
    with used(server.environment), get_client(sync_client=True) as client:
        return sum(item.state_name == "Late" for item in client.read_flow_runs(limit=200))


def stop_schedule(server: PrefectServer, out: Path) -> None:
    """Pause the deployment and forget what it had planned."""
    with used(server.environment), get_client(sync_client=True) as client:
        client.pause_deployment(
            client.read_deployment_by_name(f"extend/{deployment_name(str(out))}").id
        )
        for item in client.read_flow_runs(limit=200):
            if item.state_type == StateType.SCHEDULED:
                client.delete_flow_run(item.id)
