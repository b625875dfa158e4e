"""What each shard holds: prompts, keys, seeds and batches, as a pure function.

Sample i draws prompt i mod P as its (i div P)-th image. Its seed is a hash of the run's seed, the
prompt's id and the image's number, so that inserting a prompt changes no other image. The first
``num`` samples fill shards of ``shard_size``, the last of which may be short; extensions add
whole shards behind it. A balanced extension, and those after it, draw prompts at random by
weights of their classes instead (`balanced_prompt`). Keys are ``{shard:06d}{index:04d}``, so there
are at most a million shards. Nothing is enumerated: the n-th shard is computed when it is asked
for.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, overload

from synthgen.config import Config
from synthgen.dataset.photos import PhotoList, open_photos, opened_photos
from synthgen.prompts import PromptList, open_prompts
from synthgen.types import PlannedSample, Prompt, ShardSpec

MAX_SHARDS = 1_000_000
"""A shard's number has six digits, in its name and in the keys of its samples."""

MAX_DRAWS = 1000
"""After so many, the prompt drawn last is taken: none weighs a thousandth of the others."""

MAX_WORKERS = 4
"""Threads that finish samples by default: a core finishes 2 to 4 images of 512 x 512 a second."""

T = TypeVar("T")


class Computed(Sequence[T]):
    """A sequence whose items are made when they are asked for, and not kept.

    Args:
        length: Items in it.
        item: Makes the one with a number.

    >>> squares = Computed(10**9, lambda index: index**2)
    >>> squares[3], squares[-1], squares[1:3], len(squares)
    (9, 999999998000000001, (1, 4), 1000000000)
    """

    def __init__(self, length: int, item: Callable[[int], T]) -> None:
        self._indices = range(length)
        self._item = item

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        chosen = self._indices[index]
        if isinstance(chosen, range):
            return tuple(self._item(i) for i in chosen)
        return self._item(chosen)


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


def plan(config: Config) -> Sequence[ShardSpec]:
    """The shards of a configuration, in order.

    A larger ``num`` adds samples behind the others; shards that were full stay what they are.

    Raises:
        ValueError: If the prompts cannot be read, or there are too many shards.
    """
    return plan_prompts(config, prompts_of(config))


def prompts_of(config: Config) -> PromptList:
    """The prompts of a configuration, with the classes that it gives them; one of each photo.

    Raises:
        ValueError: If they cannot be read, or name a class that the configuration does not.
        OSError: If the store of a URL cannot be reached.
    """
    if config.annotation.images:
        return open_photos(config.annotation.images, *_said(config)).prompts
    if config.labeling.parts is None:
        return open_prompts(config.prompts, config.classes)
    with warnings.catch_warnings():  # parts are in no prompt, and in every image
        warnings.filterwarnings("ignore", r"\d+ prompt\(s\) have no classes")
        return open_prompts(config.prompts, None)


def photos_of(config: Config) -> PhotoList | None:
    """The photos of a configuration; None where images are drawn.

    Raises:
        ValueError: If they cannot be read.
    """
    asked = config.annotation
    return opened_photos(asked.images, *_said(config)) if asked.images else None


def _said(config: Config) -> tuple[str | None, tuple[str, ...] | None]:
    """What is said of photos beside what their sources say: captions, classes."""
    looked_for = None if config.labeling.parts else config.classes
    return config.annotation.captions, None if looked_for is None else (*looked_for,)


def plan_prompts(config: Config, prompts: Sequence[Prompt]) -> Sequence[ShardSpec]:
    """``plan`` for prompts that are already read."""
    spans = shard_spans(config)

    def spec(shard: int) -> ShardSpec:
        span = spans[shard]
        samples = []
        weights = class_weights(config, shard)
        for place, index in enumerate(span):
            image_index, which = divmod(index, len(prompts))
            if weights:  # the sample's number is no other image's of its prompt: those are earlier
                image_index, which = index, balanced_prompt(prompts, weights, config.seed, index)
            prompt = prompts[which]
            if config.labeling.parts:  # which are looked for in every image
                prompt = replace(prompt, class_names=(*(config.classes or ()),))
            seed = sample_seed(config.seed, prompt.id, image_index)
            samples.append(PlannedSample(f"{shard:06d}{place:04d}", prompt, image_index, seed))
        return ShardSpec(index=shard, samples=tuple(samples))

    return Computed(len(spans), spec)


