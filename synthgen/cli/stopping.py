"""Signals end a command within seconds: one line, its exit code, no process left behind.

The first of Ctrl-C, SIGTERM, SIGHUP and SIGQUIT drops the shard in flight at its next report, or
raises at once where nothing reports. What has not ended ``GRACE`` seconds later, or at a second
signal, is cut off: a kill at any moment leaves only whole shards (`synthgen.jobs.shard`), and the
next run removes what was staged.
"""

from __future__ import annotations

import contextvars
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeVar

import psutil

from synthgen import progress
from synthgen.storage.redaction import redact

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
GRACE = 3.0
"""Seconds for a roll-back; a batch of a large model on a CPU takes minutes."""
INTERRUPTED = "interrupted; the shard in flight was dropped, run again to go on"
TRACEBACK = "SYNTHGEN_TRACEBACK"

Result = TypeVar("Result")
_received: list[int] = []
_ending = threading.Lock()
_reporting = 0
_terminal = 2  # where the last line goes: standard error, before it was hushed


def listen() -> None:
    """Answer signals from now on, in this process alone; those that nohup ignores stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _answer)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # written by C code, so that the watch hears of a signal while the main thread computes
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    _protect_forks()


@contextmanager
def reporting() -> Iterator[None]:
    """In the block, work is stopped by its next report instead of an exception anywhere.

    Raises:
        Stopped: At the end of the block, if a stop was requested.
    """
    global _reporting
    _reporting += 1
    try:
        yield
    finally:
        _reporting -= 1
    if progress.stop_requested():
        raise progress.Stopped


def apart(call: Callable[[], Result]) -> Result:
    """What a call gives in a thread of its own: the main one answers signals, which Prefect takes.

    Args:
        call: Runs with this thread's context variables.
    """
    future, context = Future[Result](), contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result()


def end(message: str = INTERRUPTED, code: int | None = None) -> NoReturn:
    """Say one line, end the processes that we started, and this one.

    Servers of ours are in sessions of their own and end with us by themselves, in good order.

    Args:
        message: Why.
        code: The exit code; None: that of the signal.
    """
    _ending.acquire()  # for good: whoever comes second waits for the end
    _hush()
    with suppress(OSError):
        clear = b"\r\x1b[2K\x1b[?25h" if os.isatty(_terminal) else b""  # the bar, and its cursor
        os.write(_terminal, clear + f"synthgen: {redact(message)}\n".encode())
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == os.getsid(0):
                process.kill()
    os._exit(128 + _received[0] if code is None and _received else code or 130)


def _answer(number: int, _frame: object) -> None:
    _received.append(number)
    if len(_received) > 1 or _ending.locked():  # the watch ends us
        return
    progress.request_stop()
    _hush()
    if not _reporting:
        raise progress.Stopped


def _watch(reader: socket.socket) -> None:
    while (number := reader.recv(1)[0]) not in SIGNALS:
        pass
    reader.settimeout(GRACE)
    with suppress(TimeoutError):
        while reader.recv(1)[0] not in SIGNALS:
            pass
    _received.append(number)
    end()


def _hush() -> None:
    """Nothing else is printed any more: tracebacks of what is cut off help nobody."""
    global _terminal
    if _terminal == 2 and TRACEBACK not in os.environ:
        with suppress(OSError):
            _terminal = os.dup(2)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)


@functools.cache
def _protect_forks() -> None:
    """Forked workers are ended by their parent, not by the terminal."""

    def leave_to_parent() -> None:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)

    os.register_at_fork(after_in_child=leave_to_parent)


class Forgiving:
    """Standard error that may be full or gone: what it does not take ends no run.

    Args:
        stream: The stream itself, None where it is closed.
    """

    def __init__(self, stream: object) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it, or not."""
        with suppress(OSError, ValueError):
            self._stream.write(text)  # type: ignore[attr-defined]
        return len(text)

    def flush(self) -> None:
        """Flush it, or not."""
        with suppress(OSError, ValueError):
            self._stream.flush()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def forgive_standard_error() -> None:
    """Go on where standard error cannot be written, also where a shell closed it."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, else the next file's
    if not isinstance(sys.stderr, Forgiving):
        sys.stderr = Forgiving(sys.stderr or os.fdopen(2, "w"))
