"""What each shard holds: prompts, keys, seeds and batches, as a pure function.

Sample i draws prompt i mod P as its (i div P)-th image, in shard i div shard_size. Its seed is a
hash of the run's seed, the prompt's id and the image's number, so that inserting a prompt
changes no other image. Keys are ``{shard:06d}{index:04d}``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

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
    size = config.dataset.shard_size
    return tuple(
        ShardSpec(
            index=start // size,
            samples=tuple(
                planned_sample(config, prompts, index)
                for index in range(start, min(start + size, config.num))
            ),
        )
        for start in range(0, config.num, size)
    )


def planned_sample(config: Config, prompts: Sequence[Prompt], index: int) -> PlannedSample:
    """The sample at a position of the dataset."""
    shard, position = divmod(index, config.dataset.shard_size)
    image_index, which = divmod(index, len(prompts))
    prompt = prompts[which]
    return PlannedSample(
        key=f"{shard:06d}{position:04d}",
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
