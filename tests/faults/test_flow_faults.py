"""Kills of flows: the data come out whole, and the states on the server come out true.

Flows run in processes of their own against a real server; what they draw is the fake model's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import context, run_and_kill, run_to_end
from fault_table import Faults
from flow_children import finish_flow
from flow_states import CLIENT, put_zombie_automations, wait_for_true_states
from invariants import check_whole
from prefect_server import PrefectServer, running_server

from synthgen import jobs
from synthgen.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with running_server(tmp_path_factory.mktemp("server"), CLIENT) as found:
        put_zombie_automations(found.environment)
        yield found


def test_sigkill_of_flows(
    server: PrefectServer, config: Config, expected: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    rng, kills, struck = random.Random(8), 15, 0
    arguments = (server.environment, 2)
    seconds = run_to_end(finish_flow, config, tmp_path / "first", *arguments)
    check_whole(config, tmp_path / "first", expected)
    out = tmp_path / "out0"
    while struck < kills:
        if run_and_kill(rng.uniform(0, seconds), finish_flow, config, out, *arguments):
            struck += 1
            faults.inject("SIGKILL of a flow", out)
        else:
            check_whole(config, out, expected)
            out = tmp_path / f"out{struck}"
    run_to_end(finish_flow, config, out, *arguments)
    check_whole(config, out, expected)
    print(wait_for_true_states(server.environment))
    faults.survive()


def test_two_flows_collide_on_one_output(
    server: PrefectServer, config: Config, expected: dict[str, str], tmp_path: Path, faults: Faults
) -> None:
    """As two schedules would that fall due together: both end well, what they publish is equal."""
    out = tmp_path / "out"
    for _ in range(3):
        arguments = (config, out, server.environment, 2)
        events = [context().Event() for _ in range(2)]
        rivals = [context().Process(target=finish_flow, args=(*arguments, e)) for e in events]
        faults.inject("two flows on one output", out)
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join(600)
        assert [rival.exitcode for rival in rivals] == [0, 0]
        check_whole(config, out, expected)
        for name in ("data/train-000003.tar", "manifest.json"):
            (out / name).unlink()  # something to do for the next two
    jobs.generate(config, out)
    check_whole(config, out, expected)
    faults.survive()
