"""What the child processes of the audit's tests run; imported once, by the server of forks."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from truth_world import scene

from synthgen.auditing.audit import audit
from synthgen.config import load_audit

SETTINGS = load_audit(
    ["auditor.name=truth_world:load_truth", "auditor.batch_size=1", "chance=false"]
)


def finish_audit(out: Path, audit_id: str, ready: Event) -> None:
    """Audit or finish the audit; ``ready`` is set once everything is imported."""
    torch.set_num_threads(1)
    scene(0)
    ready.set()
    audit(out, SETTINGS, audit_id)
