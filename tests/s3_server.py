"""A real S3 server of this machine, and a proxy before it that breaks what it should not."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

BUCKET = "bucket"
KEY_ID = "an-access-key-id"
READY_SECONDS = 60
RCLONE = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
VERBS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def s3_server(folder: Path, secret: str) -> Iterator[int]:
    """Serve a folder's subfolders as buckets with ``rclone serve s3``; gives the port."""
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    options = ("--addr", f"127.0.0.1:{port}", "--vfs-cache-mode", "off", "--config", os.devnull)
    with (folder.parent / "rclone.log").open("wb") as log:
        server = subprocess.Popen(
            [str(RCLONE), "serve", "s3", *options, str(folder)],
            env={**os.environ, "RCLONE_AUTH_KEY": f'"{KEY_ID},{secret}"'},  # not in `ps`
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _listens(port):
            assert server.poll() is None, (folder.parent / "rclone.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def environment(port: int, secret: str) -> dict[str, str]:
    """What a client of the server finds in its environment."""
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@dataclass
class Proxy:
    """Forwards TCP to a port and breaks some requests, by a seeded choice.

    Args:
        target: Port of the server.
        faults: Probability per request of: ``error`` (status 500 instead of an answer), ``cut``
            (the connection is reset in the middle), ``slow`` (a pause before it is forwarded).
        pause: Seconds of that pause.
        seed: Of the choices.
    """

    target: int
    faults: dict[str, float] = field(default_factory=dict)
    pause: float = 0.3
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    part_seen: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Forward until the block ends; gives our port."""
        self._rng = random.Random(self.seed)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield listener.getsockname()[1]

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._ask, args=(client, server), daemon=True).start()
                threading.Thread(target=_pump, args=(server, client), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        """Forward what a client sends, and choose a fault at the beginning of each request."""
        with suppress(OSError):
            while data := client.recv(4096):
                if data.startswith(VERBS):
                    self.counts["requests"] += 1
                    self.counts[data.split(b" ", 1)[0].decode()] += 1
                    if b"partNumber=" in data.split(b"\r\n", 1)[0]:
                        self.part_seen.set()
                    if self._break(client, server, data):
                        return
                server.sendall(data)
        _close(client, server)

    def _break(self, client: socket.socket, server: socket.socket, data: bytes) -> bool:
        chosen = self._rng.choices(
            [*self.faults, ""], [*self.faults.values(), 1 - sum(self.faults.values())]
        )[0]
        if not chosen:
            return False
        self.counts[chosen] += 1
        if chosen == "slow":
            time.sleep(self.pause)
            return False
        if chosen == "error":
            client.sendall(ERROR)
            client.shutdown(socket.SHUT_WR)
        else:  # half of it arrives
            server.sendall(data[: len(data) // 2])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _close(client, server)
        return True


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _close(source, sink)


def _close(*sockets: socket.socket) -> None:
    for item in sockets:
        with suppress(OSError):
            item.close()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
