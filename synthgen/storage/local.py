"""This machine's disks and processes: what outlives a power loss, whose a lock or a folder is."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from synthgen.storage.untrusted import one_line

_STAGING_NAME = re.compile(r"([0-9a-f]{8})-([0-9]+)-[0-9a-f]{32}")
_FOREIGN_STALE_SECONDS = 24 * 3600  # another machine's process cannot be asked whether it lives


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; the entries of the new ones outlive a power loss."""
    new = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole, by a neighbor that takes its place, so that it outlives a power loss."""
    make_folder(path.parent)
    neighbor = path.with_name(f".{path.name}.{host_id()}-{os.getpid()}")
    try:
        with neighbor.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        neighbor.replace(path)
    finally:
        neighbor.unlink(missing_ok=True)
    sync_folder(path.parent)


def try_lock(stream: BinaryIO) -> bool:
    """Lock an open file, also where the file system knows no locks; False if another has it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def is_plain(mode: int) -> bool:
    """Whether something is a file or a folder: no link, pipe or device."""
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def refuse_strangers(root: str, name: str) -> None:
    """Refuse a path through a link, pipe or device below a folder.

    Raises:
        ValueError: With the first of them.
    """
    path = root
    for part in name.rstrip("/").split("/"):
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except OSError:  # what does not exist leads nowhere
            return
        if not is_plain(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a pipe or device"
            raise ValueError(
                f"{one_line(path)} must be a plain file or folder. Got {kind}, through which "
                f"nothing is read or written. Remove it, or put what you trust in its place."
            )


def scan_folder(folder: str) -> Iterator[dict[str, Any]]:
    """A folder as fsspec lists it, ten times as fast: there may be 100,000 files."""
    with os.scandir(folder) as items:
        for item in items:
            with suppress(FileNotFoundError):  # removed meanwhile
                facts = item.stat(follow_symlinks=False)
                if is_plain(facts.st_mode):
                    kind = "directory" if stat.S_ISDIR(facts.st_mode) else "file"
                    times = {"size": facts.st_size, "mtime": facts.st_mtime}
                    yield {"name": item.path, "type": kind, **times}


def own_temporary_folder() -> Path:
    """A folder for staging that no other user of this machine may have made."""
    folder = Path(tempfile.gettempdir()) / f"synthgen-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
        raise OSError(f"{folder} must be ours. Got another owner; set TMPDIR to another folder.")
    return folder


@functools.cache
def host_id() -> str:
    """Where our process ids count: containers and reboots may share a host's name."""
    known = [socket.gethostname()]
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        known += [str(Path("/proc/self/ns/pid").readlink()), boot]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def is_stale(staging: Path) -> bool:
    """Whether a staging folder is of a process that is gone."""
    name = _STAGING_NAME.fullmatch(staging.name)
    if name is None:
        return False
    if name[1] == host_id():
        return not psutil.pid_exists(int(name[2]))
    try:
        newest = max(item.stat().st_mtime for item in (staging, *staging.iterdir()))
        return time.time() - newest > _FOREIGN_STALE_SECONDS
    except FileNotFoundError:  # its owner was faster
        return False
