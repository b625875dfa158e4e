"""Commands that make datasets: ``generate``, ``annotate``, ``demo``, ``extend``, ``merge``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.audit import MAX_FAILED, run_audit, verdict
from synthgen.cli.command import Result, check_runner, run_job
from synthgen.cli.options import (
    IN_FLIGHT,
    Address,
    Classes,
    Engine,
    EngineOption,
    Num,
    Parts,
    Runner,
    Set,
    Source,
    Strict,
    ThenAudit,
    Workers,
    of_parts,
    read_config,
    refuse_unused,
    say,
)
from synthgen.config import Config, load, load_audit

DEMO_OVERRIDES = (
    *("prompts=demo", "num=16", "dataset.shard_size=8", "dataset.preview_every=1", "seed=7"),
    "labeling.method=clusters",
)


def generate(
    source: Source,
    out: Annotated[
        str, typer.Option(help="Output folder or URL (s3://bucket/folder); run again to go on.")
    ] = "synthgen-out",
    num: Num = None,
    classes: Classes = None,
    parts: Parts = None,
    overrides: Set = None,
    engine: EngineOption = Engine.flow,
    runner: Runner = "threads",
    workers: Workers = IN_FLIGHT,
    address: Address = None,
    strict: Strict = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all; print shards, bytes, time; make nothing.")
    ] = False,
    audit: ThenAudit = None,
) -> Result:
    """Make a segmentation dataset from prompts, or finish one that was cut off.

    Run the same command again to go on: complete shards are kept.

    Examples:

      synthgen generate scenes --num 64 --out data/scenes

      synthgen generate voc --set model.card=sd21-base --out data/voc

      synthgen generate captions.txt --classes cat,dog --set labeling.method=clusters

      synthgen generate scenes --parts parts --out data/parts

      synthgen generate config.yaml --set segmentation.clusters.ks=[2,5,10] --dry-run
    """
    config = read_config(source, overrides, num, classes, parts)
    settings = None if audit is None else load_audit([f"auditor.name={audit}"])
    if dry_run:
        from synthgen import jobs

        jobs.plan(config)
        check_runner(config, engine, runner, workers, address)
        jobs.GenerateJob(jobs.as_extended(config, out), out, strict).rehearse()
        return _estimate(config, out)
    manifest = execute(config, out, engine, runner, workers, strict, address)
    if settings is not None:
        verdict(run_audit(out, settings), out, MAX_FAILED).tell()
    return _ended(manifest, out)


def annotate(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Files, folders, 'patterns', URLs, .tar shards, COCO .json, HF data sets.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Output folder or URL; run again to go on.")],
    captions: Annotated[
        str | None,
        typer.Option(help="A text per image: a table, COCO captions, or blip[:FOLDER]."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Labels: cat,dog or a file of names; of them those that a caption has."),
    ] = None,
    parts: Parts = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="The first so many.", show_default="all")
    ] = None,
    overrides: Set = None,
    engine: EngineOption = Engine.flow,
    runner: Runner = "threads",
    workers: Workers = IN_FLIGHT,
    address: Address = None,
    strict: Strict = False,
    audit: ThenAudit = None,
) -> Result:
    """Make a segmentation dataset of images that you have: masks and, with classes, labels.

    The model sees an image of any size at about its own, with annotation.tiles also a tile at a
    time; masks have the image's. What cannot be read is a failed row. Afterwards it is a dataset
    like any other: report, audit, export, label, replay, which read the images again where they
    are. Run again to go on.

    Examples:

      synthgen annotate photos/ --out data/photos

      synthgen annotate photos/ --captions captions.csv --classes cat,dog --out data/pets

      synthgen annotate annotations/instances_val2017.json --set model.card=sd21 --out data/coco

      synthgen annotate 's3://bucket/shards/*.tar' --set annotation.timestep=100 --out data/t100

      synthgen annotate panoramas/ --set annotation.tiles=4 --captions blip --out data/wide
    """
    from synthgen.jobs.from_prompts import annotating, described
    from synthgen.prompts.class_list import read_classes

    settings = None if audit is None else load_audit([f"auditor.name={audit}"])
    given: dict[str, Any] = {} if classes is None else {"classes": read_classes(classes)}
    of_labels, names = of_parts(parts, classes)
    given |= names | ({} if num is None else {"num": num})
    config = load(None, [*(overrides or []), *of_labels], given)
    config = annotating(config, images, described(images, out, captions, config))
    manifest = execute(config, out, engine, runner, workers, strict, address)
    if settings is not None:
        verdict(run_audit(out, settings), out, MAX_FAILED).tell()
    return _ended(manifest, out)


def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("synthgen-demo"),
    num: Annotated[int, typer.Option(help="Images.")] = 16,
    engine: EngineOption = Engine.flow,
    workers: Workers = IN_FLIGHT,
) -> Result:
    """Make, label, audit and show a small dataset with the embedded models, offline."""
    from synthgen.dataset.contact_sheet import write_contact_sheet
    from synthgen.report.page import write_report

    config = load(overrides=[*DEMO_OVERRIDES, f"num={num}"])
    manifest = execute(config, out, engine, workers=workers)
    say(f"  contact sheet  {write_contact_sheet(out, out / 'report' / 'contact-sheet.png')}")
    for auditor, first in (("scenes-sam", 8), ("scenes-m2f", None)):  # SAM takes a second an image
        settings = load_audit([f"auditor.name={auditor}"])
        verdict(run_audit(out, settings, num=first), out, MAX_FAILED).tell()
    say(f"Report: {write_report(out)}")
    say(f"{_count_labeled(out, manifest)} To look at them: synthgen view {out}")
    return _ended(manifest, out)


def extend(
    out: Annotated[str, typer.Argument(metavar="DIR", help="A dataset: folder or URL.")],
    shards: Annotated[int, typer.Option(min=1, help="Whole shards to add.")] = 1,
    balance_by: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Draw more of the classes that a segmenter knows least, from now on: a folder "
            "of 'synthgen train'.",
        ),
    ] = None,
    engine: EngineOption = Engine.flow,
    runner: Runner = "threads",
    workers: Workers = IN_FLIGHT,
    address: Address = None,
    strict: Strict = False,
) -> Result:
    """Add shards to a dataset: the next prompts, each with its next image and a fresh seed.

    Nothing that is there changes, and readers go on with the version that they opened:
    open_dataset(DIR, version=1) is what 'synthgen generate' made, version=2 has the first
    extension. If the last extension was cut off, this finishes it and adds nothing more.

    Examples:

      synthgen extend data/scenes --shards 4

      synthgen extend data/scenes --shards 4 --balance-by runs/ours

      synthgen serve scenes --out data/scenes --extend 4 --cron "0 2 * * *"   (every night)
    """
    from synthgen import jobs

    weights = None if balance_by is None else jobs.weights_by_score(balance_by)
    with jobs.extension(out, shards, weights=weights) as config:
        manifest = execute(config, out, engine, runner, workers, strict, address)
    return _ended(manifest, out)


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="DIR DIR...", help="Finished datasets, folders or URLs, in order."),
    ],
    out: Annotated[
        str, typer.Option(help="The new dataset, a folder or URL; run again to go on.")
    ],
) -> Result:
    """Write the samples of several datasets into a new one, under new keys.

    Image format, ks and whether there are labels must be equal; models, prompts and sizes may
    differ, and class ids are made to agree. Images and masks are copied byte for byte;
    metadata/*.parquet names the old dataset and key of every sample. Audits are about their own
    dataset: audit the new one.

    Examples:

      synthgen merge data/day data/night --out data/both
    """
    from synthgen.jobs import MergeJob

    manifest, _ = run_job(lambda: MergeJob(sources, out))
    return Result(lines=[_counted(manifest, out)])


def plan(
    source: Source,
    out: Annotated[
        str, typer.Option(help="A dataset that was begun; its shards are the better basis.")
    ] = "synthgen-out",
    num: Num = None,
    classes: Classes = None,
    overrides: Set = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="GPU hours, requests and rows at --rate.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Images per second of one GPU, as 'generate' prints it.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="GPUs.", show_default="1")] = None,
) -> Result:
    """Say what a run will make and take: shards, images, bytes, GPU hours.

    Makes nothing. With --cost also what the same takes at a throughput that you measured.

    Examples:

      synthgen plan voc --set model.card=sd21-base --num 100000

      synthgen plan voc --num 100000 --cost --rate 1.5 --workers 64
    """
    from synthgen.jobs.estimate import cost as cost_of

    refuse_unused({"--rate": rate, "--workers": workers}, not cost, "without --cost")
    config = read_config(source, overrides, num, classes)
    if not cost:
        return _estimate(config, out)
    if rate is None:
        raise ValueError(
            "--cost needs --rate, images per second of one GPU. Got none; 'synthgen generate' "
            "prints it at the end of a run."
        )
    return _table(cost_of(config, rate, workers or 1, out))


def execute(
    config: Config,
    out: str | Path,
    engine: Engine,
    runner: str = "threads",
    workers: int = IN_FLIGHT,
    strict: bool = False,
    address: str | None = None,
) -> dict[str, Any]:
    """Make a dataset behind a progress display; returns the manifest and says what was done."""
    started = 0.0

    def job() -> Any:
        nonlocal started
        from synthgen import jobs

        made = jobs.GenerateJob(jobs.as_extended(config, out), out, strict)
        check_runner(made.config, engine, runner, workers, address)
        assert made.specs is not None  # prompts that cannot be read are said before a folder
        started = time.perf_counter()
        return made

    where = {"runner": runner, "workers": workers, "address": address, "strict": strict}
    manifest, tally = run_job(
        job, engine, lambda made: {"config": made.config, "out": str(out), **where}
    )
    seconds = time.perf_counter() - started
    if tally.made == 0:
        say(f"{out} is already complete: nothing was done.")
    else:
        rate = tally.made / seconds
        say(f"{tally.made} images in {seconds:.1f} s ({rate:.2f} images/s).")
    say(_counted(manifest, out))
    return manifest


def _counted(manifest: dict[str, Any], out: str | Path) -> str:
    totals = manifest["totals"]
    return f"  dataset        {out}  ({totals['samples']} samples, {totals['shards']} shards)"


def _ended(manifest: dict[str, Any], out: str | Path) -> Result:
    """Exit code 3 when samples failed; their reasons are in the dataset."""
    totals = manifest["totals"]
    failed = totals["planned"] - totals["samples"]
    if not failed:
        return Result()
    problem = f"{failed} of {totals['planned']} planned samples failed; reasons are in"
    return Result(problem=f"{problem} {out}/metadata.", code=3)


def _estimate(config: Config, out: str) -> Result:
    """What a run would make and take; shards in ``out`` are the better basis."""
    from synthgen import jobs

    return _table(jobs.estimate(config, out))


def _table(tree: dict[str, Any]) -> Result:
    shown = {name: "unknown" if value is None else value for name, value in tree.items()}
    lines = [
        f"{name:>16}  {value}" if isinstance(value, str) else f"{name:>16}  {value:,}"
        for name, value in shown.items()
    ]
    return Result(tree, lines)


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
