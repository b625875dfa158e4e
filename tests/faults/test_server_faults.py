"""Kills of the server, and restarts of its database, while flows run: nothing is lost.

Flows run in processes of their own and draw by the fake model. One that loses its server may
fail, and is run again, as a schedule or a user would.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from children import context, run_to_end
from fault_table import Faults
from flow_children import finish_flow
from flow_states import CLIENT, put_zombie_automations, wait_for_true_states
from invariants import check_whole
from postgres_server import binaries, cluster, tool, wait_until_ready
from postgres_server import start as start_postgres
from prefect_server import running_server

from synthgen.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
STRIKES = 3


def strike_during_flows(
    strike: Callable[[Path], None],
    config: Config,
    expected: dict[str, str],
    environment: Mapping[str, str],
    folder: Path,
) -> int:
    """Strike once in the middle of each of some flows; returns how many ended well by themselves.

    Args:
        strike: Does it, given the dataset that is being made.
        config: Of the dataset.
        expected: Its bytes.
        environment: Of the server's clients.
        folder: For the datasets.
    """
    rng, well = random.Random(STRIKES), 0
    seconds = run_to_end(finish_flow, config, folder / "first", environment, 2)
    for number in range(STRIKES):
        out, ready = folder / f"out{number}", context().Event()
        child = context().Process(target=finish_flow, args=(config, out, environment, 2, ready))
        child.start()
        assert ready.wait(600)
        child.join(rng.uniform(0.2, 0.9) * seconds)
        strike(out)
        child.join(600)
        assert child.exitcode is not None, "a flow must end"
        well += child.exitcode == 0
        run_to_end(finish_flow, config, out, environment, 2)
        check_whole(config, out, expected)
    return well


def test_sigkill_of_the_server(
    config: Config, expected: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    """Killed with its SQLite database open, and started again on it."""
    with running_server(tmp_path / "server", CLIENT) as server:
        put_zombie_automations(server.environment)

        def strike(out: Path) -> None:
            faults.inject("SIGKILL of the server", out)
            server.kill()
            server.start()

        well = strike_during_flows(strike, config, expected, server.environment, tmp_path)
        found = wait_for_true_states(server.environment)
    print(f"{well} of {STRIKES} flows ended well by themselves: {found}")
    assert found["COMPLETED"] >= STRIKES  # those, and the runs that finished what others left
    faults.survive()


@pytest.mark.postgres
@pytest.mark.skipif(binaries() is None, reason="Postgres is not installed")
def test_a_restart_of_postgres(
    config: Config, expected: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    with running_postgres() as (url, restart):
        settings = {**CLIENT, "PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
        with running_server(tmp_path / "server", settings) as server:
            put_zombie_automations(server.environment)

            def strike(out: Path) -> None:
                faults.inject("restart of Postgres", out)
                restart()

            well = strike_during_flows(strike, config, expected, server.environment, tmp_path)
            found = wait_for_true_states(server.environment)
    print(f"{well} of {STRIKES} flows ended well by themselves: {found}")
    assert found["COMPLETED"] >= STRIKES  # those, and the runs that finished what others left
    faults.survive()


@contextmanager
def running_postgres() -> Iterator[tuple[str, Callable[[], None]]]:
    """A database server, by its URL, and what restarts it."""
    with cluster("prefect", "secret", "prefect") as (data, port):

        def start() -> subprocess.Popen[bytes]:
            with (data.parent / "log").open("ab") as log:
                started = start_postgres([tool("postgres"), "-D", str(data)], {}, log)
            wait_until_ready(port, started)
            return started

        def stop() -> None:
            """The fast shutdown: connections are cut, transactions rolled back."""
            servers[-1].send_signal(signal.SIGINT)
            servers[-1].wait(60)

        def restart() -> None:
            stop()
            time.sleep(1)
            servers.append(start())

        servers = [start()]
        try:
            yield f"postgresql+asyncpg://prefect:secret@127.0.0.1:{port}/prefect", restart
        finally:
            stop()
