"""The report: everything one dataset has to say, as one HTML file that needs nothing else.

Shards are streamed once; only the samples on the page are decoded. The page may load nothing
(Content-Security-Policy: no network, our own script and style by their hashes), and all text of
the dataset is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from synthgen import __version__
from synthgen.config import TOPS
from synthgen.dataset.manifest import (
    MANIFEST,
    TAR_NAME,
    check_description,
    marker_name,
    preview_name,
    read_manifest,
    read_marker,
)
from synthgen.dataset.metadata import read_rows
from synthgen.dataset.previews import Preview, preview_keys, shard_previews
from synthgen.dataset.shards import BrokenShardError, Span, read_span, scan, spans
from synthgen.report.audits import (
    Audit,
    auditor_ious,
    pick_audit,
    read_audit,
    standing_audits,
)
from synthgen.report.charts import Chart, grouped_chart, histogram_chart
from synthgen.report.labels import Labels, class_table, open_labels
from synthgen.report.overview import SHARE_EDGES, Histogram, Overview, read_sample
from synthgen.report.policy import SCRIPT, STYLE, asset, content_security_policy
from synthgen.report.samples import BUDGET, Shown, choose, show
from synthgen.report.serve import PAGE, remember
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage
from synthgen.storage.redaction import redact_tree
from synthgen.storage.seal import check_vouched, hash_file, open_vouched
from synthgen.storage.untrusted import one_line

EXTREMES = 20
_RIVALS = {"our masks": "", "chance (RGB+XY)": "chance_", "other images' masks": "others_"}
"""Whose Top-n is shown, and how their columns begin."""

_MEANS = {
    "hungarian": "one-to-one IoU",
    "chance_hungarian": "one-to-one IoU, chance",
    "boundary_f": "boundary F",
    "coverage": "coverage",
    "num_masks": "number of masks",
    "chance_num_masks": "number of masks, chance",
    "num_annotations": "number of auditor masks",
}
_PER_K = re.compile(r"top_5_k([0-9]+)")

_DECADES = {0.0001: "0.01 %", 0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 1.0: "100 %"}
_SHARES = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
_PERCENT = {0.0: "0 %", 0.25: "25 %", 0.5: "50 %", 0.75: "75 %", 1.0: "100 %"}


def write_report(
    url: str | Path,
    audit: str | None = None,
    num: int = 60,
    out: Path | None = None,
    labels: str | None = None,
) -> Path | str:
    """Write the report of a finished dataset.

    Args:
        url: The dataset's folder.
        audit: Id of the audit to show; None: the one finished last, where there is one.
        num: Samples in the contact sheet and the explorer.
        out: Local file to write; None: ``report/index.html`` in the dataset.
        labels: Id of labels beside the dataset to show; None: those in its tars, if any.

    Returns:
        Where it lies.

    Raises:
        ValueError: If there is no finished dataset, no such audit or labels, or a shard is
            broken.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1. Got {num}.")
    storage = open_storage(url)
    content = render_report(storage, audit, num, labels).encode("utf-8")
    if out is not None:
        with explain_disk_errors(open_storage(out.parent), len(content), "the report"):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(content)
        return out
    storage.publish_bytes(content, PAGE)
    remember(storage.root, content)
    return storage.local_root / PAGE if storage.local_root else storage.path(PAGE)


def render_report(
    storage: Storage, audit_id: str | None, num: int, label_id: str | None = None
) -> str:
    """The page's HTML; see ``write_report``."""
    manifest = read_manifest(storage)
    if manifest is None:
        raise ValueError(
            f"A report needs a finished dataset. Got no manifest.json in {storage.root}; finish "
            f"it with 'synthgen generate'."
        )
    check_description(storage, manifest)
    shards = list(_shard_names(manifest))
    overview, previewed = _survey(storage, shards)
    hashes = _tar_hashes(manifest)
    labels = open_labels(storage, label_id, hashes)
    audits = standing_audits(storage, hashes)
    picked = pick_audit(audits, audit_id)
    audit = read_audit(storage, picked) if picked else None
    keys = [key for shard in shards for key in overview.keys[shard]]
    scores = audit.of("top_5") if audit else {}
    chosen, worst, best = choose(keys, previewed, scores, num, EXTREMES)
    budget = BUDGET // max(len(chosen), 1)
    shown = [
        sample
        for shard in shards
        for sample in _read_shard(
            storage, shard, hashes.get(shard, ""), overview, set(chosen), audit, labels, budget
        )
    ]
    try:
        context = _context(storage, manifest, overview, audit, shown, (worst, best))
        context["classes"] = class_table(
            overview.statistics if labels.reader is None else labels.statistics
        )
        context["label_id"] = labels.label_id
        others = [standing for standing in audits if standing is not picked]
        return _template().render(**context, other_audits=others, audit_asked=audit_id is not None)
    except (jinja2.TemplateError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"manifest.json and identity.json must say all that a report shows. Got "
            f"{type(error).__name__}: {one_line(error)}; see 'synthgen verify'."
        ) from error


