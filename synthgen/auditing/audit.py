"""An audit of a finished dataset: shard by shard, resumable, beside others, ``data`` untouched.

    begin → audit_shard for every shard, in any order, anywhere → conclude

A shard's table is a pure function of its tar, the auditor and the settings, so audits that are
killed end in the same bytes. What an auditor saw is kept in the table; another audit with the
same auditor and other thresholds uses it again and looks at no image with a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthgen.auditing.auditor import Auditor
from synthgen.auditing.loading import load_auditor
from synthgen.auditing.plan import AuditPlan, audit_content
from synthgen.auditing.shard_audit import ShardAudit
from synthgen.config import AuditConfig, digest
from synthgen.dataset.audits import (
    AUDIT_SCHEMA_VERSION,
    AUDITS,
    AuditMarker,
    is_audited,
    read_audit_marker,
    summarize,
    summary_name,
)
from synthgen.dataset.listed import first_shards, listed_shards
from synthgen.dataset.manifest import read_manifest
from synthgen.progress import Progress, report
from synthgen.storage.publish import explain_disk_errors, open_storage
from synthgen.storage.seal import sealed_json

_BYTES_PER_SAMPLE = 100_000  # 100 masks of a few hundred bytes each, generously


def audit(
    out: str | Path,
    settings: AuditConfig | None = None,
    audit_id: str | None = None,
    auditor: Auditor | None = None,
    num: int | None = None,
    progress: Progress = report,
) -> dict[str, Any]:
    """Audit a finished dataset, or finish an audit that was cut off.

    Args:
        out: The dataset's folder or URL.
        settings: Auditor, comparison, thresholds; None: the defaults.
        audit_id: Name of the audit; None: the auditor's name and a hash of all settings.
        auditor: A loaded auditor in place of the one that the settings name.
        num: Audit whole shards until this many samples; None: all.
        progress: Told about samples and shards; may raise, to stop.

    Returns:
        The content of ``summary.json``.

    Raises:
        ValueError: In one line, if there is no finished dataset, a shard is not the listed one,
            the auditor is unknown or answers wrongly, or the id belongs to another audit.
    """
    plan = begin(out, settings or AuditConfig(), audit_id, auditor, num)
    for shard in plan.shards:
        audit_shard(plan, shard, auditor, progress)
    return conclude(plan)


def begin(
    out: str | Path,
    settings: AuditConfig,
    audit_id: str | None = None,
    auditor: Auditor | None = None,
    num: int | None = None,
) -> AuditPlan:
    """Claim an audit's folder, or check that the one there is of the same settings."""
    storage = open_storage(out)
    shards = listed_shards(storage)
    loaded = auditor or load_auditor(settings.auditor)
    content = audit_content(storage, settings, loaded)
    if audit_id is None:
        name = loaded.identity.get("name") if auditor else settings.auditor.name
        audit_id = AUDITS.id_for(str(name), digest(content))
    AUDITS.claim(storage, audit_id, content, AUDIT_SCHEMA_VERSION)
    chosen = first_shards(shards, num)
    stems = tuple(shard.stem for shard in chosen)
    return AuditPlan(str(out), audit_id, settings, stems, tuple(s.samples for s in chosen))


def audit_shard(
    plan: AuditPlan, shard: str, auditor: Auditor | None = None, progress: Progress = report
) -> AuditMarker:
    """Audit one shard, or find that it was; any number may do so at once.

    Returns:
        Its marker; the table that it stands for is published.
    """
    storage = open_storage(plan.out)
    listed = next(item for item in listed_shards(storage) if item.stem == shard)
    auditor = auditor or load_auditor(plan.settings.auditor)
    content = audit_content(storage, plan.settings, auditor)
    standing = read_audit_marker(storage, plan.audit_id, shard)
    if standing is not None and is_audited(storage, plan.audit_id, standing, listed.sha256):
        AUDITS.check_same(plan.audit_id, standing.settings, content)
        progress("shard", name=shard, planned=listed.samples, reused=True)
        return standing
    needed = _BYTES_PER_SAMPLE * listed.samples
    with explain_disk_errors(storage, needed, f"the audit of {shard}"):
        marker = ShardAudit(storage, plan, listed, auditor, content).run(progress)
    progress("shard", name=shard, planned=listed.samples, reused=False)
    return marker


def conclude(plan: AuditPlan) -> dict[str, Any]:
    """Publish the totals of an audit once every planned shard is done; returns them.

    Raises:
        RuntimeError: If shards are missing; they are named.
    """
    storage = open_storage(plan.out)
    listed = {item.stem: item for item in listed_shards(storage)}
    markers = {stem: read_audit_marker(storage, plan.audit_id, stem) for stem in plan.shards}
    missing = [
        stem
        for stem, marker in markers.items()
        if not is_audited(storage, plan.audit_id, marker, listed[stem].sha256)
    ]
    if missing:
        raise RuntimeError(
            f"Every shard must be audited before the audit is concluded. Got {len(missing)} "
            f"missing ({', '.join(missing[:5])}). Run the same command again."
        )
    done = [marker for marker in markers.values() if marker is not None]
    manifest = read_manifest(storage)
    dataset = manifest["config"] if manifest else ""
    summary = summarize(storage, plan.audit_id, done, dataset)
    storage.sync()
    storage.publish_bytes(sealed_json(summary), summary_name(plan.audit_id))
    return summary
