"""Deployments on a real Prefect server: what is put there, what it refuses, what it does alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect_server import prefect_server, used

from synthgen.flows import deploy as deploying
from synthgen.flows.automations import TAG, put_automation, zombie_automations
from synthgen.flows.shards import slot

pytestmark = [pytest.mark.timeout(900)]
ARGUMENTS = ("--out", "/data/nightly", "--timezone", "Europe/Berlin", "--gpus", "1")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with everything deployed twice: the second time must change nothing."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment, used(environment):
        subprocess.run(
            [sys.executable, "-m", "synthgen.flows.deploy", *ARGUMENTS],
            cwd=ROOT,
            env={**os.environ, **environment},
            check=True,
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            deploying.deploy("/data/nightly", timezone="Europe/Berlin")
        yield environment


@pytest.fixture
def client(server: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What a condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it must become true"
        time.sleep(2)
    return found


# --- what is there ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["generate/nightly", "extend/nightly", "audit/nightly", "label/nightly"]
)
def test_deployments_have_schedules_limits_and_the_configuration_as_a_form(
    name: str, client: SyncPrefectClient
) -> None:
    found = client.read_deployment_by_name(name)
    (schedule,) = found.schedules
    assert schedule.active == (name in ("extend/nightly", "audit/nightly"))
    assert schedule.schedule.timezone == "Europe/Berlin"
    assert found.work_pool_name == "synthgen-process"
    assert found.global_concurrency_limit is not None
    assert found.global_concurrency_limit.limit == 1
    assert found.concurrency_options is not None
    assert "synthgen" in found.tags
    assert found.parameters["out"] == "/data/nightly"
    assert found.job_variables["env"]["PREFECT_FLOWS_DEFAULT_RETRIES"] == "2"
    assert found.enforce_parameter_schema
    assert found.pull_steps in (None, [])
    schema = found.parameter_openapi_schema
    definition = {"audit": "AuditConfig", "label": "LabelConfig"}.get(name.split("/")[0], "Config")
    assert definition in schema["definitions"]
    assert set(found.parameters) <= set(schema["properties"])


def test_the_form_shows_the_settings_with_their_explanations(client: SyncPrefectClient) -> None:
    schema = client.read_deployment_by_name("generate/nightly").parameter_openapi_schema
    definitions = schema["definitions"]
    assert definitions["Config"]["properties"]["num"]["minimum"] == 1
    assert "table 6" in definitions["FeatureConfig"]["properties"]["components"]["description"]
    assert definitions["ClusterConfig"]["properties"]["ks"]["default"] == [2, 5, 6, 10, 20]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"config": {"num": 0}}, "num"),
        ({"config": {"generation": {"schedular": "ddim"}}}, "schedular"),
        ({"config": {"dataset": {"image_format": "bmp"}}}, "image_format"),
        ({"workers": "many"}, "workers"),
    ],
)
def test_the_server_refuses_bad_parameters(
    parameters: dict[str, Any], named: str, client: SyncPrefectClient
) -> None:
    found = client.read_deployment_by_name("generate/nightly")
    with pytest.raises(PrefectHTTPStatusError) as refusal:
        client.create_flow_run_from_deployment(found.id, parameters=parameters)
    assert refusal.value.response.status_code in (409, 422)
    assert named in refusal.value.response.text


@pytest.mark.parametrize("kind", list(deploying.Pool))
def test_every_pool_takes_its_job_template(
    kind: deploying.Pool, client: SyncPrefectClient
) -> None:
    pool = deploying.put_pool(client, kind)
    template = json.loads((ROOT / "synthgen/flows" / "pools" / f"{kind}.json").read_text())
    assert pool.type == kind.value
    assert pool.base_job_template == template
    names = set(template["variables"]["properties"])
    text = json.dumps(template["job_configuration"])
    assert all(f"{{{{ {name} }}}}" in text for name in names), "a variable without effect"


def test_repeating_the_deployment_adds_nothing(client: SyncPrefectClient) -> None:
    assert sorted(item.name for item in client.read_automations()) == [
        "synthgen: crash runs never heard",
        "synthgen: crash runs never started",
        "synthgen: crash zombie runs",
        "synthgen: pause after a failed audit",
    ]
    names = [item.name for item in client.read_deployments()]
    assert len(names) == len(
        [*(ROOT / "synthgen/flows" / "prefect.yaml").read_text().split("\n  - <<")][1:]
    )


# --- what it does -------------------------------------------------------------------------------


def test_the_gpu_limit_is_strict(client: SyncPrefectClient) -> None:
    assert client.read_global_concurrency_limit_by_name("gpu").limit == 1
    with slot("gpu"):
        found = client.read_global_concurrency_limit_by_name("gpu")
        assert found.active_slots == 1
    with pytest.raises(Exception, match="gpuu"), slot("gpuu"):
        raise AssertionError("a misspelled limit must not let anything run")
    with slot(None):
        pass


@pytest.mark.parametrize(
    ("which", "said"),
    [(0, "No heartbeat for"), (1, "No heartbeat in the first"), (2, "Not running")],
)
def test_a_run_whose_process_is_gone_is_crashed(
    which: int, said: str, client: SyncPrefectClient
) -> None:
    """Killed after a heartbeat, before its first one, or before it ran.

    The automations are the shipped ones, with seconds in place of a minute and a half.
    """
    begin = _pending if which == 2 else _running
    put_automation(client, zombie_automations(*[timedelta(seconds=20)] * 2)[which])
    try:
        run, heard = (begin(client, "audit/nightly") for _ in range(2))
        beats = iter(range(5 if which == 0 else 0))  # a busy server may miss the first ones

        def crashed() -> Any:
            _emit("prefect.flow-run.heartbeat", heard)
            if next(beats, None) is not None:
                _emit("prefect.flow-run.heartbeat", run)
            return _state(client, run) if _is(client, run, "CRASHED") else None

        assert said in str(wait_for(crashed).message)
        assert not _is(client, heard, "CRASHED")
    finally:
        put_automation(client, zombie_automations()[which])


def test_a_failed_audit_pauses_what_it_condemns(client: SyncPrefectClient) -> None:
    from prefect import flow
    from prefect.states import Failed

    @flow(name="audit")
    def stranger() -> None:
        """A flow of somebody else on the same server, of the same name."""

    other = client.create_flow_run(stranger)
    client.set_flow_run_state(other.id, Failed(message="not ours"), force=True)
    run = _running(client, "audit/nightly")
    time.sleep(5)  # long enough for the stranger's failure to have been dealt with
    assert not client.read_deployment_by_name("generate/nightly").paused
    client.set_flow_run_state(run.id, Failed(message="too many rejected"), force=True)
    wait_for(lambda: client.read_deployment_by_name("generate/nightly").paused)
    wait_for(lambda: client.read_deployment_by_name("extend/nightly").paused)
    assert not client.read_deployment_by_name("audit/nightly").paused


def _running(client: SyncPrefectClient, name: str) -> FlowRun:
    from prefect.states import Running

    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id)
    client.set_flow_run_state(run.id, Running(), force=True)
    return run


def _pending(client: SyncPrefectClient, name: str) -> FlowRun:
    """A run of a deployment that a worker took."""
    from prefect.states import Pending

    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id)
    client.set_flow_run_state(run.id, Pending(), force=True)
    return run


def _is(client: SyncPrefectClient, run: FlowRun, kind: str) -> bool:
    return str(_state(client, run).type.value) == kind


def _state(client: SyncPrefectClient, run: FlowRun) -> Any:
    return client.read_flow_run(run.id).state


def _emit(event: str, run: FlowRun) -> None:
    from prefect.events import emit_event

    tag = {"prefect.resource.id": TAG, "prefect.resource.role": "tag"}  # as in real ones
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    emit_event(event=event, resource=resource, related=[tag])


# --- what is refused ----------------------------------------------------------------------------


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"Europe/Berlin"):
        deploying.check_timezone("Europe/Berlln")
    clean = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "synthgen.flows.deploy", "--out", "x", "--timezone", "Mars"],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
