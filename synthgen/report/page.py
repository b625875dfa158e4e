"""The report: everything one dataset has to say, as one HTML file that needs nothing else.

Shards are streamed once; only the samples on the page are decoded. The page may load nothing
(Content-Security-Policy: no network, our own script and style by their hashes), and all text of
the dataset is text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from synthgen import __version__
from synthgen.dataset.manifest import (
    MANIFEST,
    check_description,
    marker_name,
    preview_name,
    read_manifest,
    read_marker,
    shard_stem,
)
from synthgen.dataset.metadata import read_rows
from synthgen.dataset.previews import preview_keys, shard_previews
from synthgen.dataset.shards import BrokenShardError, Span, read_span, scan, spans
from synthgen.report.audits import Audit, existing_audits, pick_audit
from synthgen.report.charts import dataset_charts
from synthgen.report.labels import Labels
from synthgen.report.overview import Overview, class_table
from synthgen.report.samples import BUDGET, Shown, choose, show
from synthgen.report.serve import PAGE, SCRIPT, STYLE, asset, content_security_policy, remember
from synthgen.storage.local import write_file
from synthgen.storage.publish import Storage, explain_disk_errors, open_storage
from synthgen.storage.redaction import redact_tree
from synthgen.storage.seal import check_vouched, hash_file, open_vouched
from synthgen.storage.untrusted import one_line

EXTREMES = 20
_COUNTED = ("json", "mask.png", "sem.png")
"""Members that are read of samples that are only counted."""

_MEANS = {
    "hungarian": "one-to-one IoU",
    "color_baseline_hungarian": "one-to-one IoU, color baseline",
    "boundary_f": "boundary F",
    "coverage": "coverage",
    "num_masks": "number of masks",
    "color_baseline_num_masks": "number of masks, color baseline",
    "num_annotations": "number of auditor masks",
}
_HIGHLIGHTS = {
    "Image height": "drawn.height",
    "Image width": "drawn.width",
    "Denoising steps": "drawn.num_inference_steps",
    "Guidance": "drawn.guidance_scale",
    "Scheduler": "drawn.scheduler",
    "Layers": "settings.capture.layers",
    "Method": "settings.segmentation.method",
    "Components per head": "settings.segmentation.features.components",
    "k": "settings.segmentation.clusters.ks",
    "Merge at IoU": "settings.segmentation.masks.merge_iou",
    "Seed": "settings.seed",
}


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
            write_file(out, content)
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
    rows = {shard_stem(row["name"]): row for row in manifest["shards"]}
    hashes = {shard: str(row["sha256"]) for shard, row in rows.items() if not row["skipped"]}
    overview, previewed = _read_tables(storage, list(rows))
    labels = Labels(storage, label_id, hashes)
    audits = existing_audits(storage, hashes)
    audit = pick_audit(audits, audit_id)
    keys = [key for shard in rows for key in overview.keys[shard]]
    top_5 = audit.metrics.get("top_5", {}) if audit else {}
    chosen, worst, best = choose(keys, previewed, top_5, num, EXTREMES)
    budget = BUDGET // max(len(chosen), 1)
    shown: list[Shown] = []
    for shard in rows:
        sha256, wanted = hashes.get(shard, ""), {*chosen} & {*overview.keys[shard]}
        shown += _read_shard(storage, shard, sha256, overview, wanted, audit, labels, budget)
    try:
        identity = redact_tree(json.loads(storage.read("identity.json") or b"{}"))
        return _template().render(
            policy=content_security_policy(),
            style=Markup(asset(STYLE)),  # noqa: S704  (our own files)
            script=Markup(asset(SCRIPT)),  # noqa: S704
            version=__version__,
            name=Path(storage.root).name,
            manifest=redact_tree(manifest),
            totals=manifest["totals"],
            identity=identity,
            highlights=_highlights(identity),
            overview=overview,
            audit=audit,
            audit_means=_means(audit) if audit else {},
            audit_asked=audit_id is not None,
            other_audits=[other for other in audits if other is not audit],
            top_5=top_5,
            classes=class_table(labels.statistics or overview.statistics),
            label_id=labels.label_id,
            charts=dataset_charts(overview, audit),
            shown=shown,
            position={sample.key: index for index, sample in enumerate(shown)},
            worst=worst,
            best=best,
            pretty=lambda tree: json.dumps(tree, indent=1, ensure_ascii=False),
        )
    except (jinja2.TemplateError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"manifest.json and identity.json must say all that a report shows. Got "
            f"{type(error).__name__}: {one_line(error)}; see 'synthgen verify'."
        ) from error


def _read_tables(storage: Storage, shards: Sequence[str]) -> tuple[Overview, set[str]]:
    """What the tables say of all samples, and the keys of those with a preview."""
    overview, previewed = Overview(), set[str]()
    for shard in shards:
        marker, name = read_marker(storage, shard), preview_name(shard)
        if marker is None:
            raise ValueError(
                f"{marker_name(shard)} must be readable, for it vouches for what the page shows. "
                f"Got none that is; see 'synthgen verify'."
            )
        overview.add_rows(shard, read_rows(storage, shard, marker))
        with _named(name):
            found = hash_file(storage, name) if marker.previews_sha256 else None
            check_vouched(name, found or "", marker.previews_sha256, marker_name(shard))
            previewed |= set(preview_keys(storage, shard))
    return overview, previewed


def _read_shard(
    storage: Storage,
    shard: str,
    sha256: str,
    overview: Overview,
    wanted: set[str],
    audit: Audit | None,
    labels: Labels,
    budget: int,
) -> list[Shown]:
    """Count all samples of a shard, and prepare those that are shown."""
    name = f"data/{shard}.tar"
    if storage.size(name) is None:
        if overview.keys[shard]:
            raise ValueError(f"{name} must exist. Got no such file; see 'synthgen verify'.")
        return []
    kept = {}
    with _named(name), open_vouched(storage, name, sha256, MANIFEST) as stream:
        for span in spans(scan(stream)):
            if span.key not in wanted:
                counted = {n: m for n, m in span.members.items() if n in _COUNTED}
                span = Span(span.key, span.offset, span.size, counted)
            members = read_span(stream, span)
            sample = labels.read_sample(span.key, members)
            overview.add_sample(sample)
            if span.key in wanted:
                kept[span.key] = (members, sample)
    segments = {key: sample.info["segments"] for key, (_, sample) in kept.items()}
    ious = audit.ious(shard, segments) if audit else {}
    previews = dict(shard_previews(storage, shard, wanted))
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


def _means(audit: Audit) -> dict[str, str]:
    """Means in words and digits: those that we know, then others but for the charts' Top-n."""
    others = [name for name in audit.metrics if name not in _MEANS and "top_" not in name]
    titles = {**_MEANS, **{name: name.replace("_", " ") for name in sorted(others)}}
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
    found = {}
    for name, path in _HIGHLIGHTS.items():
        value: Any = {**content, "drawn": drawn}
        for part in path.split("."):
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
