"""Set up a Prefect server: work pool, GPU limit, deployments, automations. May be repeated.

    python -m synthgen.flows.deploy --pool process --out data/nightly --timezone Europe/Berlin

The deployments are the blocks of ``prefect.yaml``, put there by Prefect's own ``deploy``; pools
are the job templates in ``pools/``. What is drawn at once on the machine's GPUs is bounded by the
global concurrency limit ``gpu``, which flows take strictly: without it they fail instead of
running unbounded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, available_timezones

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from synthgen.flows.automations import (
    PAUSE,
    drop_automation,
    pause_after_failed_audits,
    put_automation,
    zombie_automations,
)
from synthgen.registry import near_miss
from synthgen.storage.redaction import redact
from synthgen.storage.untrusted import one_line
from synthgen.storage.urls import check_url, scheme_of

FOLDER = Path(__file__).parent
GPU_LIMIT = "gpu"
AUDITED = "audited"
"""Tag of deployments that are paused when an audit fails."""


class Pool(StrEnum):
    """Where runs are started: a process, a Docker container, a Kubernetes job."""

    process = "process"
    docker = "docker"
    kubernetes = "kubernetes"


def main(
    out: Annotated[str, typer.Option(help="The dataset: a folder or URL that workers reach.")],
    pool: Annotated[Pool, typer.Option(help="Where runs are started.")] = Pool.process,
    timezone: Annotated[str, typer.Option(help="Of the schedules, such as Europe/Berlin.")] = (
        "UTC"
    ),
    gpus: Annotated[int, typer.Option(min=1, help="Shards drawn at once, over all runs.")] = 1,
    prefect_file: Annotated[Path, typer.Option(help="The deployments.")] = FOLDER / "prefect.yaml",
) -> None:
    """Set up the Prefect server that PREFECT_API_URL names for scheduled datasets."""
    name = deploy(out, pool, timezone, gpus, prefect_file)
    typer.echo(f"Deployed. Now start a worker:  prefect worker start --pool {name}")


def deploy(
    out: str,
    pool: Pool = Pool.process,
    timezone: str = "UTC",
    gpus: int = 1,
    prefect_file: Path = FOLDER / "prefect.yaml",
) -> str:
    """Set up pool, limit, deployments and automations; returns the pool's name.

    Args:
        out: The dataset that the deployments make and audit.
        pool: Where runs are started.
        timezone: Of the schedules.
        gpus: Slots of the global concurrency limit ``gpu``.
        prefect_file: The deployments.

    Raises:
        ValueError: For an unknown time zone, a URL with a secret, or without a server.
        RuntimeError: If the server does not answer, or refuses a deployment.
    """
    where = place(out)
    check_timezone(timezone)
    check_server()
    with get_client(sync_client=True) as client:
        name = put_pool(client, pool).name
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, gpus)
        _deploy_all(prefect_file, {"POOL": name, "OUT": where, "TIMEZONE": timezone})
        for automation in zombie_automations():
            put_automation(client, automation)
        wanted = DeploymentFilter(tags=DeploymentFilterTags(all_=["synthgen", AUDITED]))
        condemned = sorted(item.id for item in client.read_deployments(deployment_filter=wanted))
        if condemned:
            put_automation(client, pause_after_failed_audits(condemned))
        else:  # no old one stays
            drop_automation(client, PAUSE)
    return name


def place(out: str) -> str:
    """A dataset's folder or URL as the server may know it: absolute, for runs start elsewhere.

    Raises:
        ValueError: For a URL that is not opened, or that holds a secret.

    >>> place("s3://bucket/nightly"), Path(place("nightly")).is_absolute()
    ('s3://bucket/nightly', True)
    """
    if scheme_of(out) is None:
        return str(Path(out).absolute())
    check_url(out)
    return out


def put_pool(client: SyncPrefectClient, pool: Pool) -> WorkPool:
    """Create the work pool ``synthgen-<kind>``, or bring its job template up to date."""
    template = json.loads((FOLDER / "pools" / f"{pool}.json").read_text(encoding="utf-8"))
    wanted = WorkPoolCreate(name=f"synthgen-{pool}", type=pool.value, base_job_template=template)
    return client.create_work_pool(wanted, overwrite=True)


def check_server() -> None:
    """Refuse to go on without a server that outlives us.

    Raises:
        ValueError: If PREFECT_API_URL is not set; the ephemeral server runs no schedules.
        RuntimeError: If the server does not answer, or refuses our password.
    """
    url = get_current_settings().api.url
    if url is None:
        raise ValueError(
            "PREFECT_API_URL must name a Prefect server. Got none; start one with 'prefect server "
            "start', then 'export PREFECT_API_URL=http://127.0.0.1:4200/api'."
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is None:
            try:
                client.hello()  # the health check asks for no password, a greeting does
            except PrefectHTTPStatusError as refusal:
                error = refusal
    if error is not None:
        raise RuntimeError(
            f"The Prefect server at {redact(url)} must answer and let us in. Got "
            f"{one_line(redact(str(error)))}; is it running, and is PREFECT_API_AUTH_STRING its "
            f"password?"
        )


def check_timezone(timezone: str) -> ZoneInfo:
    """The time zone of a name.

    Raises:
        ValueError: With near misses, if there is none.

    >>> check_timezone("Europe/Berlin").key
    'Europe/Berlin'
    """
    known = sorted(available_timezones())
    if timezone not in known:
        hint = near_miss(timezone, known)
        raise ValueError(
            f"timezone must be a name of the IANA database, such as Europe/Berlin. "
            f"Got {timezone!r:.60}.{hint}"
        )
    return ZoneInfo(timezone)


def _deploy_all(prefect_file: Path, variables: dict[str, str]) -> None:
    """Run ``prefect deploy --all``, which fills ``{{ $NAME }}`` in from the environment."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = {f"SYNTHGEN_{name}": value for name, value in variables.items()}
    done = subprocess.run(  # noqa: S603 - our own interpreter, fixed words, one path
        [*command, "--prefect-file", str(prefect_file)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(
            f"Every block of {prefect_file.name} must be deployable. Got: {' '.join(lines[-4:])}"
        )


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ValueError, RuntimeError) as error:
        print(f"flows.deploy: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