def class_weights(config: Config, shard: int) -> Mapping[str, float]:
    """How often each class is drawn in a shard; empty where prompts come in their order.

    >>> tree = {"num": 4, "extended": 3, "dataset": {"shard_size": 2}, "balance": {1: {"a": 1}}}
    >>> config = Config.model_validate(tree)
    >>> [dict(class_weights(config, shard)) for shard in range(5)]
    [{}, {}, {}, {'a': 1.0}, {'a': 1.0}]
    """
    extended = shard - -(-config.num // config.dataset.shard_size)
    begun = [first for first in config.balance if first <= extended]
    return config.balance[max(begun)] if begun else {}


def balanced_prompt(
    prompts: Sequence[Prompt], weights: Mapping[str, float], seed: int, number: int
) -> int:
    """The prompt of a sample: each as probable as its classes weigh on average.

    Drawn by rejection, so that no list is read as a whole. A class without a weight, and a prompt
    without a class, weigh as much as the heaviest: nothing says that they are known.

    Args:
        prompts: The list.
        weights: By class, above 0.
        seed: Of the run.
        number: Of the sample.
    """
    heaviest = max(weights.values())
    for attempt in range(MAX_DRAWS):
        content = json.dumps(["balance", seed, number, attempt]).encode("ascii")
        hashed = hashlib.blake2b(content, digest_size=16).digest()
        which = int.from_bytes(hashed[:8], "big") % len(prompts)
        names = prompts[which].class_names
        found = [weights.get(name, heaviest) for name in names] or [heaviest]
        if int.from_bytes(hashed[8:], "big") / 2**64 * heaviest <= sum(found) / len(found):
            break
    return which


def shard_spans(config: Config) -> Sequence[range]:
    """Numbers of the samples of each shard.

    Raises:
        ValueError: If there are more shards than their numbers have digits for.

    >>> sizes = {"num": 5, "extended": 2, "dataset": {"shard_size": 3}}
    >>> list(shard_spans(Config.model_validate(sizes)))
    [range(0, 3), range(3, 5), range(5, 8), range(8, 11)]
    """
    num, size = config.num, config.dataset.shard_size
    first = -(-num // size)
    if first + config.extended > MAX_SHARDS:
        raise ValueError(
            f"A dataset must have at most {MAX_SHARDS:,} shards. Got {first + config.extended:,}: "
            f"{config.planned:,} samples in shards of {size:,}. Lower num, or raise "
            f"dataset.shard_size."
        )

    def span(shard: int) -> range:
        start = shard * size if shard < first else num + (shard - first) * size
        return range(start, min(start + size, num) if shard < first else start + size)

    return Computed(first + config.extended, span)


def planned_samples(config: Config) -> Sequence[int]:
    """How many samples are planned of each shard.

    Raises:
        ValueError: See ``shard_spans``.
    """
    spans = shard_spans(config)
    return Computed(len(spans), lambda shard: len(spans[shard]))


def batches(
    samples: Sequence[PlannedSample], batch_size: int
) -> Iterator[tuple[PlannedSample, ...]]:
    """Consecutive samples that are denoised together."""
    for start in range(0, len(samples), batch_size):
        yield tuple(samples[start : start + batch_size])


def samples_in_flight(workers: int, batch_size: int) -> int:
    """Most samples whose features are held at once: those being drawn, and those to be finished.

    >>> samples_in_flight(0, 4), samples_in_flight(2, 4), samples_in_flight(8, 4)
    (4, 8, 12)
    """
    return batch_size + (max(workers, batch_size) if workers else 0)
