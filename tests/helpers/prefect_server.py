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
DRAIN_SECONDS = 60  # else whoever drains next waits for a server that is gone
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
    "PREFECT_SERVER_SERVICES_SCHEDULER_DEPLOYMENT_BATCH_SIZE": "100",
}


class PrefectServer:
    """A server that may be killed and started again, at the same port on the same database.

    Args:
        folder: Its database and its log.
        settings: Of Prefect, beside ours.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = folder
        own = {**SETTINGS, **(settings or {}), "PREFECT_HOME": str(folder)}
        self.environment = {**own, "PREFECT_API_URL": f"http://127.0.0.1:{self._port}/api"}
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = (sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1")
        environment = {**os.environ, **self.environment}
        del environment["PREFECT_API_URL"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port)], env=environment, stdout=log, stderr=log
            )
        url = self.environment["PREFECT_API_URL"]
        _wait_until_ready(url, self._process, self._folder / "server.log")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def running_server(
    folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[PrefectServer]:
    """A server that runs until the block ends."""
    server = PrefectServer(folder, settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def prefect_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server until the block ends; gives the environment of its clients.

    Args:
        folder: Its database and its log.
    """
    with running_server(folder) as server:
        yield server.environment


@contextmanager
def used(environment: Mapping[str, str]) -> Iterator[None]:
    """Let this process be a client of a server; its events are sent before the server may stop."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import get_current_settings
    from prefect.settings.context import temporary_settings
    from prefect.settings.legacy import _get_settings_fields

    assert get_current_settings() is not None
    fields = _get_settings_fields(type(get_current_settings()))
    known = {fields[name]: value for name, value in environment.items() if name in fields}
    with temporary_settings(known):
        try:
            yield
        finally:
            EventsWorker.drain_all(timeout=DRAIN_SECONDS)


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
