"""Read a dataset back: ``open_dataset`` for users, ``decode_mask`` for plain webdataset.

Shards are untrusted: only plain files on known file systems are opened, only the members of the
format are decoded, and none of them by pickle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from jaxtyping import UInt8

from synthgen.dataset.audits import read_verdicts
from synthgen.dataset.labels import LabelReader, check_ids, class_names, with_labels
from synthgen.dataset.manifest import TAR_NAME, metadata_name, read_manifest, shard_stem
from synthgen.dataset.metadata import Place, parse_places, read_rows
from synthgen.dataset.records import IMAGE_OPTIONS, decode_image, decode_sample
from synthgen.dataset.shards import (
    MAX_SAMPLE,
    BrokenShardError,
    check_end,
    parse_span,
    read_span,
    scan,
    spans,
)
from synthgen.dataset.split import assign_split, parse_split, split_names
from synthgen.storage.publish import Storage, open_storage
from synthgen.storage.untrusted import one_line
from synthgen.types import ByteStream, Verdict

SUFFIXES = {"json", "mask.png", "sem.png", "txt", *IMAGE_OPTIONS}


def decode_mask(key: str, data: bytes) -> UInt8[np.ndarray, "height width"] | None:
    """A webdataset decoder for id maps; place it before the image specification.

    webdataset's own image decoders turn ``mask.png`` and ``sem.png`` into three channels (and a
    palette into wrong ids): ``wds.WebDataset(tars).decode(decode_mask, "rgb8")``.

    Args:
        key: The member's suffix.
        data: Its content.

    Returns:
        The ids, or None for any other member, so that the next decoder sees it.
    """
    return decode_image(data, "L") if key.endswith(("mask.png", "sem.png")) else None


def open_dataset(
    url: str | Path,
    *,
    masks: bool = True,
    shuffle: int = 0,
    seed: int = 0,
    audited: str | None = None,
    keep_only: bool = True,
    labels: str | None = None,
    version: int | None = None,
    check: bool | None = None,
    split: str | None = None,
    shares: str = "0.9/0.1",
    transform: Callable[[dict[str, Any]], Any] | None = None,
) -> SampleStream:
    """An iterable over the samples of a dataset, for loops and for a PyTorch DataLoader.

    Each sample is a dictionary: ``key``, ``image`` (uint8, height width 3), ``mask`` (uint8 ids,
    height width), ``masks`` (bool, mask height width; id i is row i - 1), ``json``, ``prompt``;
    where it is labeled also ``semantic`` (uint8 class ids, height width), see `dataset.labels`.
    Images have different numbers of masks, so pass ``batch_size=None`` to the DataLoader, or
    your own ``collate_fn``, or a ``transform`` to tensors of one size.

    Shards are split over nodes (``torch.distributed``, or RANK and WORLD_SIZE) and workers, so
    make at least as many; one with more shards than another yields more samples. Shuffling gives
    every epoch another order, with workers only if they persist: ``persistent_workers=True``.
    Its ``len`` is the number of samples that all nodes and workers see together.

    Args:
        url: A finalized dataset's folder, or one tar.
        masks: Also decode the overlapping masks.
        shuffle: Samples held back for shuffling; also shuffles the shards. 0 keeps the order.
        seed: Of the shuffling.
        audited: Id of an audit; samples then also have ``verdict`` (keep, reason, metrics).
        keep_only: With ``audited``, leave out the samples that it rejects.
        labels: Id of labels that stand beside the dataset; None: those in its tars, if any.
        version: Of a dataset that is extended: the samples of its n-th manifest, whatever came
            since; None: the newest. A larger ``num`` fills the last shard up, whose old version
            is gone then.
        check: Compare the bytes of each sample with their hash in its row of the metadata, and
            say which one is damaged; costs about a hundredth of the time. None: wherever there
            are hashes (a lone tar has none, nor have datasets of older releases).
        split: ``train``, ``val`` or ``test``: only the samples whose prompt is on that side, as in
            'synthgen export --split'; None: all.
        shares: With ``split``, of train, val and test.
        transform: Called with every sample, in the worker, last of all; what it returns is what
            you get.

    Raises:
        ValueError: If there is no such dataset, audit or labels (those there are named), or the
            URL's scheme is not known; when it is read, if a shard or a sample is damaged.
    """
    storage, shards = _locate(url, version)
    verdicts = None if audited is None else _verdicts(storage, audited, version)
    reader = None
    if labels is not None:
        reader = LabelReader(storage, labels, _tar_hashes(storage, "labels", version))
    side = None if split is None else Side(split, shares)
    opener = _Opener(storage, dict(shards), check)
    count = _Counter(opener, version, verdicts, keep_only, side)
    stages = [
        wds.SimpleShardList([name for name, _ in shards]),
        *([wds.detshuffle(bufsize=len(shards), initial=len(shards), seed=seed)] * bool(shuffle)),
        wds.split_by_node,
        wds.split_by_worker,
        opener,
        *([] if side is None else [side]),
        _Decoder(masks, verdicts, keep_only, reader, class_names(storage)),
        *([wds.detshuffle(bufsize=shuffle, initial=shuffle, seed=seed)] * bool(shuffle)),
        *([] if transform is None else [_Transform(transform)]),
    ]
    return SampleStream(count, *stages)


class SampleStream(wds.DataPipeline):  # type: ignore[misc]
    """Samples of a dataset, as `open_dataset` gives them."""

    def __init__(self, count: Callable[[], int], *stages: Any) -> None:
        super().__init__(*stages)
        self._count = count
        self._length: int | None = None

    def __len__(self) -> int:
        """Samples in one pass, over all nodes and workers; found out when first asked for."""
        if self._length is None:
            try:
                self._length = self._count()
            except (OSError, ValueError) as error:  # list() asks, and can do without
                raise TypeError(f"the samples cannot be counted: {error}") from None
        return self._length


class Side:
    """One side of a split by prompts; a stage that lets its samples pass.

    Raises:
        ValueError: If the shares have no such side.
    """

    def __init__(self, name: str, shares: str) -> None:
        self.name, self.shares = name, parse_split(shares)
        names = split_names(self.shares)
        if name not in names:
            raise ValueError(
                f"split must be one of {', '.join(names)} with the shares {shares}. Got "
                f"{name!r:.40}."
            )

    def holds(self, prompt: str) -> bool:
        """Whether the images of a prompt are on this side."""
        return assign_split(prompt, self.shares) == self.name

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return (x for x in samples if self.holds(x.get("txt", b"").decode("utf-8", "replace")))


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counts the samples of a pass: by manifest, verdicts and rows, or in a lone tar."""

    opener: _Opener
    version: int | None
    verdicts: Mapping[str, Verdict] | None
    keep_only: bool
    side: Side | None

    def __call__(self) -> int:
        verdicts, side, storage = self.verdicts, self.side, self.opener.storage
        if verdicts is not None and side is None:
            return sum(item.keep or not self.keep_only for item in verdicts.values())
        if (manifest := read_manifest(storage, self.version)) is None:
            found = self.opener({"url": name} for name in self.opener.sizes)
            return sum(1 for _ in (found if side is None else side(found)))
        if side is None:
            return sum(int(row["samples"]) for row in manifest["shards"])
        rows = (row for name in self.opener.sizes for row in read_rows(storage, shard_stem(name)))
        return sum(
            row.status == "ok"
            and side.holds(row.prompt)
            and (verdicts is None or verdicts[row.key].keep or not self.keep_only)
            for row in rows
        )


