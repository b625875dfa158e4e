"""Files of a store of objects: what was put is looked for, what was read is compared.

A store may say yes and forget, answer for a while that there is nothing where it just took
something, or garble an answer on its way. So a file that was put counts once the store shows it
with our size and our hash: its ETag, where that is an MD5 as S3 makes it, else, once per store,
the content read back. A small file that is read is compared with its ETag.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from synthgen.storage.urls import PAUSES, StoreError, ask

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PART_BYTES = 16 * 2**20
"""Parts in which s3 gets a tar of twice this size or more: a cut connection costs one part. S3
takes at least 5 MiB, and at most 10,000 parts: tars of 160 GB."""

_READ_BYTES = 4 * 2**20
_MD5 = re.compile(r"[0-9a-f]{32}")
_MAX_ACCEPTED = 100_000
_accepted: dict[str, None] = {}  # paths that this process saw arrive, the latest last
_other_tags: set[str] = set()  # folders of stores whose ETags are not MD5, such as encrypting ones


class Remote:
    """The files below a folder of a store; paths are whole, the folder is for messages.

    Args:
        fs: The fsspec file system.
        root: The folder.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self.fs, self.root = fs, root

    def read(self, path: str, there: bool = False) -> bytes:
        """Content of a small file.

        With ``there`` it must be there, see `urls.ask`; so must what we saw arrive.

        Raises:
            FileNotFoundError: If there is none.
            StoreError: If the store's answers are nothing to go by.
        """
        content: bytes = self._ask(path, partial(self._read, path), there)
        return content

    def info(self, path: str, there: bool = False) -> dict[str, Any]:
        """Size, ETag and the like of a file; see ``read``."""
        found: dict[str, Any] = self._ask(path, lambda: self.fs.info(path), there)
        return found

    def entries(self, folder: str) -> list[dict[str, Any]]:
        """What is in a folder, as fsspec lists it, and what we saw arrive there."""
        below = [path[len(folder) + 1 :] for path in _accepted if path.startswith(f"{folder}/")]
        ours: list[dict[str, Any]] = [
            {"name": f"{folder}/{name}", "type": "directory" if slash else "file"}
            for name, slash, _ in (path.partition("/") for path in below)
        ]
        with suppress(FileNotFoundError, NotADirectoryError):
            ours += ask(self.fs, self.root, lambda: self.fs.ls(folder, detail=True))
        return ours

    def remove(self, path: str) -> None:
        """Delete a file; one that is already gone is no error."""
        _accepted.pop(path, None)
        with suppress(FileNotFoundError):
            ask(self.fs, self.root, lambda: self.fs.rm_file(path))

    def open(self, path: str) -> io.BufferedReader:
        """A file opened for reading; each piece is asked for again as whole answers are."""
        size = int(self.info(path, there=True)["size"])
        return io.BufferedReader(_Reader(self, path, size), _READ_BYTES)

    def put(self, staged: Path, path: str) -> None:
        """Send a file until it has arrived.

        Raises:
            StoreError: If it has not after four times, or there is no bucket.
        """
        parts = {"chunksize": PART_BYTES} if "s3" in self.fs.protocol else {}
        tags = _tags(staged)
        for pause in (*PAUSES, None):
            try:
                ask(self.fs, self.root, partial(self.fs.put_file, str(staged), path, **parts))
                if self._arrived(staged, path, tags):
                    break
            except FileNotFoundError as error:
                answer = getattr(error.__cause__, "response", None) or {}  # s3fs translated it
                if answer.get("Error", {}).get("Code") == "NoSuchBucket":
                    raise StoreError(
                        f"The bucket of {self.root} must exist. Got none. Make it, or choose "
                        f"another."
                    ) from None  # else an upload in parts was forgotten halfway
            if pause is None:
                raise StoreError(
                    f"The store of {self.root} must keep what it takes. Got four times that it "
                    f"took {path.rpartition('/')[2]} and does not have it. Check the store, then "
                    f"run the same command again: what is complete is kept."
                )
            time.sleep(pause)
        _accepted.pop(path, None)
        _accepted[path] = None
        if len(_accepted) > _MAX_ACCEPTED:
            del _accepted[next(iter(_accepted))]

    def _ask(self, path: str, act: Any, there: bool) -> Any:
        try:
            return ask(self.fs, self.root, act, there or path in _accepted)
        except FileNotFoundError:
            _accepted.pop(path, None)  # another removed it, or the store lost it
            raise

    def _arrived(self, staged: Path, path: str, tags: tuple[str, ...]) -> bool:
        """Whether the store shows the file that was put, and not what was there before."""
        size = staged.stat().st_size
        for pause in (*PAUSES, None):
            try:
                info = ask(self.fs, self.root, lambda: self.fs.info(path), there=True)
            except FileNotFoundError:
                return False
            if int(info["size"]) == size:
                if str(info.get("ETag", "")).strip('"') in tags or self.root in _other_tags:
                    return True
                with self.open(path) as stream, staged.open("rb") as sent:
                    if _md5(stream) == _md5(sent):
                        _other_tags.add(self.root)
                        return True
            if pause is not None:
                time.sleep(pause)
        return False

    def _read(self, path: str) -> bytes:
        """A file whose ETag is its MD5, or that came out the same twice."""
        before = None
        for _ in range(4):
            content, tag = self._fetch(path)
            known = _MD5.fullmatch(tag) and self.root not in _other_tags
            if not known or hashlib.md5(content, usedforsecurity=False).hexdigest() == tag:
                return content
            if content == before:
                _other_tags.add(self.root)
                return content
            before = content
        raise OSError("another content each time")

    def _fetch(self, path: str) -> tuple[bytes, str]:
        if "s3" not in self.fs.protocol:
            return bytes(self.fs.cat_file(path)), ""
        bucket, key, _ = self.fs.split_path(path)
        found = self.fs.call_s3("get_object", Bucket=bucket, Key=key)
        content = fsspec.asyn.sync(self.fs.loop, found["Body"].read)
        return content, str(found.get("ETag", "")).strip('"')


