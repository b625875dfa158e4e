"""Serve a report to this machine's browser, and nothing else.

Bound to 127.0.0.1, GET and HEAD only, three names and no other path: a request's path is looked
up in a table and never reaches the file system. The Host header is checked, so that no page of
another site can read the report through a name that resolves to this machine.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS = "127.0.0.1"
PAGE = "report/index.html"
"""Where the report lies in a dataset."""

SERVED: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/index.html": ("index.html", "text/html; charset=utf-8"),
    "/contact-sheet.png": ("contact-sheet.png", "image/png"),
}

POLICY = (
    "default-src 'none'; img-src 'self' data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Whoever wrote the page, for a dataset may bring its own: it sends nothing anywhere."""


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a report folder that is ready for ``serve_forever``.

    Args:
        folder: Where ``index.html`` lies.
        port: 0 takes a free one.

    Raises:
        OSError: If the port is taken.
    """

    class Handler(_ReportHandler):
        root = folder

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"--port must be free on {ADDRESS}. Got {port}: {error}. Leave it out for a free one."
        ) from None


class _ReportHandler(BaseHTTPRequestHandler):
    root: Path
    server_version = "synthgen"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with a file of the table."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with its headers."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """No log: the terminal shows the URL."""

    def _answer(self, with_body: bool) -> None:
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in {f"{ADDRESS}:{port}", f"localhost:{port}"}:
            self.send_error(403)
            return
        name, kind = SERVED.get(self.path.partition("?")[0], ("", ""))
        content = _read(self.root / name) if name else None
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(content)


def _read(path: Path) -> bytes | None:
    """Content of a plain file; None for a link, which may lead out of the report, and the rest."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            return stream.read() if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else None
    except OSError:
        return None
