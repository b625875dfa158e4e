"""Serve a scheduled dataset from this machine: a schedule, and a process that makes its runs.

The server keeps the schedule, this process makes one run after the other, each in a process of
its own. When this process stops, the schedule goes on: what fell due meanwhile runs late, one of
it at a time.
"""

from __future__ import annotations

import warnings
from typing import Any

import prefect
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from synthgen.config import AuditConfig, Config
from synthgen.flows.automations import put_automation, zombie_automations
from synthgen.flows.deploy import check_server, check_timezone, place
from synthgen.flows.extend import extend
from synthgen.flows.generate import generate


def serve(
    config: Config,
    out: str,
    cron: str,
    timezone: str = "UTC",
    shards: int | None = None,
    audit: AuditConfig | None = None,
    report: bool = False,
    runner: str = "threads",
    workers: int = 1,
    address: str | None = None,
    name: str = "served",
) -> None:
    """Run the generation or the growth flow on a schedule until this process is stopped.

    PREFECT_FLOWS_HEARTBEAT_FREQUENCY must be set, as the command does it: silent runs are crashed.

    Args:
        config: The dataset's configuration.
        out: Its folder or URL.
        cron: Five fields: minute, hour, day of month, month, day of week.
        timezone: In which they are read.
        shards: Extend the dataset by so many in each run; None: make it, and look after it.
        audit: Then audit it.
        report: Then write its report.
        runner: Where shards run: a row of RUNNERS or ``module:attribute``.
        workers: Shards in flight at once.
        address: Cluster of the runner: ``auto`` or ``host:port``; None: this machine.
        name: Of the deployment.

    Raises:
        ValueError: In one line, for a bad schedule or time zone, a URL with a secret, or without
            a server.
        RuntimeError: If the server does not answer.
    """
    where = place(out)
    check_schedule(cron, timezone)
    with get_client(sync_client=True) as client:
        for automation in zombie_automations():
            put_automation(client, automation)
    parameters = {
        "config": config.model_dump(mode="json"),
        "out": where,
        "runner": runner,
        "workers": workers,
        "address": address,
        "audit": None if audit is None else audit.model_dump(mode="json"),
        "report": report,
    }
    flow: Flow[Any, Any] = generate if shards is None else extend
    deployment = RunnerDeployment.from_flow(
        flow,
        name=name,
        schedule=Cron(cron, timezone=timezone),
        parameters=parameters if shards is None else {**parameters, "shards": shards},
        tags=["synthgen", "served"],
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    warnings.filterwarnings("ignore", "coroutine 'Runner.astop' was never awaited")  # at Ctrl-C
    # not Flow.serve: it pickles the flow for its child, where annotations find no names
    prefect.serve(deployment, pause_on_shutdown=False, limit=1, print_starting_message=False)


def check_schedule(cron: str, timezone: str) -> None:
    """Refuse what could never fire.

    Raises:
        ValueError: In one line, for a bad schedule or time zone, or without a server.
        RuntimeError: If the server does not answer.
    """
    check_timezone(timezone)
    check_cron(cron)
    check_server()


def check_cron(cron: str) -> None:
    """Refuse what is no schedule.

    Raises:
        ValueError: In one line.

    >>> check_cron("30 2 * * mon-fri")
    >>> check_cron("nightly")
    Traceback (most recent call last):
    ValueError: cron must have five fields: minute, hour, day of month, month, day of week, ...
    """
    try:
        CronSchedule(cron=cron)
    except ValidationError:
        raise ValueError(
            "cron must have five fields: minute, hour, day of month, month, day of week, such as "
            f"'0 2 * * *' for two o'clock every night. Got {cron!r:.60}."
        ) from None
