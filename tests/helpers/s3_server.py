"""A real S3 server of this machine, and a proxy before it that breaks what it should not."""

from __future__ import annotations

import hashlib
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

BUCKET = "bucket"
KEY_ID = "an-access-key-id"
READY_SECONDS = 60
RCLONE = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
OTHER_ID = "another-access-key-id"


@contextmanager
def s3_server(folder: Path, secret: str) -> Iterator[int]:
    """Serve a folder's subfolders as buckets with ``rclone serve s3``; gives the port."""
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    options = ("--addr", f"127.0.0.1:{port}", "--vfs-cache-mode", "off", "--config", os.devnull)
    keys = (f'"{key},{secret}"' for key in (KEY_ID, OTHER_ID))
    with (folder.parent / "rclone.log").open("wb") as log:
        server = subprocess.Popen(
            [str(RCLONE), "serve", "s3", *options, str(folder)],
            env={**os.environ, "RCLONE_AUTH_KEY": ",".join(keys)},  # not in `ps`
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


KINDS = ("error", "cut", "slow", "stale", "forget", "lose_upload", "flip", "garble", "expire")
"""What a store does now and then, each of it by itself:

error: 500 · cut: the connection is reset with half of the request sent · slow: a pause
stale: for a while there is no such object, although it was just taken
forget: yes, and the object is not kept · lose_upload: yes, and the parts are gone
flip: one bit of the answer's body is another · garble: one of the request's
expire: the credentials are no longer good, until they are others
"""


@dataclass
class Proxy:
    """Forwards requests to a server, and breaks some of them by a seeded choice.

    Args:
        target: Port of the server.
        faults: Probability per request that each of KINDS strikes, where it can.
        pause: Seconds of a slow one.
        seed: Of the choices.
        expired: Ids of access keys that are no longer good.
    """

    target: int
    faults: dict[str, float] = field(default_factory=dict)
    pause: float = 0.3
    seed: int = 0
    expired: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    part_seen: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Forward until the block ends; gives our port."""
        self.rng, self.lock = random.Random(self.seed), threading.Lock()
        self.denied: dict[str, int] = {}  # path to how often it will be said not to be there
        self.lost: set[str] = set()  # ids of uploads
        handler = type("Handler", (_Handler,), {"proxy": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_address[1]
            server.shutdown()

    def strikes(self, kind: str) -> bool:
        """Whether a fault of this kind strikes now."""
        with self.lock:
            struck = self.rng.random() < self.faults.get(kind, 0.0)
            self.counts[kind] += struck
            return struck

    def flipped(self, content: bytes) -> bytes:
        """The content with another bit somewhere."""
        place = self.rng.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        return bytes(changed)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_one_request(self) -> None:
        with suppress(OSError, ValueError):  # a client that left, a socket that we closed
            super().handle_one_request()

    def do_GET(self) -> None:
        status, content, headers = self._reply()
        self.send_response(status)
        own = {"content-length", "connection", "transfer-encoding", "date", "server"}
        for name, value in headers.items():
            if name.lower() not in own:
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def _reply(self) -> tuple[int, bytes, Mapping[str, str]]:
        """The server's answer, or another."""
        proxy, path = self.proxy, self.path.partition("?")[0]
        query = parse_qs(self.path.partition("?")[2], keep_blank_values=True)
        upload = query.get("uploadId", [""])[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy.counts["requests"] += 1
        proxy.counts[self.command] += 1
        puts = self.command == "PUT" and not upload
        completes = self.command == "POST" and bool(upload)
        expired = any(f"Credential={key}/" in str(self.headers) for key in proxy.expired)
        if expired or proxy.strikes("expire"):
            return _error(403, "ExpiredToken")
        if proxy.strikes("error"):
            return _error(500, "InternalError")
        if proxy.strikes("slow"):
            time.sleep(proxy.pause)
        if "partNumber" in query:
            proxy.part_seen.set()
            if proxy.strikes("lose_upload"):
                proxy.lost.add(upload)
        if upload in proxy.lost:
            return _error(404, "NoSuchUpload")
        if proxy.strikes("cut"):
            reset = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            self.connection.close()
            raise ConnectionError
        if self.command in ("GET", "HEAD") and proxy.denied.get(path, 0) > 0:
            proxy.denied[path] -= 1
            return _error(404, "NoSuchKey")
        if puts and proxy.strikes("forget"):
            return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        if completes and proxy.strikes("forget"):
            return 200, _COMPLETED, {}
        if body and proxy.strikes("garble"):
            body = proxy.flipped(body)
        status, content, headers = self._ask(body)
        if (puts or completes) and status == 200 and proxy.strikes("stale"):
            proxy.denied[path] = proxy.rng.randint(1, 5)
        if content and proxy.strikes("flip"):
            content = proxy.flipped(content)
        return status, content, headers

    def _ask(self, body: bytes) -> tuple[int, bytes, Mapping[str, str]]:
        server = HTTPConnection("127.0.0.1", self.proxy.target)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name not in ("Expect", "Connection"):
                server.putheader(name, value)
        server.endheaders(body)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        return answer.status, content, dict(answer.headers)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


_COMPLETED = b'<CompleteMultipartUploadResult><ETag>"0"</ETag></CompleteMultipartUploadResult>'


def _error(status: int, code: str) -> tuple[int, bytes, Mapping[str, str]]:
    text = f"<Error><Code>{code}</Code><Message>{code}, says the proxy</Message></Error>"
    return status, text.encode(), {}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