def _survey(storage: Storage, shards: Sequence[str]) -> tuple[Overview, set[str]]:
    """What the tables say of all samples, and the keys of those with a preview."""
    overview, previewed = Overview(), set[str]()
    for shard in shards:
        marker = read_marker(storage, shard)
        if marker is None:
            raise ValueError(
                f"{marker_name(shard)} must be readable, for it vouches for what the page shows. "
                f"Got none that is; see 'synthgen verify'."
            )
        overview.add_rows(shard, read_rows(storage, shard, marker))
        with _named(preview_name(shard)):
            found = hash_file(storage, preview_name(shard)) if marker.previews_sha256 else None
            check_vouched(
                preview_name(shard), found or "", marker.previews_sha256, marker_name(shard)
            )
            previewed |= set(preview_keys(storage, shard))
    return overview, previewed


def _shard_names(manifest: Mapping[str, Any]) -> Iterator[str]:
    for row in manifest["shards"]:
        match = TAR_NAME.fullmatch(str(row["name"]))
        if not match:
            raise ValueError(
                f"A shard must be named data/train-000000.tar. Got {row['name']!r:.60}."
            )
        yield f"train-{match[1]}"


def _tar_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Tar hash by file stem of the shards that have samples."""
    rows = zip(_shard_names(manifest), manifest["shards"], strict=True)
    return {shard: str(row["sha256"]) for shard, row in rows if not row["skipped"]}


def _read_shard(
    storage: Storage,
    shard: str,
    sha256: str,
    overview: Overview,
    chosen: set[str],
    audit: Audit | None,
    labels: Labels,
    budget: int,
) -> list[Shown]:
    """Count all samples of a shard, and prepare those that are shown."""
    name = f"data/{shard}.tar"
    wanted = chosen & set(overview.keys[shard])
    if storage.size(name) is None:
        if overview.keys[shard]:
            raise ValueError(f"{name} must exist. Got no such file; see 'synthgen verify'.")
        return []
    kept = {}
    with _named(name), open_vouched(storage, name, sha256, MANIFEST) as stream:
        for span in spans(scan(stream)):
            members = read_span(stream, span if span.key in wanted else _without_image(span))
            read = read_sample(span.key, members, labels)
            overview.add_sample(read.info, read.coverage)
            if span.key in wanted:
                kept[span.key] = (members, read)
    segments = {key: read.info["segments"] for key, (_, read) in kept.items()}
    ious = auditor_ious(storage, audit, shard, segments) if audit else {}
    previews: dict[str, Preview] = dict(shard_previews(storage, shard, wanted))
    return [
        show(key, *content, labels.names, previews.get(key), ious.get(key), budget)
        for key, content in kept.items()
    ]


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which file is broken."""
    try:
        yield
    except BrokenShardError as error:
        raise ValueError(f"{name} must be whole. Got {error}; see 'synthgen verify'.") from None


def _without_image(span: Span) -> Span:
    """The part of a sample that is only counted."""
    kept = {"json", "mask.png", "sem.png"} & span.members.keys()
    return Span(span.key, span.offset, span.size, {name: span.members[name] for name in kept})


def _context(
    storage: Storage,
    manifest: Mapping[str, Any],
    overview: Overview,
    audit: Audit | None,
    shown: list[Shown],
    extremes: tuple[list[str], list[str]],
) -> dict[str, Any]:
    """What the template needs."""
    identity = redact_tree(json.loads(storage.read("identity.json") or b"{}"))
    verdicts = dict(zip(audit.keys, audit.reasons, strict=True)) if audit else {}
    return {
        "policy": content_security_policy(),
        "style": Markup(asset(STYLE)),  # noqa: S704  (our own files)
        "script": Markup(asset(SCRIPT)),  # noqa: S704
        "version": __version__,
        "name": Path(storage.root).name,
        "manifest": redact_tree(manifest),
        "totals": manifest["totals"],
        "identity": identity,
        "highlights": _highlights(identity),
        "overview": overview,
        "audit": audit,
        "top_5": audit.of("top_5") if audit else {},
        "verdicts": verdicts,
        "audit_means": _means(audit) if audit else {},
        "charts": _charts(overview, audit),
        "shown": shown,
        "position": {sample.key: index for index, sample in enumerate(shown)},
        "by_key": {sample.key: sample for sample in shown},
        "worst": extremes[0],
        "best": extremes[1],
        "pretty": lambda tree: json.dumps(tree, indent=1, ensure_ascii=False),
    }


