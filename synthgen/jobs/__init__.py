"""The only glue of effects: a configuration becomes shards, and shards a dataset.

    GenerateJob · LabelJob · AuditJob · …      instances of one sharded job (`job`)
    generate · label · audit · merge · export · extend      the same as a call in this process
    status · gc · replay · estimate      looking, cleaning, repeating, guessing

Nothing here imports torch before something is drawn or judged.
"""

from synthgen.jobs.audit import AuditJob, audit
from synthgen.jobs.estimate import estimate
from synthgen.jobs.export import ExportJob, export
from synthgen.jobs.extend import extend, extension, weights_by_score
from synthgen.jobs.generate import GenerateJob, as_extended, generate
from synthgen.jobs.identity import config_digest
from synthgen.jobs.job import Done, Job
from synthgen.jobs.label import LabelJob, label
from synthgen.jobs.merge import MergeJob, merge
from synthgen.jobs.plan import plan, sample_seed
from synthgen.jobs.replay import replay
from synthgen.jobs.status import DatasetStatus, gc, status

__all__ = [
    "AuditJob",
    "DatasetStatus",
    "Done",
    "ExportJob",
    "GenerateJob",
    "Job",
    "LabelJob",
    "MergeJob",
    "as_extended",
    "audit",
    "config_digest",
    "estimate",
    "export",
    "extend",
    "extension",
    "gc",
    "generate",
    "label",
    "merge",
    "plan",
    "replay",
    "sample_seed",
    "status",
    "weights_by_score",
]
