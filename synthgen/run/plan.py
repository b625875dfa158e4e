"""What each shard holds: prompts, keys, seeds and batches, as a pure function.

Sample i draws prompt i mod P as its (i div P)-th image. Its seed is a hash of the run's seed, the
prompt's id and the image's number, so that inserting a prompt changes no other image. The first
``num`` samples fill shards of ``shard_size``, the last of which may be short; extensions add
whole shards behind it. Keys are ``{shard:06d}{index:04d}``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

from synthgen.config import Config
from synthgen.prompts import load_prompts
from synthgen.types import PlannedSample, Prompt, ShardSpec


def sample_seed(run_seed: int, prompt_id: str, image_index: int) -> int:
    """A seed of 63 bits for the n-th image of a prompt.

    >>> sample_seed(0, "a", 0)
    3434604995308849598
    >>> sample_seed(0, "a", 1) != sample_seed(0, "a", 0) != sample_seed(1, "a", 0)
    True
    """
    content = json.dumps([run_seed, prompt_id, image_index]).encode("ascii")
    hashed = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(hashed, "big") >> 1


def plan(config: Config) -> tuple[ShardSpec, ...]:
    """The shards of a configuration, in order.

    A larger ``num`` adds samples behind the others; shards that were full stay what they are.

    Raises:
        ValueError: If the prompts cannot be read.
    """
    return plan_prompts(config, load_prompts(config.prompts))


def plan_prompts(config: Config, prompts: Sequence[Prompt]) -> tuple[ShardSpec, ...]:
    """``plan`` for prompts that are already read."""
    return tuple(
        ShardSpec(
            index=shard,
            samples=tuple(
                planned_sample(config, prompts, index, f"{shard:06d}{index - span.start:04d}")
                for index in span
            ),
        )
        for shard, span in enumerate(shard_spans(config))
    )


def shard_spans(config: Config) -> list[range]:
    """Numbers of the samples of each shard.

    >>> sizes = {"num": 5, "extended": 2, "dataset": {"shard_size": 3}}
    >>> shard_spans(Config.model_validate(sizes))
    [range(0, 3), range(3, 5), range(5, 8), range(8, 11)]
    """
    size = config.dataset.shard_size
    starts = [*range(0, config.num, size), *range(config.num, config.planned, size)]
    return [range(start, stop) for start, stop in pairwise([*starts, config.planned])]


def planned_sample(
    config: Config, prompts: Sequence[Prompt], index: int, key: str
) -> PlannedSample:
    """The sample with a number and a key."""
    image_index, which = divmod(index, len(prompts))
    prompt = prompts[which]
    return PlannedSample(
        key=key,
        prompt=prompt,
        image_index=image_index,
        seed=sample_seed(config.seed, prompt.id, image_index),
    )


def batches(
    samples: Sequence[PlannedSample], batch_size: int
) -> Iterator[tuple[PlannedSample, ...]]:
    """Consecutive samples that are denoised together."""
    for start in range(0, len(samples), batch_size):
        yield tuple(samples[start : start + batch_size])
