"""The only glue of effects: a configuration becomes shards, and shards a dataset.

    plan(config) → ShardSpec …        what each shard holds; a pure function
    initialize → make_shard … → finalize      each idempotent; generate does all three
    status · replay · gc · estimate   looking, repeating, cleaning, guessing
    extend                            more shards behind a finished dataset (`extend`)
    merge                             several datasets into one (`merge`, `merge_plan`)
    label                             labels beside a finished dataset, by replaying it (`label`)

A shard is a pure function of (configuration, index), staged, verified and published whole, its
marker last. Nothing here knows who calls: a loop, threads, a Prefect flow, Ray.
"""

from synthgen.jobs.estimate import estimate
from synthgen.jobs.extend import extend, extension
from synthgen.jobs.identity import config_digest
from synthgen.jobs.lifecycle import (
    DatasetStatus,
    as_extended,
    finalize,
    gc,
    generate,
    initialize,
    missing,
    rehearse,
    status,
)
from synthgen.jobs.merge import merge
from synthgen.jobs.plan import batches, plan, sample_seed
from synthgen.jobs.replay import replay
from synthgen.jobs.shard import make_shard
from synthgen.progress import report as emit

__all__ = [
    "DatasetStatus",
    "as_extended",
    "batches",
    "config_digest",
    "emit",
    "estimate",
    "extend",
    "extension",
    "finalize",
    "gc",
    "generate",
    "initialize",
    "make_shard",
    "merge",
    "missing",
    "plan",
    "rehearse",
    "replay",
    "sample_seed",
    "status",
]