class _Reader(io.RawIOBase):
    def __init__(self, remote: Remote, path: str, size: int) -> None:
        self.remote, self.path, self.size, self.place = remote, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, start + offset)
        return self.place

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self.place + len(view), self.size)
        if self.place >= end:
            return 0
        fs, root = self.remote.fs, self.remote.root
        content = ask(
            fs, root, lambda: fs.cat_file(self.path, start=self.place, end=end), there=True
        )
        view[: len(content)] = content
        self.place += len(content)
        return len(content)


def partial_uploads(fs: Any, root: str) -> list[tuple[str, float, Callable[[], Any]]]:
    """The multipart uploads below a folder of s3: name, age in seconds, and what aborts it."""
    return ask(fs, root, lambda: list(_partial_uploads(fs, root)))


def _partial_uploads(fs: Any, root: str) -> Iterator[tuple[str, float, Callable[[], Any]]]:
    bucket, _, folder = root.partition("/")
    where: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{folder}/"}
    while True:
        try:
            page = fs.call_s3("list_multipart_uploads", **where)
        except FileNotFoundError:  # what rclone says of a bucket that never had any
            return
        for item in page.get("Uploads", []):
            # a server may ignore the prefix; nobody else's upload is ours to abort
            if item["Key"].startswith(f"{folder}/"):
                abort = partial(fs.abort_mpu, bucket, item["Key"], item["UploadId"])
                age = time.time() - item["Initiated"].timestamp()
                yield item["Key"].removeprefix(f"{folder}/"), age, abort
        if not page.get("IsTruncated"):
            return
        where |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _tags(path: Path) -> tuple[str, str]:
    """The ETags of a file put whole, and put in parts."""
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as stream:
        while part := stream.read(PART_BYTES):
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    joined = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return whole.hexdigest(), f"{joined}-{len(parts)}"


def _md5(stream: Any) -> bytes:
    return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).digest()
