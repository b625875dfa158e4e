"""What a server says of flow runs that were killed, and what they are made of."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect_server import used

from synthgen.flows.automations import put_automation, zombie_automations

SILENCE = timedelta(seconds=75)  # heartbeats come every 30 seconds, the shortest that there is
CLIENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_CLIENT_MAX_RETRIES": "10"}
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def put_zombie_automations(environment: Mapping[str, str]) -> None:
    """The shipped ones, the half hour for a start as short as a silence."""
    with used(environment), get_client(sync_client=True) as client:
        for automation in zombie_automations(SILENCE, SILENCE):
            put_automation(client, automation)


def wait_for_true_states(environment: Mapping[str, str]) -> Counter[str]:
    """The states once no run claims to be running that is not."""
    deadline = time.monotonic() + 600
    while True:
        with used(environment), get_client(sync_client=True) as client:
            found = Counter(state(item) for item in client.read_flow_runs(limit=200))
        if set(found) <= ENDED:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(5)


def state(item: FlowRun) -> str:
    """Such as COMPLETED."""
    return "" if item.state_type is None else str(item.state_type.value)
