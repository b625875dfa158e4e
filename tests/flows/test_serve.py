"""`synthgen view` over real sockets: the report and nothing else, on this machine alone."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthgen.report.serve import ADDRESS, make_server, remember

PAGE = b"<!doctype html><title>a report</title>"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with make_server(PAGE, hosts=["localhost:9000", "gpu1"]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def ask(port: int, method: str, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=60)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def send(port: int, request: bytes) -> bytes:
    """All that comes back for raw bytes, which no client library has tidied up."""
    with socket.create_connection((ADDRESS, port), timeout=60) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = list(iter(lambda: connection.recv(65536), b""))
    return b"".join(parts)


def test_the_report_is_answered_to_get_and_head(port: int) -> None:
    assert ask(port, "GET", "/") == (200, PAGE)
    assert ask(port, "GET", "/index.html?x=1") == (200, PAGE)
    assert ask(port, "GET", "/", Host=f"localhost:{port}") == (200, PAGE)
    for host in ("localhost:9000", "gpu1", "GPU1:1234"):  # as --host allows
        assert ask(port, "GET", "/", Host=host) == (200, PAGE)
    raw = send(port, f"HEAD / HTTP/1.1\r\nHost: {ADDRESS}:{port}\r\n\r\n".encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert f"Content-Length: {len(PAGE)}".encode() in head
    assert b"nosniff" in head
    assert body == b""


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/..\\secret.txt"),
        *("/index.html/../../secret.txt", "//secret.txt", "/./index.html", "/notes.txt"),
        *("/etc/passwd", "//etc/passwd", "file:///etc/passwd", "secret.txt", "/index.html%00"),
        *("http://127.0.0.1/index.html", "/report/index.html", "/.", "/\x00", "*"),
    ],
)
def test_no_other_path_leads_to_a_file(port: int, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: {ADDRESS}:{port}\r\n\r\n".encode()
    answer = send(port, request)
    assert answer.startswith(b"HTTP/1.0 404")
    assert b"root:" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "x"])
def test_no_other_method_is_known(port: int, method: str) -> None:
    status, _ = ask(port, method, "/index.html", **{"Content-Length": "0"})
    assert status == 501
    assert ask(port, "GET", "/") == (200, PAGE)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"403"),  # no Host
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),  # DNS rebinding
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"403"),  # another port's page
        (b"GET / HTTP/1.1\r\nHost: localhost:9001\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: gpu1.evil.example\r\n\r\n", b"403"),
        (b"GET /\r\nHost: gpu1\r\n\r\n", b"400"),  # HTTP/0.9
        (b"GET / HTTP/1.1\r\nHost: gpu1\r\nhost: evil.example\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: gpu1\r\nHost: gpu1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: gpu1\r\n : x\r\nno colon\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01 \x00 \x01\r\n\r\n", b"400"),  # a TLS greeting
    ],
)
def test_malformed_and_foreign_requests_are_refused(
    port: int, request_bytes: bytes, status: bytes
) -> None:
    answer = send(port, request_bytes)
    assert status in answer.split(b"\r\n", 1)[0] or b"Error code: " + status in answer
    assert PAGE not in answer


def test_only_this_machine_reaches_it(port: int) -> None:
    """Bound to one address: not to the machine's others, loopback or not."""
    others = {"127.0.0.2", *_own_addresses()} - {ADDRESS}
    for other in others:
        with pytest.raises(OSError), socket.create_connection((other, port), timeout=20):
            pass
    assert ask(port, "GET", "/")[0] == 200


def test_a_silent_visitor_does_not_keep_others_waiting(port: int) -> None:
    with socket.create_connection((ADDRESS, port)):
        assert ask(port, "GET", "/")[0] == 200


def test_a_taken_port_is_one_clear_line(port: int) -> None:
    for taken in (port, 70_000):
        with pytest.raises(OSError, match="must be free") as caught:
            make_server(PAGE, taken)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["", "*", "http://x", "x/y", "a b", "x:", "x\r\ny", "x@y", "\x1b[2J"]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="--host must be a name") as caught:
        make_server(PAGE, hosts=[host])
    assert str(caught.value).isprintable()


@pytest.mark.timeout(600)
def test_view_says_where_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    """And serves the page that was made here, as it is."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_bytes(PAGE)
    remember(str(tmp_path), PAGE)
    code = (  # Ctrl-C works also where the tests run in the background
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from synthgen.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "view", str(tmp_path), "--host", "localhost:9000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"http://{ADDRESS}:")
        port = int(line.split(":")[2].split("/")[0])
        assert ask(port, "GET", "/", Host="localhost:9000") == (200, PAGE)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 0


def _own_addresses() -> set[str]:
    """Addresses of this machine that others may know; none where it has no network."""
    try:
        return set(socket.gethostbyname_ex(socket.gethostname())[2])
    except OSError:
        return set()
