"""``synthgen generate`` and ``synthgen demo``: two doors to one engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.display import JsonLogs, show_progress
from synthgen.cli.engine import Engine, flow_server
from synthgen.cli.options import say
from synthgen.config import AuditConfig, Config, load, load_audit

DEMO_OVERRIDES = (
    *("prompts=demo", "num=16", "dataset.shard_size=8", "dataset.preview_every=1", "seed=7"),
    "labeling.method=clusters",
)


Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change one setting: section.key=value (repeatable)."),
]
Classes = Annotated[
    str | None,
    typer.Option(help="Classes to look for in captions: cat,dog or a file of names, or of ids."),
]
Runner = Annotated[str, typer.Option(help="Where shards are made: threads, ray, dask.")]
Workers = Annotated[int, typer.Option(min=1, help="Shards in flight at once.")]
Address = Annotated[
    str | None, typer.Option(help="Cluster of ray (auto, host:port) or dask; else here.")
]


def generate(
    source: Annotated[
        str, typer.Argument(help="A YAML configuration, a prompt file, -, or: demo, scenes, voc.")
    ],
    out: Annotated[
        str, typer.Option(help="Output folder or URL (s3://bucket/folder); run again to go on.")
    ] = "synthgen-out",
    num: Annotated[int | None, typer.Option(help="Samples planned; failed ones count.")] = None,
    classes: Classes = None,
    overrides: Set = None,
    engine: Annotated[Engine, typer.Option(help="Prefect flow, or in-process.")] = Engine.flow,
    runner: Runner = "threads",
    workers: Workers = 1,
    address: Address = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to resume with other library versions.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all; print shards, bytes, time; make nothing.")
    ] = False,
    audit: Annotated[
        str | None, typer.Option(help="Then audit it with this auditor, such as scenes-sam.")
    ] = None,
    json_logs: JsonLogs = False,
) -> None:
    """Make a segmentation dataset from prompts, or finish one that was cut off.

    Run the same command again to go on: complete shards are kept.

    Examples:

      synthgen generate scenes --num 64 --out data/scenes

      synthgen generate voc --set model.card=sd21-base --out data/voc

      synthgen generate captions.txt --classes cat,dog --set labeling.method=clusters

      synthgen generate config.yaml --set segmentation.clusters.ks=[2,5,10] --dry-run
    """
    config = read_config(source, overrides or [], num, classes)
    settings = None if audit is None else load_audit([f"auditor.name={audit}"])
    if dry_run:
        rehearse(config, out, engine, runner, workers, strict, address)
        print_estimate(config, out)
        return
    manifest = execute(config, out, engine, runner, workers, strict, json_logs, address)
    if settings is not None:
        _audit(out, settings, json_logs)
    conclude(manifest, out)


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("synthgen-demo"),
    num: Annotated[int, typer.Option(help="Images.")] = 16,
    engine: Annotated[Engine, typer.Option(help="Prefect flow, or in-process.")] = Engine.flow,
    workers: Workers = 1,
    json_logs: JsonLogs = False,
) -> None:
    """Make, label, audit and show a small dataset with the embedded models, offline."""
    from synthgen.dataset.contact_sheet import write_contact_sheet
    from synthgen.report.page import write_report

    config = load(overrides=[*DEMO_OVERRIDES, f"num={num}"])
    manifest = execute(config, out, engine, "threads", workers, False, json_logs)
    sheet = write_contact_sheet(out, out / "report" / "contact-sheet.png")
    say(f"  contact sheet  {sheet}")
    _audit(out, load_audit(["auditor.name=scenes-m2f"]), json_logs)  # judges labels, too
    _audit(out, load_audit(["auditor.name=scenes-sam"]), json_logs, num=8)  # a second an image
    say(f"Report: {write_report(out)}")
    say(f"{_count_labeled(out, manifest)} To look at them: synthgen view {out}")
    conclude(manifest, out)


def read_config(
    source: str, overrides: list[str], num: int | None, classes: str | None = None
) -> Config:
    """The configuration that the command line describes.

    Args:
        source: A YAML file is a configuration; anything else is a prompt source.
        overrides: Assignments ``key=value``.
        num: Overrides ``num`` where given.
        classes: Names with commas between, or a file of them.
    """
    from synthgen.prompts.class_list import read_classes

    path = Path(source)
    is_config = path.suffix.lower() in {".yaml", ".yml"}
    given: dict[str, Any] = {} if is_config else {"prompts": source}
    given |= {} if num is None else {"num": num}
    given |= {} if classes is None else {"classes": read_classes(classes)}
    return load(path if is_config else None, overrides, given)


def execute(
    config: Config,
    out: str | Path,
    engine: Engine,
    runner: str,
    workers: int,
    strict: bool,
    json_logs: bool,
    address: str | None = None,
) -> dict[str, Any]:
    """Run the plan behind a progress display; returns the manifest with the work that was done."""
    with flow_server(engine) as run_flow:
        from synthgen import jobs  # seconds of torch and diffusers, which --help does not need
        from synthgen.storage.publish import open_storage

        open_storage(out)  # a URL with a secret must not become a parameter of a flow
        config = jobs.as_extended(config, out)
        specs = jobs.plan(config)
        check_runner(config, engine, runner, workers, address)
        jobs.initialize(config, out, strict=strict)  # mistakes in one line, not in a flow's
        started = time.perf_counter()
        with show_progress(config.planned, len(specs), json_logs) as tally:
            if engine is Engine.flow:
                from synthgen.flows.generate import generate as flow

                options = {"runner": runner, "workers": workers, "address": address}
                manifest: dict[str, Any] = run_flow(
                    flow, config, str(out), strict=strict, **options
                )
            else:
                manifest = jobs.generate(config, out, strict=strict)
    _announce(manifest, tally.made, out, time.perf_counter() - started)
    return manifest


def rehearse(
    config: Config,
    out: str,
    engine: Engine,
    runner: str,
    workers: int,
    strict: bool,
    address: str | None,
) -> None:
    """Refuse what ``execute`` would refuse before the first image; the model is loaded for it."""
    from synthgen import jobs

    jobs.plan(config)
    check_runner(config, engine, runner, workers, address)
    jobs.rehearse(jobs.as_extended(config, out), out, strict)


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
    elif (runner, workers, address) != ("threads", 1, None):
        raise ValueError(
            "--runner, --workers and --address have no effect with --engine inline, which makes "
            "one shard after the other. Leave them out, or leave out --engine."
        )


def print_estimate(config: Config, out: str) -> None:
    """Print what a run would make and take; shards that stand in ``out`` are the better basis."""
    from synthgen import jobs

    for name, value in jobs.estimate(config, out).items():
        shown = "unknown" if value is None else value
        say(f"{name:>16}  {shown:,}" if isinstance(shown, int) else f"{name:>16}  {shown}")


def _audit(
    out: str | Path, settings: AuditConfig, json_logs: bool, num: int | None = None
) -> None:
    """Audit a dataset that was just finished, or its first samples, with the audit's defaults."""
    from synthgen.cli.audit import MAX_FAILED, conclude, run_audit, show_summary

    summary = run_audit(out, settings, num=num, json_logs=json_logs)
    show_summary(summary, out)
    conclude(summary, MAX_FAILED)


