"""A shard: a WebDataset tar that is complete or does not exist.

``write`` only ever makes staged files; ``scan`` reads a tar by its headers and refuses what
other readers overlook (they stop silently at a truncation on a 512-byte boundary).
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from synthgen.storage.seal import sha256_of
from synthgen.storage.untrusted import one_line, quote
from synthgen.types import ByteStream

BLOCK = tarfile.BLOCKSIZE
MAX_MEMBER = 256 * 2**20
"""Bytes of a member: four for every pixel of the largest image."""

MAX_SAMPLE = 2 * MAX_MEMBER
"""Bytes of all members of a sample: image, masks and labels of the largest size, uncompressed."""

MAX_SAMPLES = 10_000
"""Samples of a tar: `DatasetConfig.shard_size` allows no more."""

MAX_MEMBERS = 256
"""Members of a sample; previews have one for each k."""

_EOF = b"\0" * (2 * BLOCK)


class ShardWriter:
    """A tar under construction. Only ``close`` completes it; anything else leaves it broken."""

    def __init__(self, path: Path) -> None:
        import webdataset as wds  # it loads torch, which readers of shards do not need

        self._stream = path.open("wb")
        # mtime 0 and the writer's fixed owner and mode make the bytes a function of the samples
        self._tar = wds.TarWriter(self._stream, encoder=False, mtime=0)
        self.num_samples = 0

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append the members of one sample, sorted by suffix."""
        self._tar.write({"__key__": key, **members})
        self.num_samples += 1

    def close(self) -> None:
        """Complete the tar and bring it to the disk."""
        self._tar.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def abandon(self) -> None:
        """Let go of the file without completing it."""
        with contextlib.suppress(OSError):  # a full disk fails again on what is buffered
            self._stream.close()
        with contextlib.suppress(OSError, ValueError):
            self._tar.close()


@contextlib.contextmanager
def whole_tar(path: Path) -> Iterator[ShardWriter]:
    """A tar that is completed only if the block succeeds."""
    writer = ShardWriter(path)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abandon()
        raise


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar."""

    key: str  # name up to its first dot
    suffix: str  # the rest of the name
    header: int  # offset of its header
    offset: int  # offset of its content
    size: int  # bytes of its content

    @property
    def end(self) -> int:
        """Offset after its padding."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


class BrokenShardError(ValueError):
    """A tar that is not what its writer closed.

    Args:
        kind: ``truncated``, ``bad header``, ``bad key``, ``foreign member``, ``large member``,
            ``duplicate member``, ``too many members`` or ``trailing data``.
        message: What was found, and where.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


def scan(stream: ByteStream) -> Iterator[Member]:
    """The members of an uncompressed tar, in order, until its end-of-file blocks.

    Raises:
        BrokenShardError: If it is truncated, has a bad header, a member that is no plain file,
            or data after its end.
    """
    total = stream.seek(0, os.SEEK_END)
    position = 0
    while True:
        stream.seek(position)
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise BrokenShardError("truncated", f"no end-of-file blocks at byte {position}")
        if not any(block):
            break
        member = _parse_header(block, position)
        if member.end > total:
            raise BrokenShardError(
                "truncated", f"{quote(f'{member.key}.{member.suffix}')} ends after the file"
            )
        yield member
        position = member.end
    check_end(stream, position)


def _parse_header(block: bytes, position: int) -> Member:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise BrokenShardError("bad header", f"at byte {position}: {one_line(error)}") from None
    if info.type != tarfile.REGTYPE:
        raise BrokenShardError("foreign member", f"{quote(info.name)} is no plain file")
    if info.size < 0:  # a scan would go back and never end
        raise BrokenShardError("bad header", f"at byte {position}: a size of {info.size}")
    if info.size > MAX_MEMBER:
        raise BrokenShardError("large member", f"{quote(info.name)} has {info.size} bytes")
    key, _, suffix = info.name.partition(".")
    return Member(key, suffix, position, position + BLOCK, info.size)


def check_end(stream: ByteStream, position: int) -> None:
    """Refuse a tar that does not end here, by its end-of-file blocks.

    Raises:
        BrokenShardError: If they are not there, or not the last.
    """
    total = stream.seek(0, os.SEEK_END)
    stream.seek(position)
    rest = stream.read(len(_EOF) + tarfile.RECORDSIZE)  # never a sparse terabyte of zeros
    if not rest.startswith(_EOF):
        raise BrokenShardError("truncated", f"one end-of-file block at byte {position}, not two")
    if rest.strip(b"\0") or position + len(rest) < total:
        raise BrokenShardError("trailing data", f"after the end-of-file blocks at byte {position}")
    if total % tarfile.RECORDSIZE:
        raise BrokenShardError("truncated", f"{total} bytes are no multiple of a tar record")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a sample lies in its tar."""

    key: str
    offset: int  # first byte of its first header
    size: int  # bytes until the end of its last member's padding
    members: Mapping[str, Member]  # its members by suffix, in order


def spans(members: Iterator[Member]) -> Iterator[Span]:
    """Group members that lie next to each other by key, as every WebDataset reader does.

    Raises:
        BrokenShardError: For a member that occurs twice in one group, and more samples or
            members than a shard may have.
    """
    group: dict[str, Member] = {}
    key, num = "", 0
    for member in members:
        if group and member.key != key:
            yield _span(key, group)
            group, num = {}, num + 1
        key = member.key
        if num >= MAX_SAMPLES or len(group) >= MAX_MEMBERS:
            raise BrokenShardError(
                "too many members",
                f"more than {MAX_SAMPLES:,} samples, or {MAX_MEMBERS} members of one",
            )
        if member.suffix in group:
            raise BrokenShardError("duplicate member", quote(f"{key}.{member.suffix}"))
        group[member.suffix] = member
    if group:
        yield _span(key, group)


def span_sha256(stream: ByteStream, span: Span) -> str:
    """Hash of a sample's bytes in its tar, headers and padding included."""
    stream.seek(span.offset)
    return sha256_of(stream.read(span.size))


def sha256_of_members(members: Mapping[str, bytes]) -> str:
    """Hash of a sample's members, in the order of a tar."""
    return sha256_of(b"".join(sha256_of(members[suffix]).encode() for suffix in sorted(members)))


def parse_span(block: bytes, key: str) -> dict[str, bytes]:
    """Content by suffix of the members that a sample's bytes in its tar are.

    Raises:
        BrokenShardError: If they are anything but the members of that one sample.
    """
    filler = -(len(block) + len(_EOF)) % tarfile.RECORDSIZE
    stream = io.BytesIO(block + _EOF + bytes(filler))
    found = list(spans(scan(stream)))
    if [(span.key, span.size) for span in found] != [(key, len(block))]:
        raise BrokenShardError("bad key", f"not the members of {quote(key, 40)}")
    return read_span(stream, found[0])


def read_span(stream: ByteStream, span: Span) -> dict[str, bytes]:
    """Content of a sample's members by suffix."""
    content = {}
    for suffix, member in span.members.items():
        stream.seek(member.offset)
        content[suffix] = stream.read(member.size)
    return content


def _span(key: str, group: Mapping[str, Member]) -> Span:
    first, last = next(iter(group.values())), list(group.values())[-1]
    return Span(key, first.header, last.end - first.header, dict(group))
