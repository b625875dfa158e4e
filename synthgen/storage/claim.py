"""One writer at a time for what two would mix: the folder of an export, the target of a push.

On this machine the claim is a lock, which ends with its process, however that ends. Stores have
none that is portable, so there it is an object: written, and after a moment read again, for of two
at once only the last stands. Its holder looks again before it commits anything and gives up once
the object is another's. A holder that died leaves it: one of this machine is seen to be gone,
another is taken for gone when it has not renewed its claim for `STALE_SECONDS`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from synthgen.storage.local import host_id, make_folder
from synthgen.storage.publish import Storage, dump_json
from synthgen.storage.untrusted import one_line, parse_object

CLAIM = ".synthgen/claim"
STALE_SECONDS = 900
_WAIT_SECONDS = 0.5  # longer than a store takes from "is it free" to "it is mine"
_LOOK_SECONDS = 60

LookAgain = Callable[[], None]
"""Raises a RuntimeError where the claim has become another's; to be called before each commit."""


@contextmanager
def claimed(target: Storage, what: str) -> Iterator[LookAgain]:
    """Hold the claim of a folder or URL; ``what`` is written tells whoever comes second.

    Raises:
        RuntimeError: If another holds it; the message says who.
    """
    claim = {
        "what": what,
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "host": host_id(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "token": uuid.uuid4().hex,
    }
    hold = _hold_object if target.local_root is None else _hold_lock
    with hold(target, claim) as look_again:
        yield look_again


@contextmanager
def _hold_lock(target: Storage, claim: dict[str, Any]) -> Iterator[LookAgain]:
    path = Path(target.path(CLAIM))
    make_folder(path.parent)
    with path.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _held(target, _read(target)) from None
        stream.truncate(0)
        stream.write(dump_json(claim))
        stream.flush()
        try:
            yield lambda: None
        finally:
            stream.truncate(0)


@contextmanager
def _hold_object(target: Storage, claim: dict[str, Any]) -> Iterator[LookAgain]:
    looked = 0.0

    def write() -> None:
        nonlocal looked
        looked = time.time()
        target.publish_bytes(dump_json({**claim, "renewed": looked}), CLAIM)

    def look_again() -> None:
        existing = _read(target)
        if existing and existing["token"] != claim["token"]:
            raise _held(target, existing)
        if not existing or time.time() - looked > _LOOK_SECONDS:
            write()

    existing = _read(target)
    if existing and not _is_gone(existing):
        raise _held(target, existing)
    write()
    time.sleep(_WAIT_SECONDS)
    look_again()
    try:
        yield look_again
    finally:
        existing = _read(target)
        if existing and existing["token"] == claim["token"]:
            target.remove(CLAIM)


def _read(target: Storage) -> dict[str, Any] | None:
    """The claim that is there, None for none or one that cannot be read."""
    try:
        tree = parse_object(target.read(CLAIM) or b"")
        renewed = float(tree.get("renewed", 0.0))
        return {**tree, "token": str(tree["token"]), "renewed": renewed}
    except (ValueError, TypeError, KeyError):
        return None


def _is_gone(claim: dict[str, Any]) -> bool:
    if claim.get("host") == host_id() and isinstance(claim.get("process"), int):
        return not psutil.pid_exists(claim["process"])
    return time.time() - float(claim["renewed"]) > STALE_SECONDS


def _held(target: Storage, claim: dict[str, Any] | None) -> RuntimeError:
    who = "another at work there"
    if claim:
        who = (
            f"process {claim.get('process')} on {claim.get('machine')} at work there since "
            f"{claim.get('since')} ({claim.get('what')})"
        )
    return RuntimeError(
        f"{one_line(target.root)} must have one writer at a time. Got {one_line(who)}. Wait for "
        f"it, or choose another target."
    )
