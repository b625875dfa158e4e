"""Read a dataset back: ``open_dataset`` for users, ``decode_mask`` for plain webdataset.

Shards are untrusted: only plain files on known file systems are opened, only the members of the
format are decoded, and none of them by pickle.
"""

from __future__ import annotations

import functools
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
from synthgen.dataset.listed import ListedShard, listed_shards
from synthgen.dataset.manifest import TAR_NAME, metadata_name, shard_stem
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
from synthgen.dataset.split import Side, photo_of, split_group
from synthgen.storage.publish import Storage, open_storage
from synthgen.storage.seal import sha256_of
from synthgen.storage.untrusted import one_line, parse_object
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
    hashes = {shard.stem: shard.sha256 for shard in shards}
    for name, asked in (("audited", audited), ("labels", labels)):
        if asked is not None and "" in hashes.values():
            raise ValueError(
                f"{name} must be given with a finished dataset's folder. Got {storage.root}."
            )
    verdicts = None
    if audited is not None:
        found = read_verdicts(storage, audited, hashes).values()
        verdicts = {key: verdict for rows in found for key, verdict in rows.items()}
    reader = _Reader(
        storage=storage,
        shards={shard.name: shard for shard in shards},
        check=check,
        side=None if split is None else Side(split, shares),
        verdicts=verdicts,
        keep_only=keep_only,
        masks=masks,
        labels=None if labels is None else LabelReader(storage, labels, hashes),
        class_names=class_names(storage),
    )
    num = len(shards)
    stages = [
        wds.SimpleShardList([*reader.shards]),
        *([wds.detshuffle(bufsize=num, initial=num, seed=seed)] * bool(shuffle)),
        wds.split_by_node,
        wds.split_by_worker,
        reader.read,
        reader.decode,
        *([wds.detshuffle(bufsize=shuffle, initial=shuffle, seed=seed)] * bool(shuffle)),
        # webdataset's own map would add keys to what the function returns
        *([] if transform is None else [functools.partial(map, transform)]),
    ]
    return SampleStream(reader.count, *stages)


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


@dataclass(frozen=True, slots=True)
class _Reader:
    """The stages of ``open_dataset`` that know the dataset; is sent to workers whole.

    Samples are read through our storage and `scan`: webdataset's own opener would run ``pipe:``
    URLs in a shell; its reader would unpack compressed tars and fill up sparse members, gigabytes
    from kilobytes.
    """

    storage: Storage
    shards: Mapping[str, ListedShard]
    check: bool | None
    side: Side | None
    verdicts: Mapping[str, Verdict] | None
    keep_only: bool
    masks: bool
    labels: LabelReader | None
    class_names: Mapping[int, str]

    def read(self, sources: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Raw members of the samples that are asked for, and where they are from."""
        storage = self.storage.in_this_process()
        for name in (source["url"] for source in sources):
            where, size = storage.path(name), storage.size(name)
            if size != self.shards[name].num_bytes:
                raise ValueError(
                    f"{where} must have {self.shards[name].num_bytes} bytes. Got {size}; "
                    f"see 'synthgen verify'."
                )
            places = [] if self.check is False else _places(storage, name)
            if self.check and not places:
                raise ValueError(
                    f"With check=True, {where} must have rows with hashes in the metadata beside "
                    f"it. Got none; leave check out, or see 'synthgen verify'."
                )
            with storage.open(name) as stream:
                found = ((span.key, read_span(stream, span)) for span in spans(scan(stream)))
                try:
                    for key, members in _checked(stream, name, places) if places else found:
                        if self.side is None or self.side.holds(_group(members)):
                            yield {"__key__": key, "__url__": where, **members}
                except BrokenShardError as error:
                    raise ValueError(
                        f"{where} must be whole. Got {error}; see 'synthgen verify'."
                    ) from None

    def decode(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The dictionaries of ``open_dataset``."""
        for sample in samples:
            key = sample["__key__"]
            verdict = None if self.verdicts is None else self.verdicts[key]
            if not self._is_wanted(key):
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

    def count(self) -> int:
        """The samples of a pass: by manifest, verdicts and rows, or in a lone tar."""
        if not all(shard.sha256 for shard in self.shards.values()):
            return sum(1 for _ in self.read({"url": name} for name in self.shards))
        if self.side is None and self.verdicts is not None:
            return sum(map(self._is_wanted, self.verdicts))
        if self.side is None:
            return sum(shard.samples for shard in self.shards.values())
        rows = (
            row for shard in self.shards.values() for row in read_rows(self.storage, shard.stem)
        )
        return sum(
            row.status == "ok"
            and self.side.holds(split_group(row.prompt, row.photo))
            and self._is_wanted(row.key)
            for row in rows
        )

    def _is_wanted(self, key: str) -> bool:
        return self.verdicts is None or not self.keep_only or self.verdicts[key].keep


def _places(storage: Storage, tar: str) -> list[Place]:
    """Places of a tar's samples in order; none where there are no hashes."""
    name = metadata_name(shard_stem(tar))
    content = storage.read(name) if TAR_NAME.fullmatch(tar) else None
    try:
        places = [] if content is None else parse_places(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error} See 'synthgen verify', or pass check=False.") from None
    return places if all(place.sha256 for place in places) else []


def _checked(
    stream: ByteStream, tar: str, places: Sequence[Place]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples by their rows, so that damage to a header, too, is that of one sample."""
    end = 0
    for key, offset, size, sha256 in places:
        stream.seek(end)
        block = stream.read(size) if 0 < size <= MAX_SAMPLE else b""
        if offset != end or sha256_of(block) != sha256:
            raise ValueError(
                f"Sample {one_line(key, 40)} of {tar} must be the one that its row in "
                f"{metadata_name(shard_stem(tar))} has the hash of. Got another: one of the two "
                f"is damaged; see 'synthgen verify'."
            )
        yield key, parse_span(block, key)
        end += size
    check_end(stream, end)


def _locate(url: str | Path, version: int | None) -> tuple[Storage, list[ListedShard]]:
    """The storage, and every shard that has samples; of a lone tar only its size is known."""
    storage = open_storage(url)
    if not storage.root.endswith(".tar") or storage.fs.isdir(storage.root):
        return storage, listed_shards(storage, version)
    whole = storage.root if storage.local_root is None else os.path.realpath(storage.root)
    folder, _, name = whole.rpartition("/")
    storage = Storage(storage.fs, folder)
    size = storage.size(name)
    if size is None:
        raise ValueError(f"A shard must be an existing tar. Got {str(url)!r}.")
    return storage, [ListedShard(name, "", size, 0)]


def _group(members: Mapping[str, bytes]) -> str:
    """What a sample is split by."""
    try:
        photo = photo_of(parse_object(members["json"]))
    except (KeyError, ValueError):  # decoding it says what is wrong
        photo = None
    return split_group(members.get("txt", b"").decode("utf-8", "replace"), photo)