def _charts(overview: Overview, audit: Audit | None) -> list[Chart]:
    charts = [*_audit_charts(audit)] if audit else []
    counts = {float(edge): f"{edge:.0f}" for edge in overview.num_masks.edges[::5]}
    seconds = {0.01: "10 ms", 0.1: "0.1 s", 1.0: "1 s", 10.0: "10 s", 100.0: "100 s"}
    return [
        *charts,
        _counted("Masks per image", "masks", "images", overview.num_masks, counts),
        _counted(
            "Coverage", "share of the image in any mask", "images", overview.coverage, _PERCENT
        ),
        _counted("Mask areas", "share of the image (log)", "masks", overview.areas, _DECADES),
        _counted("Time per sample", "seconds (log)", "samples", overview.seconds, seconds),
    ]


def _counted(
    title: str, x_label: str, unit: str, histogram: Histogram, ticks: Mapping[float, str]
) -> Chart:
    return histogram_chart(title, x_label, unit, {unit: histogram}, ticks)


def _audit_charts(audit: Audit) -> Iterator[Chart]:
    kinds = {
        name: prefix
        for name, prefix in _RIVALS.items()
        if any(audit.mean(f"{prefix}top_{n}") is not None for n in TOPS)
    }
    groups = {
        f"Top-{n}": [audit.mean(f"{prefix}top_{n}") for prefix in kinds.values()] for n in TOPS
    }
    yield grouped_chart("Top-n (eq. 4)", "largest masks of the auditor", groups, tuple(kinds))
    per_k = {int(match[1]): name for name in audit.metrics if (match := _PER_K.fullmatch(name))}
    alone = {f"k = {k}": [audit.mean(per_k[k])] for k in sorted(per_k)}
    if any(value is not None for (value,) in alone.values()):
        yield grouped_chart("Top-5 of each k alone", "number of clusters", alone, ("our masks",))
    series: dict[str, Histogram] = {}
    for name, prefix in kinds.items():
        histogram = Histogram(SHARE_EDGES)
        histogram.add(audit.of(f"{prefix}top_5").values())
        series |= {name: histogram} if histogram.total else {}
    if series:
        yield histogram_chart("Top-5 per sample", "mean best IoU", "samples", series, _SHARES)


def _means(audit: Audit) -> dict[str, str]:
    """Means in words and digits: those that we know, then others but for the charts' Top-n."""
    others = [name for name in audit.metrics if name not in _MEANS and "top_" not in name]
    titles = {**_MEANS, **{name: name.replace("_", " ") for name in others}}
    values = {title: audit.mean(name) for name, title in titles.items()}
    return {
        title: f"{value:.1f}" if "number" in title else f"{value:.3f}"
        for title, value in values.items()
        if value is not None
    }


def _highlights(identity: Mapping[str, Any]) -> dict[str, str]:
    """The settings that people ask for first, by name; what is missing is left out."""
    content = identity.get("content", {})
    asked = content.get("settings", {}).get("generation", {})
    drawn = {**content.get("card", {}), **{n: v for n, v in asked.items() if v is not None}}
    paths = {
        "Image height": ("drawn", "height"),
        "Image width": ("drawn", "width"),
        "Denoising steps": ("drawn", "num_inference_steps"),
        "Guidance": ("drawn", "guidance_scale"),
        "Scheduler": ("drawn", "scheduler"),
        "Layers": ("settings", "capture", "layers"),
        "Method": ("settings", "segmentation", "method"),
        "Components per head": ("settings", "segmentation", "features", "components"),
        "k": ("settings", "segmentation", "clusters", "ks"),
        "Merge at IoU": ("settings", "segmentation", "masks", "merge_iou"),
        "Seed": ("settings", "seed"),
    }
    found = {}
    for name, path in paths.items():
        value: Any = {**content, "drawn": drawn}
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            found[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("synthgen.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index.html.j2")
