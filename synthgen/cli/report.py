"""``synthgen report``, ``synthgen view`` and ``synthgen inspect``: what people look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthgen.cli.options import Checkpoint, Folder, Labels, Set, Sha256, refuse_unused, say
from synthgen.progress import Stopped
from synthgen.storage.urls import scheme_of


def report(
    directory: Folder,
    audit: Annotated[
        str | None, typer.Option(help="Id of the audit to show; the last one if left out.")
    ] = None,
    labels: Labels = None,
    num: Annotated[
        int, typer.Option(min=1, help="Samples in the contact sheet and explorer.")
    ] = 60,
    out: Annotated[
        Path | None, typer.Option(help="HTML file; report/index.html in the dataset if left out.")
    ] = None,
) -> None:
    """Write the report of a dataset: one HTML file with charts and a mask explorer."""
    from synthgen.report.page import write_report

    if out is not None and out.is_dir():
        raise ValueError(
            f"--out must be an HTML file. Got the folder {str(out)!r}; did you mean "
            f"{out / 'index.html'}?"
        )
    say(write_report(directory, audit=audit, num=num, out=out, labels=labels))


def view(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Dataset folder on this machine.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Another name and port of the browser's address bar (repeatable)."),
    ] = None,
) -> None:
    """Serve the report to the browser of this machine, read-only; made first if it is missing.

    Only a page that 'synthgen report' of this version made on this machine is served; any other
    is left as it is, and one is made anew in its place.

    Examples:

      synthgen view data/scenes --port 8000

      synthgen view data/scenes --port 8000 --host localhost:9000    (ssh -L 9000:127.0.0.1:8000)
    """
    from synthgen.report.serve import ADDRESS, PAGE, is_ours, make_server
    from synthgen.storage.publish import open_storage

    if scheme_of(directory) is not None:
        raise ValueError(
            "DIR must be a folder on this machine. Got a URL; write the report to a file with "
            "'synthgen report URL --out report.html' and open that."
        )
    storage = open_storage(directory)
    page = storage.read(PAGE)
    if page is None or not is_ours(storage.root, page):
        from synthgen.report.page import render_report, write_report  # slow to import

        if page is None:
            say(write_report(directory))
            page = storage.read(PAGE) or b""
        else:
            say(
                f"{PAGE} was not made here by this version: served is one that is made anew "
                f"('synthgen report' replaces it).",
                err=True,
            )
            page = render_report(storage, None, 60).encode("utf-8")
    with make_server(page, port, host or ()) as server:
        say(f"http://{ADDRESS}:{server.server_address[1]}/  (Ctrl-C stops)")
        try:
            server.serve_forever()
        except (KeyboardInterrupt, Stopped):
            say("stopped")


def inspect(
    source: Annotated[str, typer.Argument(help="A prompt, or an image file.")],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("synthgen-inspect"),
    auditor: Annotated[
        str | None, typer.Option(help="Match masks with this auditor's; else: the hierarchy.")
    ] = None,
    checkpoint: Checkpoint = None,
    sha256: Sha256 = None,
    overrides: Set = None,
) -> None:
    """Write the paper's figures for one prompt or image: heads, clusters, masks, error map.

    An image goes through the model at low strength (BL section 5) instead of being drawn.

    Examples:

      synthgen inspect "a red car on the road" --out figures

      synthgen inspect photo.jpg --set model.card=sd21-base
    """
    refuse_unused(
        {"--checkpoint": checkpoint, "--sha256": sha256}, auditor is None, "without --auditor"
    )
    from synthgen.config import AuditorConfig, load
    from synthgen.report.inspection import inspect_sample

    settings = (
        AuditorConfig(name=auditor, checkpoint=checkpoint, sha256=sha256) if auditor else None
    )
    for path in inspect_sample(source, out, load(overrides=overrides or []), settings):
        say(path)
