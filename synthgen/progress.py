"""Progress as log records, and the one switch that stops work between two batches.

The library says what happens on the logger ``synthgen.progress``; whoever runs it decides what
that looks like: a bar, plain lines, JSON. Every report is also a point at which a shard in
flight can be dropped: after ``request_stop`` the next report raises.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("synthgen.progress")
_stop = threading.Event()

Progress = Callable[..., None]
"""``progress(event, **fields)``: ``samples`` with ``count`` (negative where a shard begins
again), ``shard`` with ``name``, ``planned`` and ``reused``. May raise, to stop."""


class Stopped(BaseException):
    """Raised inside a shard after ``request_stop``; no ``except Exception`` may swallow it."""


def report(event: str, **fields: object) -> None:
    """Log one event with its fields.

    Raises:
        Stopped: After ``request_stop``.
    """
    if _stop.is_set():
        raise Stopped
    logger.info(event, extra={"event": event, "fields": fields})


def request_stop() -> None:
    """Make every shard in flight roll back at its next report."""
    _stop.set()


def stop_requested() -> bool:
    """Whether ``request_stop`` was called."""
    return _stop.is_set()
