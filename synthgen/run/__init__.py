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

from synthgen.progress import report as emit
from synthgen.run.estimate import estimate
from synthgen.run.extend import extend, extension
from synthgen.run.identity import config_digest
from synthgen.run.lifecycle import (
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
from synthgen.run.merge import merge
from synthgen.run.plan import batches, plan, sample_seed
from synthgen.run.replay import replay
from synthgen.run.shard import make_shard

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
