"""Kills of flows: the data come out whole, and the states on the server come out true.

Flows run in processes of their own against a real server; what they draw is planted.
"""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from children import run_and_kill, run_to_end
from fault_table import Faults
from flow_children import finish_flow
from invariants import check_whole
from ordered import ordered_config
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect_server import PrefectServer, running_server, used
from tiny_run import tree_hashes

from flows.automations import crash_zombies, put_automation
from synthgen import run
from synthgen.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
SILENCE = timedelta(seconds=75)  # heartbeats come every 30 seconds, the shortest that there is
CLIENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_CLIENT_MAX_RETRIES": "10"}
ENDED = {"COMPLETED", "FAILED", "CRASHED"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return ordered_config(tmp_path_factory.mktemp("flows"))


@pytest.fixture(scope="module")
def expected(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of the dataset that nothing interrupted, made without a server."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run.generate(config, out)
    return tree_hashes(out)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with running_server(tmp_path_factory.mktemp("server"), CLIENT) as found:
        with used(found.environment), get_client(sync_client=True) as client:
            put_automation(client, crash_zombies(SILENCE))
        yield found


def heard(environment: Mapping[str, str]) -> set[str]:
    """Flow runs of which the server heard a heartbeat."""
    query = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}, "limit": 50}
    ids: set[str] = set()
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}/events/filter",
        data=json.dumps(query).encode(),
        headers={"Content-Type": "application/json"},
    )
    while True:
        with urllib.request.urlopen(request, timeout=60) as answer:
            page = json.load(answer)
        ids |= {
            event["resource"]["prefect.resource.id"].split(".")[-1] for event in page["events"]
        }
        if not page.get("next_page"):
            return ids
        request = urllib.request.Request(page["next_page"])


def wait_for_true_states(environment: Mapping[str, str]) -> Counter[str]:
    """The states once no run that the server ever heard of claims to be running.

    One that is killed before its first heartbeat arrives, within a second or so, is not crashed:
    the automation cannot tell it from runs that send none.
    """
    deadline = time.monotonic() + 600
    while True:
        with used(environment), get_client(sync_client=True) as client:
            found = client.read_flow_runs(limit=200)
        known = heard(environment)
        zombies = [item for item in found if state(item) not in ENDED and str(item.id) in known]
        if not zombies:
            return Counter(state(item) for item in found)
        assert time.monotonic() < deadline, [state(item) for item in zombies]
        time.sleep(5)


def state(item: FlowRun) -> str:
    """Such as COMPLETED."""
    return "" if item.state_type is None else str(item.state_type.value)


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
