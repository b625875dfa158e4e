"""``synthgen serve``: a dataset on a schedule, from this machine."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from synthgen.cli.command import prepare_prefect
from synthgen.cli.options import (
    IN_FLIGHT,
    Address,
    Num,
    Runner,
    Set,
    Source,
    ThenAudit,
    Workers,
    read_config,
)
from synthgen.cli.stopping import apart
from synthgen.config import load_audit
from synthgen.progress import Stopped

RETRIES = {  # read in the runs, which are our child processes
    "PREFECT_FLOWS_DEFAULT_RETRIES": "2",  # complete shards are kept: a retry finishes the rest
    "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": "60",
    "PYTHONSAFEPATH": "1",  # no folder of where we are started hides a package
}


def serve(
    source: Source,
    out: Annotated[str, typer.Option(help="Output folder or URL (s3://bucket/folder).")],
    cron: Annotated[
        str, typer.Option(help="When: minute, hour, day of month, month, day of week.")
    ],
    timezone: Annotated[str, typer.Option(help="Of --cron, such as Europe/Berlin.")] = "UTC",
    extend: Annotated[
        int | None,
        typer.Option(min=1, help="Add this many shards in each run; the first makes the dataset."),
    ] = None,
    num: Num = None,
    overrides: Set = None,
    audit: ThenAudit = None,
    report: Annotated[bool, typer.Option("--report", help="Then write its report.")] = False,
    runner: Runner = "threads",
    workers: Workers = IN_FLIGHT,
    address: Address = None,
    name: Annotated[
        str | None, typer.Option(help="Of the deployment on the server; default: the dataset's.")
    ] = None,
) -> None:
    """Make or extend a dataset on a schedule, on this machine, until Ctrl-C.

    It needs a Prefect server, which keeps the schedule also while this process is down; runs that
    fall due while one is going on are canceled. Every run ends in a dataset that 'synthgen
    verify' accepts, or is finished by the next.

      prefect server start &                                  (dashboard: http://127.0.0.1:4200)

      export PREFECT_API_URL=http://127.0.0.1:4200/api

    Examples:

      synthgen serve scenes --out data/scenes --cron "0 2 * * *" --timezone Europe/Berlin

      synthgen serve config.yaml --out data/growing --extend 4 --cron "0 2 * * mon-fri" --report
    """
    config = read_config(source, overrides, num)
    settings = None if audit is None else load_audit([f"auditor.name={audit}"])
    prepare_prefect(RETRIES)
    from synthgen.flows.runners import task_runner
    from synthgen.flows.serve import check_schedule, deployment_name, end_runs
    from synthgen.flows.serve import serve as serve_flow
    from synthgen.jobs.plan import plan
    from synthgen.storage.publish import open_storage

    check_schedule(cron, timezone)
    task_runner(runner, workers, address)
    plan(config)  # an unreadable prompt file must be seen now, not by night
    called = name or deployment_name(out)
    where = {"report": report, "runner": runner, "workers": workers, "address": address}
    with open_storage(out).locked("serve", "serve a dataset"):
        typer.echo(f"Serving {out} on '{cron}' ({timezone}) as {called}; stop with Ctrl-C.")
        try:
            apart(
                lambda: serve_flow(config, out, cron, timezone, extend, settings, called, **where)
            )
        except Stopped:
            with suppress(Exception):  # a server that is gone has no slots to free
                end_runs(called)
            raise
