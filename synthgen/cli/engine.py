"""Who runs a plan: a Prefect flow beside a server, or this process alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Any

from synthgen.cli.stopping import apart, end

RUN_SETTINGS = {  # read by Prefect when it is imported, also in the runs of a schedule
    "PREFECT_LOGGING_LEVEL": "INFO",  # what the server shows of a run
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # what a terminal does
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",  # events that were not sent at once
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; without, nobody sees a killed run
}


class Engine(StrEnum):
    """Who runs the plan: a Prefect flow (default), or this process alone."""

    flow = "flow"
    inline = "inline"


def prepare_prefect(more: Mapping[str, str] | None = None) -> None:
    """Set what Prefect reads when it is imported, where the environment does not say it."""
    for variable, value in {**RUN_SETTINGS, **(more or {})}.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", "Failed to create the Prefect home")  # its server says it


@contextmanager
def flow_server(engine: Engine) -> Iterator[Callable[..., Any]]:
    """In the block there is a server for flows; gives what runs one: ``run(flow, *arguments)``.

    A server of our own starts at once, and is waited for where the first flow begins: what the
    block imports and checks before that costs no time.
    """
    if engine is Engine.inline:
        yield partial
        return
    prepare_prefect()
    from synthgen.flows.server import flow_server as server

    with server(lambda message: end(message, 1)) as ready:

        def run_flow(flow: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            ready()
            return apart(partial(flow, *arguments, **options))

        yield run_flow
