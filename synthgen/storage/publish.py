"""Everything goes to disk here: local staging under a unique name, then one atomic step.

A file is staged, synced, and moved into its place by ``os.replace`` (local) or put (any other
fsspec file system, see `synthgen.storage.remote`); a name in the dataset therefore always stands
for a whole file. Nothing is ever opened for writing at its final name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from synthgen.storage import urls
from synthgen.storage.local import (
    host_id,
    is_plain,
    is_stale,
    make_folder,
    own_temporary_folder,
    refuse_strangers,
    scan_folder,
    sync_folder,
    try_lock,
)
from synthgen.storage.remote import Remote, partial_uploads
from synthgen.storage.untrusted import one_line
from synthgen.types import ByteStream

STAGING = ".synthgen/staging"
LOCKS = ".synthgen/locks"
MAX_NAME = 255
"""Bytes of a file's name on all common file systems."""

LOCK_SECONDS = 120.0
"""How long to wait for another that publishes: slow disks take seconds, a stopped process all."""

_NO_FILE = "{} must be a file. Got a folder; move it away."


class FileFacts(NamedTuple):
    """What a listing says of a file."""

    size: int  # in bytes
    changed: float  # when it was written, seconds since 1970; infinite if the store does not say


@dataclass(frozen=True, slots=True)
class Storage:
    """A dataset's folder on some file system; names are relative to it, with slashes.

    Args:
        fs: The fsspec file system.
        root: The folder in it.
    """

    fs: Any
    root: str

    @property
    def local_root(self) -> Path | None:
        """The folder as a local path, None where it is not local."""
        return Path(self.root) if "file" in _protocols(self.fs) else None

    def path(self, name: str) -> str:
        """Full path of a name; whoever reads, writes or removes by name asks here.

        Raises:
            ValueError: If a link, pipe or device stands on the way below the folder, which may be
                anybody's: nothing is done through it.
        """
        if self.local_root is not None:
            refuse_strangers(self.root, name)
        return f"{self.root}/{name}"

    def strangers(self) -> list[str]:
        """Names of the links, pipes and devices below a local folder; none is followed."""
        found = []
        for folder, below, files in os.walk(self.root) if self.local_root is not None else ():
            for path in (f"{folder}/{name}" for name in (*below, *files)):
                with suppress(FileNotFoundError):  # another process removed it
                    if not is_plain(os.lstat(path).st_mode):
                        found.append(path.removeprefix(f"{self.root}/"))
        return sorted(found)

    def in_this_process(self) -> Storage:
        """The same folder for a forked process, which clients of object stores do not survive."""
        return Storage(type(self.fs)(*self.fs.storage_args, **self.fs.storage_options), self.root)

    @property
    def remote(self) -> Remote | None:
        """What asks the store, where there is one; memory is none."""
        kept_here = not set(_protocols(self.fs)).isdisjoint(urls.LOCAL)
        return None if kept_here else Remote(self.fs, self.root)

    def read(self, name: str, there: bool = False) -> bytes | None:
        """Content of a file, None where there is none.

        Args:
            there: There is evidence of it, so a store that denies it is asked again.
        """
        path, remote = self.path(name), self.remote
        try:
            content: bytes = remote.read(path, there) if remote else self.fs.cat_file(path)
        except IsADirectoryError:
            raise ValueError(_NO_FILE.format(one_line(path))) from None
        except (FileNotFoundError, NotADirectoryError):
            return None
        return content

    def size(self, name: str, there: bool = False) -> int | None:
        """Bytes of a file, None where there is none; see ``read``."""
        path, remote = self.path(name), self.remote
        try:
            found = remote.info(path, there) if remote else self.fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if found["type"] == "directory":
            raise ValueError(_NO_FILE.format(one_line(path)))
        return int(found["size"])

    def names(self, folder: str = "") -> list[str]:
        """Names of the files directly in a folder, sorted; none where there is no folder."""
        return sorted(self._items(folder, "file"))

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted."""
        return sorted(self._items(folder, "directory"))

    def facts(self, folder: str = "") -> dict[str, FileFacts]:
        """Sizes and times of the files directly in a folder by name, from one listing.

        What a store took and does not list yet is asked for by itself.
        """
        found = {}
        for name, item in self._items(folder, "file").items():
            size = item["size"] if "size" in item else self.size(name, there=True)
            found[name] = FileFacts(int(size or 0), _changed(item))
        return found

    def _items(self, folder: str, kind: str) -> dict[str, Mapping[str, Any]]:
        """What is directly in a folder, by name; of what is told twice, the store's own word."""
        where, remote = self.path(folder).rstrip("/"), self.remote
        try:
            if self.local_root is not None:
                found = list(scan_folder(where))
            else:
                found = remote.entries(where) if remote else self.fs.ls(where, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        prefix = f"{folder}/" if folder else ""
        paths = ((str(item["name"]).rstrip("/"), item) for item in found if item["type"] == kind)
        return {prefix + path.rsplit("/", 1)[-1]: item for path, item in paths if path != where}

    def open(self, name: str) -> ByteStream:
        """A file opened for reading.

        Raises:
            FileNotFoundError: If there is none.
        """
        path, remote = self.path(name), self.remote
        try:
            return remote.open(path) if remote else self.fs.open(path, "rb")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.root} must have {name}. Got none; see 'synthgen verify'."
            ) from None

    def publish(self, staged: Path, name: str) -> None:
        """Move a staged file into its place, durably and in one step."""
        with staged.open("rb") as stream:
            os.fsync(stream.fileno())
        if self.local_root is None:
            self.send(staged, name)
            staged.unlink()
            return
        target = Path(self.path(name))
        make_folder(target.parent)
        staged.replace(target)
        sync_folder(target.parent)

    def send(self, path: Path, name: str) -> None:
        """Publish a copy of a file of this machine."""
        if remote := self.remote:
            remote.put(path, self.path(name))
        elif self.local_root is None:
            self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(path), self.path(name))
        else:
            with self.staging() as folder:
                shutil.copyfile(path, folder / "file")
                self.publish(folder / "file", name)

    def publish_bytes(self, content: bytes, name: str) -> None:
        """Write a small file through staging; an equal file is left alone.

        Raises:
            OSError: In one line, if it cannot be written.
        """
        if self.read(name) == content:
            return
        with explain_disk_errors(self, len(content), name), self.staging() as folder:
            staged = folder / "file"
            staged.write_bytes(content)
            self.publish(staged, name)

    def remove(self, name: str) -> None:
        """Delete a file; one that is already gone is no error."""
        if remote := self.remote:
            remote.remove(self.path(name))
        else:
            with suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A local folder of our own, removed in every case when the block ends."""
        make_folder(self._staging_root())
        folder = self._staging_root() / f"{host_id()}-{os.getpid()}-{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sync(self) -> None:
        """Bring the entries of a local folder, of those in it, and its own to the disk.

        Before the file that says what is there: another process may have been killed between
        moving a file into its place and syncing the folder.
        """
        if self.local_root is not None:
            sync_folder(self.local_root.parent)
            for folder, below, _ in os.walk(self.local_root):
                below[:] = [name for name in below if name[0] != "."]
                sync_folder(Path(folder))

    def _staging_root(self) -> Path:
        """Beside the data, so that a move is one step; for remote ones a folder that is ours."""
        return own_temporary_folder() if self.local_root is None else Path(self.path(STAGING))

    @contextmanager
    def locked(self, name: str, what: str, wait: float = 0.0) -> Iterator[None]:
        """Hold a lock of a local dataset; it ends with its process, however that ends.

        Elsewhere nothing is locked: no lock is portable over object stores, and some file systems
        of clusters know none.

        Args:
            name: Of the lock.
            what: What may happen only once at a time, for the message.
            wait: Seconds to wait for another.

        Raises:
            RuntimeError: If another holds it.
        """
        if self.local_root is None:
            yield
            return
        path = Path(self.path(f"{LOCKS}/{name}.lock"))
        deadline = time.monotonic() + wait
        make_folder(path.parent)
        with path.open("ab") as stream:
            while not try_lock(stream):
                if time.monotonic() >= deadline:
                    raise RuntimeError(
                        f"One process at a time may {what}. Got another at work on {self.root}. "
                        f"Wait for it, or stop it."
                    )
                time.sleep(0.02)
            yield

    def publishing(self) -> AbstractContextManager[None]:
        """The lock under which what stands is looked at once more, and then changed."""
        return self.locked("publish", "publish in a dataset", LOCK_SECONDS)

    def clear_stale_staging(self, dry_run: bool = False) -> list[str]:
        """Remove the staging folders of processes that are gone; returns their names.

        Args:
            dry_run: Only say which.
        """
        root = self._staging_root()
        stale = sorted(filter(is_stale, root.iterdir() if root.is_dir() else ()))
        for path in () if dry_run else stale:
            shutil.rmtree(path, ignore_errors=True)
        return [f"{STAGING}/{path.name}" for path in stale]

    def clear_partial_uploads(self, seconds: float, dry_run: bool = False) -> list[str]:
        """Abort the multipart uploads below this folder that began ``seconds`` ago or earlier.

        A killed process leaves them; no reader sees them, but stores charge for them.

        Args:
            seconds: Age of what is aborted.
            dry_run: Only say which.

        Returns:
            The names of the files that they would have become.
        """
        if "s3" not in _protocols(self.fs):
            return []
        found = partial_uploads(self.fs, self.root)
        stale = [(name, abort) for name, age, abort in found if age >= seconds]
        for _, abort in () if dry_run else stale:
            with suppress(FileNotFoundError):  # the store forgot it, or another was faster
                urls.ask(self.fs, self.root, abort)
        return sorted(name for name, _ in stale)


def open_storage(url: str | Path) -> Storage:
    """The storage of a dataset: a local path, or a URL of a known scheme.

    Raises:
        ValueError: For ``pipe:`` and every other scheme that is not known, and for credentials in
            a URL.

    >>> open_storage("some/folder").local_root.is_absolute()
    True
    """
    text = str(url)
    if urls.scheme_of(text) is None:
        longest = max((len(os.fsencode(part)) for part in Path(text).parts), default=0)
        if longest > MAX_NAME:
            raise ValueError(
                f"A folder's name must have at most {MAX_NAME} bytes. Got one of {longest}; "
                f"choose a shorter one."
            )
        return Storage(fsspec.filesystem("file"), str(Path(text).absolute()))
    return Storage(*urls.open_url(text))


def sha256_file(stream: ByteStream) -> str:
    """The sha256 of what is left of an open file."""
    sha = hashlib.sha256()
    while block := stream.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


@contextmanager
def explain_disk_errors(storage: Storage, needed_bytes: int, what: str) -> Iterator[None]:
    """Turn a full or read-only disk into one line that says what to do; so with a store.

    Args:
        storage: Where we write.
        needed_bytes: Space that ``what`` takes.
        what: The thing being written, for the message.

    Raises:
        OSError: One line, with the space needed where the disk is full.
    """
    try:
        yield
    except OSError as raised:
        # of blocks in one another, the outer one knows better what is not complete
        error = raised.__cause__ if isinstance(raised.__cause__, OSError) else raised
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = Path(storage.root) if storage.local_root else Path(tempfile.gettempdir())
            raise OSError(
                f"The disk must have about {needed_bytes / 1e6:.1f} MB free for {what}. Got "
                f"{shutil.disk_usage(where).free / 1e6:.1f} MB under {where}. Free some space and "
                f"run again; complete shards are kept."
            ) from error
        if isinstance(error, urls.StoreError):
            raise urls.StoreError(f"{error} Not complete there: {what}.") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise OSError(
                f"The output must be a writable folder. Got {storage.root}: "
                f"{os.strerror(error.errno).lower()}. Choose another folder."
            ) from None
        raise


def dump_json(tree: Mapping[str, Any], allow_nan: bool = False) -> bytes:
    """A small file of ours: JSON for people and programs.

    >>> dump_json({"a": 1})
    b'{\\n "a": 1\\n}\\n'
    """
    text = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=allow_nan)
    return (text + "\n").encode("utf-8")


def _changed(item: Mapping[str, Any]) -> float:
    """The time of a listed file, under the name that its file system gives it."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        found = item.get(name)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
    return math.inf


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
