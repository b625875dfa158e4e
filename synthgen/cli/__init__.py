"""The command line: names equal the Python functions' and the flow's parameter names.

Exit codes: 0 ok, 1 failure, 2 usage, 3 partial (some samples failed), 4 audit failed (too many
samples rejected), 130 / 143 after Ctrl-C / SIGTERM with the shard in flight rolled back.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from synthgen import __version__
from synthgen.cli import (
    audit,
    bench,
    config,
    doctor,
    export,
    generate,
    label,
    oneshot,
    prompts,
    report,
    segment,
    serve,
    soak,
    stopping,
    study,
    train,
    verify,
)
from synthgen.cli.command import command
from synthgen.progress import Stopped
from synthgen.storage.redaction import redact
from synthgen.storage.untrusted import printable

app = typer.Typer(
    name="synthgen",
    help="Segmentation datasets from text prompts, with masks nobody drew. Try: synthgen demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 partial, 4 audit failed, 130 and 143 after a "
    "signal.",
)


def _tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"synthgen {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version)
    ] = False,
) -> None:
    """Options of the command line itself."""


MAKE, USE, PROVE = "Make datasets", "Judge, read and hand on datasets", "Measure"

for _make in (
    *(generate.demo, generate.generate, generate.annotate, generate.extend, generate.merge),
):
    app.command(rich_help_panel=MAKE)(command(_make, runs=True))
app.command(rich_help_panel=MAKE)(command(generate.plan, tells=True))
app.command(rich_help_panel=MAKE)(serve.serve)
app.add_typer(prompts.app, name="prompts", rich_help_panel=MAKE)
app.add_typer(config.app, name="config", rich_help_panel=MAKE)
for _look in (verify.status, verify.verify, verify.replay, verify.gc):
    app.command(rich_help_panel=USE)(command(_look, tells=True))
for _judge in (audit.audit, label.label, export.export):
    app.command(rich_help_panel=USE)(command(_judge, runs=True, tells=True))
app.command(rich_help_panel=USE)(command(export.push, tells=True))
app.add_typer(oneshot.app, name="oneshot", rich_help_panel=USE)
for _show in (report.report, report.view, report.inspect):
    app.command(rich_help_panel=USE)(_show)
app.command(rich_help_panel=PROVE)(doctor.doctor)
app.command(rich_help_panel=PROVE)(train.train)
train.app.command("segment")(segment.evaluate)
train.app.command("language")(segment.language)
train.app.command("oneshot")(oneshot.evaluate)
app.add_typer(train.app, name="evaluate", rich_help_panel=PROVE)
app.add_typer(bench.app, name="bench", rich_help_panel=PROVE)
app.command(rich_help_panel=PROVE)(command(study.study, runs=True))
app.command(rich_help_panel=PROVE)(soak.soak)


def main() -> None:
    """Run the command line; users' mistakes are one line and exit code 2."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    stopping.forgive_standard_error()
    stopping.listen()
    try:
        app()
    except ValueError as error:
        _die(error, 2)
    except (Stopped, KeyboardInterrupt):
        stopping.end()
    except (OSError, RuntimeError) as error:
        _die(error, 1)


def _die(error: Exception, code: int) -> None:
    if os.environ.get(stopping.TRACEBACK):
        raise error
    print(f"synthgen: {printable(redact(str(error)))}", file=sys.stderr)
    sys.exit(code)
