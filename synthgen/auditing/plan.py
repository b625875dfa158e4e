"""What an audit is: its plan, and all that determines its tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from synthgen.auditing.auditor import Auditor
from synthgen.config import AuditConfig
from synthgen.dataset.masks import segmentation_settings
from synthgen.storage.publish import Storage
from synthgen.storage.redaction import redact_tree

AUDIT_VERSION = 1
"""Raised whenever a change of ours changes the metrics."""


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """An audit that was begun: what a worker needs to audit a shard.

    Args:
        out: The dataset's folder or URL.
        audit_id: Its name in ``audit/``.
        settings: Auditor, comparison, thresholds.
        shards: File stems of the shards to audit.
        samples: Samples in each of them.
    """

    out: str
    audit_id: str
    settings: AuditConfig
    shards: tuple[str, ...]
    samples: tuple[int, ...]


def audit_content(storage: Storage, settings: AuditConfig, auditor: Auditor) -> dict[str, Any]:
    """All that determines the tables of an audit but the tars: what its digest covers."""
    segmentation = segmentation_settings(storage)
    content = {
        "annotations": {"auditor": dict(auditor.identity), "batch": settings.auditor.batch_size},
        "comparison": {
            **settings.model_dump(mode="json", include={"chance", "chance_resolution", "others"}),
            "segmentation": segmentation.model_dump(mode="json"),
            "version": AUDIT_VERSION,
        },
        "verdict": settings.verdict.model_dump(mode="json"),
    }
    return dict(redact_tree(json.loads(json.dumps(content))))
