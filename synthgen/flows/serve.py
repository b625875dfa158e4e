"""Serve a scheduled dataset from this machine: a schedule, and a process that makes its runs.

The server keeps the schedule, this process makes one run after the other, each in a process of
its own. When this process stops, the schedule goes on: what fell due meanwhile runs late, one of
it at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import suppress
from pathlib import PurePath
from typing import Any
from uuid import UUID

import prefect
import psutil
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    State,
    StateType,
)
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.server.schemas.schedules import CronSchedule
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

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
    name: str | None = None,
    **options: Any,
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
        name: Of the deployment; None: from the dataset's.
        options: Other parameters of the flow: ``report``, ``runner``, ``workers``, ``address``.

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
        "audit": None if audit is None else audit.model_dump(mode="json"),
        **options,
    }
    flow: Flow[Any, Any] = generate if shards is None else extend
    deployment = RunnerDeployment.from_flow(
        flow,
        name=name or deployment_name(out),
        schedule=Cron(cron, timezone=timezone),
        parameters=parameters if shards is None else {**parameters, "shards": shards},
        tags=["synthgen", "served"],
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    # not Flow.serve: it pickles the flow for its child, where annotations find no names
    prefect.serve(deployment, pause_on_shutdown=False, limit=1, print_starting_message=False)


def deployment_name(out: str) -> str:
    """The name of a dataset's deployment: no two datasets share one.

    >>> deployment_name("s3://bucket/night scenes")
    'night-scenes-7c6477'
    """
    where = place(out)
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", PurePath(where).name).strip("-") or "dataset"
    return f"{stem[:40]}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"


def end_runs(name: str) -> None:
    """End the runs that go on here, and say so on the server, so that the next can begin.

    Args:
        name: Of the deployment.
    """
    for process in psutil.Process().children(recursive=True):  # in sessions of their own
        with suppress(psutil.Error):
            process.kill()
    state: State[Any] = Crashed(message="synthgen serve was stopped in the middle of this run.")
    ours = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    with get_client(sync_client=True) as client:
        going = client.read_flow_runs(flow_run_filter=_going(), deployment_filter=ours)
        while going:
            for run in going:
                client.set_flow_run_state(run.id, state, force=True)
            going = client.read_flow_runs(flow_run_filter=_going([run.id for run in going]))


def _going(parents: list[UUID] | None = None) -> FlowRunFilter:
    """Runs that say they run; inside other runs, where those are given."""
    types = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    inside = None if parents is None else FlowRunFilterParentFlowRunId(any_=parents)
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=types))
    return FlowRunFilter(state=state, parent_flow_run_id=inside)


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
    """Refuse what is no schedule, and one that never falls due.

    A sixth field would be seconds, first or last: '0 0 2 * * *' fires every second from two on.

    Raises:
        ValueError: In one line.

    >>> check_cron("30 2 * * mon-fri")
    >>> check_cron("0 2 31 2 *")
    Traceback (most recent call last):
    ValueError: cron must fall due some day. Got '0 2 31 2 *', which never does; ...
    >>> check_cron("nightly")
    Traceback (most recent call last):
    ValueError: cron must have five fields: minute, hour, day of month, month, day of week, ...
    """
    try:
        if len(cron.split()) != 5 and not cron.startswith("@"):
            raise ValueError("a field too many or too few")
        schedule = CronSchedule(cron=cron)
    except ValueError:
        raise ValueError(
            "cron must have five fields: minute, hour, day of month, month, day of week, such as "
            f"'0 2 * * *' for two o'clock every night. Got {cron!r:.60}."
        ) from None
    try:
        asyncio.run(schedule.get_dates(1))
    except ValueError:
        raise ValueError(
            f"cron must fall due some day. Got {cron!r:.60}, which never does; is there such a "
            f"day in such a month?"
        ) from None
