"""A real Prefect server as a process of its own: schedules fire there, automations act."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

READY_SECONDS = 240
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
    "PREFECT_SERVER_SERVICES_SCHEDULER_DEPLOYMENT_BATCH_SIZE": "100",
}


@contextmanager
def prefect_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server until the block ends; gives the environment of its clients.

    Args:
        folder: Its database and its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**SETTINGS, "PREFECT_HOME": str(folder)}
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait_until_ready(url, server, folder / "server.log")
        yield {**environment, "PREFECT_API_URL": url}
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def used(environment: Mapping[str, str]) -> Iterator[None]:
    """Let this process be a client of a server."""
    from prefect.settings import get_current_settings
    from prefect.settings.context import temporary_settings
    from prefect.settings.legacy import _get_settings_fields

    assert get_current_settings() is not None
    fields = _get_settings_fields(type(get_current_settings()))
    known = {fields[name]: value for name, value in environment.items() if name in fields}
    with temporary_settings(known):
        yield


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"the server must be ready. Got: {log.read_text()[-2000:]}")
