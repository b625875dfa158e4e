"""What every command is wrapped in: options for its output, its result, and who runs its job.

A command returns what it found (`Result`); with ``--json`` that is one object on standard output,
else the lines for people. Commands that run a job show its progress, on one engine or the other.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthgen.cli.display import JsonLogs, Quiet, Tally, Verbose, logged, show_progress
from synthgen.cli.options import IN_FLIGHT, Engine, printed, say
from synthgen.cli.stopping import apart, end

if TYPE_CHECKING:
    from synthgen.config import Config
    from synthgen.jobs import Job

Json = Annotated[bool, printed("--json", help="The result as one JSON object on standard output.")]
RUN_SETTINGS = {  # read by Prefect when it is imported, also in the runs of a schedule
    "PREFECT_LOGGING_LEVEL": "INFO",  # what the server shows of a run
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # what a terminal does
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",  # events that were not sent at once
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; without, nobody sees a killed run
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a command found.

    Args:
        tree: What ``--json`` prints.
        lines: What is printed for people instead.
        problem: Last, on standard error; empty where all is well.
        code: Exit code.
    """

    tree: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[object] = ()
    problem: str = ""
    code: int = 0

    def tell(self, as_json: bool = False) -> None:
        """Print it, and exit with its code unless that is 0."""
        if as_json:
            print(json.dumps(self.tree), flush=True)
        else:
            for line in self.lines:
                say(line)
        if self.problem:
            say(self.problem, err=True)
        if self.code:
            raise typer.Exit(self.code)


def command(
    function: Callable[..., Result | None], runs: bool = False, tells: bool = False
) -> Callable[..., None]:
    """A function as a command.

    Args:
        function: Its parameters are the command's.
        runs: It runs a job: ``--quiet``, ``--verbose``, ``--json-logs``.
        tells: Its result has a tree: ``--json``.
    """

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        as_json = options.pop("as_json", False) if "as_json" in added else False
        told = [options.get(name, False) for name in ("quiet", "verbose", "json_logs")]
        for name in added:
            options.pop(name, None)
        with logged(*told) if runs else nullcontext():
            result = function(*args, **options)
        if result is not None:
            result.tell(as_json)

    signature = inspect.signature(function, eval_str=True)
    shared = {"as_json": Json} if tells else {}
    shared |= {"json_logs": JsonLogs, "quiet": Quiet, "verbose": Verbose} if runs else {}
    added = {name: kind for name, kind in shared.items() if name not in signature.parameters}
    parameters = [
        *signature.parameters.values(),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for name, kind in added.items()
        ),
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def run_job(
    make: Callable[[], Job[Any]],
    engine: Engine = Engine.inline,
    parameters: Callable[[Any], Mapping[str, Any]] | None = None,
) -> tuple[dict[str, Any], Tally]:
    """A job behind a progress display; returns what it published, and what was counted.

    Args:
        make: The job; called once the server that a flow needs is starting, for its imports and
            checks take seconds.
        engine: Who runs it. Mistakes are one line on both, before any flow.
        parameters: Of the flow that is named as the job is.
    """
    with flow_server(engine) as run_flow:
        job = make()
        if engine is Engine.flow:
            job.begin()
        with show_progress(*job.planned) as tally:
            if engine is Engine.inline or parameters is None:
                return job.run(), tally
            flow = getattr(import_module(f"synthgen.flows.{job.name}"), job.name)
            found: dict[str, Any] = run_flow(flow, **parameters(job))
        return found, tally


def check_runner(
    config: Config, engine: Engine, runner: str, workers: int, address: str | None
) -> None:
    """Refuse what no flow could run on, and settings of flows where there is none.

    Raises:
        ValueError: In one line.
    """
    from synthgen.prompts.reading import STDIN

    if engine is Engine.flow:
        from synthgen.flows.runners import task_runner

        task_runner(runner, workers, address)
        if config.prompts == STDIN and runner != "threads":
            raise ValueError(
                f"Prompts from standard input must be used by this process. Got --runner "
                f"{runner}, whose workers cannot read them; save them in a file."
            )
    elif (runner, address) != ("threads", None) or workers not in (1, IN_FLIGHT):
        raise ValueError(
            "--runner, --workers and --address have no effect with --engine inline, which makes "
            "one shard after the other. Leave them out, or leave out --engine."
        )


def prepare_prefect(more: Mapping[str, str] | None = None) -> None:
    """Set what Prefect reads when it is imported, where the environment does not say it."""
    for variable, value in {**RUN_SETTINGS, **(more or {})}.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", "Failed to create the Prefect home")  # its server says it
    logging.raiseExceptions = False  # records that a lost server no longer takes: `lost` says it


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
