"""The Prefect server of one command: the one that PREFECT_API_URL names, or one of its own.

The temporary server that Prefect starts by itself hears our terminal's Ctrl-C and outlives a kill.
This one is in a session of its own, starts while the command imports its models, and ends when its
standard input does: with the command, however that ends.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import httpx
from prefect import tags
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import get_current_settings

from synthgen.flows import TAG
from synthgen.progress import stop_requested
from synthgen.storage.redaction import redact
from synthgen.storage.untrusted import one_line

STARTUP_SECONDS = 120.0
SILENCE_SECONDS = 30.0
"""Without an answer of a named server; a restart takes less."""
_DRAIN_SECONDS = 10
_URL = "PREFECT_API_URL"
_TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
_AGAIN = "Complete shards are kept; run the same command again"
_HOME = "or set PREFECT_HOME to a folder that can be written, or add --engine inline"


@contextmanager
def flow_server(lost: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """In the block there is a server for flows; gives what waits until it answers.

    Args:
        lost: Told in one line, from another thread, when the server is gone for good.
    """
    url, ended = get_current_settings().api.url, threading.Event()
    with tempfile.TemporaryFile() as log:
        own = _start(log) if url is None else None

        def ready() -> None:
            if own is None:
                _check(str(url))
            else:
                os.environ[_URL] = f"http://127.0.0.1:{_port(own, log)}/api"
                refresh_global_settings_context()
            watch = threading.Thread(target=_watch, args=(own, str(url), ended, lost), daemon=True)
            watch.start()

        try:
            with tags(TAG):  # automations of a server know our runs by it
                yield ready
        finally:
            ended.set()
            if own is not None:
                if _URL in os.environ and not stop_requested():
                    EventsWorker.drain_all(timeout=_DRAIN_SECONDS)
                    APILogWorker.drain_all(timeout=_DRAIN_SECONDS)
                os.environ.pop(_URL, None)
                refresh_global_settings_context()
                assert own.stdin is not None
                own.stdin.close()


def _start(log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "synthgen.flows.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        env={**os.environ, **_TEMPORARY},
    )


def _port(own: subprocess.Popen[bytes], log: IO[bytes]) -> int:
    """The port of our server, once it answers.

    Raises:
        RuntimeError: In one line, if it ended instead.
    """
    assert own.stdout is not None
    port = int(own.stdout.readline() or 0)
    try:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=STARTUP_SECONDS)
        asked.request("GET", "/api/health")
        if asked.getresponse().status == http.HTTPStatus.OK:
            return port
    except (OSError, http.client.HTTPException):
        pass
    own.kill()
    own.wait()
    log.seek(0)
    said = [line for line in log.read().decode(errors="replace").splitlines() if "Error" in line]
    home = get_current_settings().home
    raise RuntimeError(
        f"A temporary Prefect server must start, with its database in {home}. Got: "
        f"{one_line(redact(said[-1] if said else 'no answer'))}. Free or mend it, {_HOME}."
    )


def _check(url: str) -> None:
    if not _answers(url):
        raise RuntimeError(
            f"The Prefect server at {redact(url)} must answer (PREFECT_API_URL). Got no answer. "
            f"Start it, or unset the variable, or add --engine inline."
        )


def _answers(url: str) -> bool:
    """Whether anybody is there, whatever it says."""
    try:
        httpx.get(f"{url}/health", timeout=10)
    except httpx.HTTPError as error:
        return "CERTIFICATE" in str(error)  # Prefect knows whether to trust it
    return True


def _watch(
    own: subprocess.Popen[bytes] | None,
    url: str,
    ended: threading.Event,
    lost: Callable[[str], None],
) -> None:
    heard = time.monotonic()
    while not ended.wait(0.5 if own is not None else 5.0):
        if own is not None:
            if own.poll() is not None and not ended.is_set():
                lost(f"The temporary Prefect server ended ({own.returncode}). {_AGAIN}, {_HOME}.")
        elif _answers(url):
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENCE_SECONDS:
            lost(f"The Prefect server at {redact(url)} does not answer any more. {_AGAIN}.")


def _serve() -> None:
    """Be the server, at a free port that is told on standard output."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)  # who asks early waits for the answer
    import uvicorn
    from prefect.server.api.server import create_app

    settings = uvicorn.Config(
        create_app(), log_level="error", lifespan="on", timeout_graceful_shutdown=1
    )
    uvicorn.Server(settings).run(sockets=[listener])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # until the command is gone
    os.kill(os.getpid(), signal.SIGTERM)  # migrations of the database are finished first
    time.sleep(STARTUP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _serve()
