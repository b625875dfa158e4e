"""``synthgen report``, ``synthgen view`` and ``synthgen inspect``: what people look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="Dataset folder.")]


def report(
    directory: Folder,
    audit: Annotated[
        str | None, typer.Option(help="Id of the audit to show; the first one if left out.")
    ] = None,
    num: Annotated[int, typer.Option(help="Samples in the contact sheet and explorer.")] = 60,
    out: Annotated[
        Path | None, typer.Option(help="HTML file; report/index.html in the dataset if left out.")
    ] = None,
) -> None:
    """Write the report of a dataset: one HTML file with charts and a mask explorer."""
    from synthgen.report.page import write_report

    typer.echo(write_report(directory, audit=audit, num=num, out=out))


def view(
    directory: Folder,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Serve the report to the browser of this machine, read-only; made first if it is missing."""
    from synthgen.report.page import PAGE, write_report
    from synthgen.report.serve import ADDRESS, make_server

    if not (directory / PAGE).is_file():
        typer.echo(write_report(directory))
    with make_server((directory / PAGE).parent, port) as server:
        typer.echo(f"http://{ADDRESS}:{server.server_address[1]}/  (Ctrl-C stops)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped")
