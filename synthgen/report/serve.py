"""Serve a report to this machine's browser, and nothing else.

Bound to 127.0.0.1, GET and HEAD only, one page from memory: a request's path is looked up in a
table and never reaches the file system. The Host header is checked, so that no page of another
site can read the report through a name that resolves to this machine.

A dataset of others may bring a page of theirs, which could send what it reads elsewhere, if only
by leading the browser there. So a page is served only if it was made here (`remember`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Collection
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

from synthgen import __version__
from synthgen.storage.untrusted import quote

ADDRESS = "127.0.0.1"
PAGE = "report/index.html"
"""Where the report lies in a dataset."""

SERVED = ("/", "/index.html")
SCRIPT, STYLE = "explorer.js", "style.css"
_HOST = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


def remember(root: str, page: bytes) -> None:
    """Note for `is_ours` that this page of a dataset's folder was made here and now."""
    with suppress(OSError, RuntimeError):  # no home: then pages are made anew
        note = _note(root)
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.write_text(_words(page), encoding="ascii")


def is_ours(root: str, page: bytes) -> bool:
    """Whether this version made this page of a dataset's folder, for this user on this machine.

    What a dataset itself says of its page is worth nothing: whoever wrote one wrote the other.
    """
    try:
        return _note(root).read_text(encoding="ascii") == _words(page)
    except (OSError, RuntimeError, ValueError):
        return False


def _note(root: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    name = hashlib.sha256(os.path.realpath(root).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(state) / "synthgen" / "pages" / name[:32]


def _words(page: bytes) -> str:
    return f"{__version__} {hashlib.sha256(page).hexdigest()}\n"


def asset(name: str) -> str:
    """The text of one of our own files for the page."""
    return files("synthgen.report").joinpath("assets", name).read_text(encoding="utf-8")


def content_security_policy() -> str:
    """What a page may do: run our script and style, by hash, and show pictures that it holds.

    Nothing else: no network, no other script, no form.

    >>> content_security_policy().split(";")[0]
    "default-src 'none'"
    """
    script, style = (
        base64.b64encode(hashlib.sha256(asset(name).encode("utf-8")).digest()).decode("ascii")
        for name in (SCRIPT, STYLE)
    )
    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{script}'; "
        f"style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    )


def make_server(page: bytes, port: int = 0, hosts: Collection[str] = ()) -> ThreadingHTTPServer:
    """A server of one page that is ready for ``serve_forever``.

    Args:
        page: The report.
        port: 0 takes a free one.
        hosts: More names by which browsers may ask, each with the port that the browser sees or
            without one for any, such as ``localhost:9000`` at the near end of an SSH tunnel.

    Raises:
        ValueError: If a host is no name.
        OSError: If the port is taken.
    """
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(
                f"--host must be a name, or a name and a port, such as localhost:9000. "
                f"Got {quote(host)}."
            )

    class Handler(_ReportHandler):
        content = page
        names = frozenset(host.lower() for host in hosts)

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"--port must be free on {ADDRESS}. Got {port}: {error}. Leave it out for a free one."
        ) from None


class _ReportHandler(BaseHTTPRequestHandler):
    content: bytes
    names: frozenset[str]
    server_version = "synthgen"
    sys_version = ""
    timeout = 60  # seconds that a visitor may be silent

    def do_GET(self) -> None:
        """Answer with the page, or to HEAD with its headers alone."""
        hosts = self.headers.get_all("Host", [])
        if self.request_version == "HTTP/0.9" or self.headers.defects or len(hosts) > 1:
            self.request_version = "HTTP/1.0"  # so that the refusal has a head
            self.send_error(400)
        elif not hosts or not self._is_known(hosts[0].lower()):
            port = self.connection.getsockname()[1]
            self.send_error(
                403,
                explain=f"Ask for http://{ADDRESS}:{port}/, or start 'synthgen view' with --host "
                f"and the name and port in your browser's address bar.",
            )
        elif self.path.partition("?")[0] not in SERVED:
            self.send_error(404)
        else:
            self._send_page()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """No log: the terminal shows the URL."""

    def _is_known(self, host: str) -> bool:
        port = self.connection.getsockname()[1]
        own = {f"{ADDRESS}:{port}", f"localhost:{port}"}
        return host in own | self.names or re.sub(r":[0-9]{1,5}\Z", "", host) in self.names

    def _send_page(self) -> None:
        # sandbox: an origin of its own, so not even cookies of this machine's other servers
        policy = f"{content_security_policy()}; frame-ancestors 'none'; sandbox allow-scripts"
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(self.content)),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.content)