def _count_labeled(out: Path, manifest: dict[str, Any]) -> str:
    """How many samples show a class that their prompt names, in a sentence."""
    from synthgen.dataset.metadata import read_rows
    from synthgen.storage.publish import open_storage

    stems = [Path(shard["name"]).stem for shard in manifest["shards"]]
    rows = [row for stem in stems for row in read_rows(open_storage(out), stem)]
    found = [row.labels.class_names for row in rows if row.labels and row.labels.class_names]
    classes = {name for names in found for name in names}
    return (
        f"{len(found)} of {manifest['totals']['samples']} samples are labeled, "
        f"with {len(classes)} classes."
    )


def _announce(manifest: dict[str, Any], made: int, out: str | Path, seconds: float) -> None:
    totals = manifest["totals"]
    if made == 0:
        say(f"{out} is already complete: nothing was done.")
    else:
        say(f"{made} images in {seconds:.1f} s ({made / seconds:.2f} images/s).")
    say(f"  dataset        {out}  ({totals['samples']} samples, {totals['shards']} shards)")


def conclude(manifest: dict[str, Any], out: str | Path) -> None:
    """Exit with code 3 when samples failed; their reasons are in the dataset."""
    totals = manifest["totals"]
    failed = totals["planned"] - totals["samples"]
    if failed:
        say(
            f"{failed} of {totals['planned']} planned samples failed; reasons are in "
            f"{out}/metadata.",
            err=True,
        )
        raise typer.Exit(3)