class _Opener:
    """Reads the members of samples through our storage and `scan`.

    webdataset's own opener would run ``pipe:`` URLs in a shell; its reader would unpack compressed
    tars and fill up sparse members, gigabytes from kilobytes.
    """

    def __init__(self, storage: Storage, sizes: dict[str, int], check: bool | None) -> None:
        self.storage = storage
        self.sizes = sizes
        self.check = check

    def __call__(self, sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for source in sources:
            storage, name = self.storage.in_this_process(), source["url"]
            size = storage.size(name)
            if size != self.sizes[name]:
                raise ValueError(
                    f"{storage.path(name)} must have {self.sizes[name]} bytes. Got {size}; "
                    f"see 'synthgen verify'."
                )
            places = [] if self.check is False else _places(storage, name)
            if self.check and not places:
                raise ValueError(
                    f"With check=True, {storage.path(name)} must have rows with hashes in the "
                    f"metadata beside it. Got none; leave check out, or see 'synthgen verify'."
                )
            with storage.open(name) as stream:
                try:
                    for sample in _checked(stream, name, places) if places else _unchecked(stream):
                        yield {**sample, "__url__": storage.path(name)}
                except BrokenShardError as error:
                    raise ValueError(
                        f"{storage.path(name)} must be whole. Got {error}; see 'synthgen verify'."
                    ) from None


def _places(storage: Storage, tar: str) -> list[Place]:
    """Places of a tar's samples in order; none where there are no hashes."""
    content = storage.read(metadata_name(shard_stem(tar))) if TAR_NAME.fullmatch(tar) else None
    if content is None:
        return []
    try:
        places = parse_places(content)
    except ValueError as error:
        name = metadata_name(shard_stem(tar))
        raise ValueError(f"{name}: {error} See 'synthgen verify', or pass check=False.") from None
    return places if all(place.sha256 for place in places) else []


def _unchecked(stream: ByteStream) -> Iterator[dict[str, Any]]:
    for span in spans(scan(stream)):
        yield {"__key__": span.key, **read_span(stream, span)}


def _checked(stream: ByteStream, tar: str, places: Sequence[Place]) -> Iterator[dict[str, Any]]:
    """Samples by their rows, so that damage to a header, too, is that of one sample."""
    end = 0
    for key, offset, size, sha256 in places:
        stream.seek(end)
        block = stream.read(size) if 0 < size <= MAX_SAMPLE else b""
        if offset != end or hashlib.sha256(block).hexdigest() != sha256:
            raise ValueError(
                f"Sample {one_line(key, 40)} of {tar} must be the one that its row in "
                f"{metadata_name(shard_stem(tar))} has the hash of. Got another: one of the two "
                f"is damaged; see 'synthgen verify'."
            )
        yield {"__key__": key, **parse_span(block, key)}
        end += size
    check_end(stream, end)


class _Decoder:
    """Turns raw members into the dictionaries of ``open_dataset``."""

    def __init__(
        self,
        masks: bool,
        verdicts: dict[str, Verdict] | None,
        keep_only: bool,
        labels: LabelReader | None,
        class_names: dict[int, str],
    ) -> None:
        self.masks = masks
        self.verdicts = verdicts
        self.keep_only = keep_only
        self.labels = labels
        self.class_names = class_names

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            key = sample["__key__"]
            verdict = None if self.verdicts is None else self.verdicts[key]
            if verdict is not None and self.keep_only and not verdict.keep:
                continue
            members = {name: sample[name] for name in SUFFIXES & sample.keys()}
            try:
                decoded = decode_sample(key, members, self.masks)
                if self.labels is not None:
                    decoded = with_labels(decoded, self.labels.members(key))
                if "semantic" in decoded and self.class_names:  # a lone tar has no classes.json
                    check_ids(key, decoded["semantic"], self.class_names)
            except ValueError as error:
                raise ValueError(f"{sample['__url__']}: {error}") from None
            yield decoded if verdict is None else {**decoded, "verdict": verdict}


class _Transform:
    """Applies a user's function; webdataset's own ``map`` would add keys to what it returns."""

    def __init__(self, function: Callable[[dict[str, Any]], Any]) -> None:
        self.function = function

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[Any]:
        return map(self.function, samples)


def _verdicts(storage: Storage, audited: str, version: int | None) -> dict[str, Verdict]:
    """Verdicts of every sample by key, which is unique over all shards."""
    found = read_verdicts(storage, audited, _tar_hashes(storage, "audited", version))
    return {key: verdict for verdicts in found.values() for key, verdict in verdicts.items()}


def _tar_hashes(storage: Storage, asked: str, version: int | None) -> dict[str, str]:
    """File stem to tar hash of every shard that has samples."""
    manifest = read_manifest(storage, version)
    if manifest is None:
        raise ValueError(
            f"{asked} must be given with a finished dataset's folder. Got {storage.root}."
        )
    return {
        shard_stem(row["name"]): row["sha256"] for row in manifest["shards"] if not row["skipped"]
    }


def _locate(url: str | Path, version: int | None) -> tuple[Storage, list[tuple[str, int]]]:
    """The storage, and name and size of every shard that has samples."""
    storage = open_storage(url)
    if storage.root.endswith(".tar") and not storage.fs.isdir(storage.root):
        whole = storage.root if storage.local_root is None else os.path.realpath(storage.root)
        folder, _, name = whole.rpartition("/")
        storage = Storage(storage.fs, folder)
        size = storage.size(name)
        if size is None:
            raise ValueError(f"A shard must be an existing tar. Got {str(url)!r}.")
        return storage, [(name, size)]
    manifest = read_manifest(storage, version)
    if manifest is None:
        raise ValueError(
            f"A dataset must have a manifest.json. Got none in {str(url)!r}; "
            f"finish it with 'synthgen generate', or open one of its tars."
        )
    shards = [(row["name"], row["bytes"]) for row in manifest["shards"] if not row["skipped"]]
    if not shards:
        raise ValueError(f"A dataset must have at least one sample. Got none in {str(url)!r}.")
    return storage, shards
