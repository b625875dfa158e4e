"""The threat table's own tests: bombs, names that are paths, the report server, forbidden calls.

What is malformed at random is in ``test_fuzz.py``.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import tomllib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from made_export import add_audit, make_dataset
from made_records import encode_many, make_record
from made_report import write_made
from resident import memory_below
from tiny_run import rewrite

from synthgen.cli import report, verify
from synthgen.config import load, parse
from synthgen.dataset import shards
from synthgen.dataset.audits import check_audit_id, parse_table
from synthgen.dataset.labels import check_label_id
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.masks import segmentation_settings
from synthgen.dataset.metadata import parse_rows
from synthgen.dataset.records import decode_image, decode_sample, encode_image, encode_record
from synthgen.dataset.rle import encode_masks
from synthgen.dataset.shards import scan, spans
from synthgen.dataset.verify import verify_dataset
from synthgen.dataset.verify_samples import verify_sample
from synthgen.jobs import export
from synthgen.jobs.merge import merge
from synthgen.report import serve
from synthgen.report.labels import Labels
from synthgen.report.page import write_report
from synthgen.report.samples import show
from synthgen.report.serve import ADDRESS, make_server, remember
from synthgen.storage.publish import open_storage

ROOT = Path(__file__).parents[1]
MEGABYTE = 2**20


# --- the table -----------------------------------------------------------------------------------


# --- forbidden calls -----------------------------------------------------------------------------

PLANTED = """
import pickle, subprocess, yaml, marshal, tarfile
pickle.load(stream)
eval(text)
exec(text)
subprocess.run(text, shell=True)
yaml.load(text, Loader=yaml.Loader)
marshal.loads(data)
tarfile.open(path).extractall()
"""


def test_ruff_forbids_pickle_shell_eval_and_yaml_load() -> None:
    """Its bandit rules are on for the package, and only these places are excused."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json"]
    done = subprocess.run(
        [*command, "--stdin-filename", "synthgen/planted.py", "-"],
        input=PLANTED, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    found = {item["code"] for item in json.loads(done.stdout)}
    assert {"S301", "S302", "S307", "S102", "S602", "S506", "S202"} <= found
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert {code for code in settings["ignore"] if code[0] == "S"} == {"S101", "S311"}
    excused = {code for text in sources().values() for code in re.findall(r"noqa: (S\d+)", text)}
    assert excused <= {"S603", "S608", "S704"}  # an own argv, own table names, own HTML


def test_tensors_are_loaded_without_pickles_and_without_foreign_code() -> None:
    """What ruff has no rule for."""
    for path, text in sources().items():
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            options = {item.arg: ast.unparse(item.value) for item in call.keywords}
            if name == "torch.load":
                assert options.get("weights_only") == "True", path
            assert options.get("allow_pickle", "False") == "False", path
            assert options.get("trust_remote_code", "False") == "False", path
            assert options.get("use_safetensors", "True") == "True", path
            assert name not in ("torch.hub.load", "joblib.load", "os.system", "os.popen"), path


def sources() -> dict[Path, str]:
    files = [*(ROOT / "synthgen").rglob("*.py")]
    return {path: path.read_text(encoding="utf-8") for path in files}


# --- kilobytes that stand for gigabytes ----------------------------------------------------------


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A gray PNG of zeros, and more chunks."""
    rows = zlib.compressobj(1)
    body = b"".join(rows.compress(bytes(1 + width)) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_images_are_measured_before_they_are_decoded() -> None:
    text = b"a\0\0" + zlib.compress(bytes(80 * MEGABYTE), 1)
    bombs = [png(9_000, 9_000), png(8, 8, (b"zTXt", text), (b"iCCP", text))]
    jpeg = bytearray(encode_record(make_record("0000000000"), "jpg")["jpg"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    for bomb in (*bombs, bytes(jpeg)):
        assert len(bomb) < MEGABYTE
        with memory_below(150 * MEGABYTE), pytest.raises(ValueError, match="image must"):
            decode_image(bomb)


def test_masks_are_counted_before_they_are_decoded() -> None:
    """A megabyte of json for a terabyte of masks."""
    size = 4096
    members = dict(encode_record(make_record("0000000000", num=1), "png"))
    info = json.loads(members["json"])
    empty = {"size": [size, size], "counts": "PPPP0P"}
    segment = {**info["segments"][0], "rle": empty}
    info.update(height=size, width=size, segments=[segment] * 4_000, num_segments=4_000)
    members |= {"json": json.dumps(info).encode(), "mask.png": png(size, size)}
    members["png"] = members["mask.png"]
    with memory_below(400 * MEGABYTE), pytest.raises(ValueError, match="pixels in all"):
        decode_sample("0000000000", members)


def test_masks_are_decoded_one_at_a_time() -> None:
    """A sample of 40 kB with 15 masks of 2048 x 2048; all at once they took 260 MB."""
    side, key = 2048, "0000000000"
    members = dict(encode_record(make_record(key, num=1), "png"))
    info = json.loads(members["json"])
    whole = {
        **info["segments"][0],
        "area": side * side, "bbox_xywh": [0, 0, side, side], "parent": 0,
        "rle": encode_masks(np.ones((1, side, side), dtype=bool))[0],
    }  # fmt: skip
    segments = [{**whole, "id": number} for number in range(1, 16)]
    info.update(height=side, width=side, segments=segments, num_segments=15)
    members |= {"json": json.dumps(info).encode(), "png": png(side, side)}
    members["mask.png"] = encode_image(np.full((side, side), 15, dtype=np.uint8), "png")
    assert sum(map(len, members.values())) < 60_000
    with memory_below(110 * MEGABYTE):
        assert list(verify_sample("x", key, members, deep=True)) == []
    read = Labels(open_storage("nowhere"), None, {}).read_sample(key, members)
    with memory_below(150 * MEGABYTE):
        show(key, members, read, {}, None, None, 10**6)
    with memory_below(150 * MEGABYTE):  # 63 of them are the masks, which the user asks for
        assert decode_sample(key, members)["masks"].all()


def test_members_are_counted_and_so_are_problems(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar of 300,000 empty members took a gigabyte and 1,190,000 lines."""
    monkeypatch.setattr(shards, "MAX_SAMPLES", 500)  # for time's sake
    headers = (tarfile.TarInfo(f"{number:010d}.txt").tobuf() for number in range(3_000))
    tar = b"".join(headers) + bytes(1024)
    (world / "data/data/train-000001.tar").write_bytes(tar + bytes(-len(tar) % 10240))
    marker = world / "data/stats/train-000001.json"
    rewrite(marker, bytes=len(tar))
    with memory_below(100 * MEGABYTE), pytest.raises(typer.Exit):
        verify.verify(str(world / "data")).tell()
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == verify.MAX_PROBLEMS
    assert re.search(r"\d{4} problems in .* \(100 shown\): 1500 missing member", printed.err)
    assert "too many members" in printed.err
    with pytest.raises(ValueError, match="too many members"):
        list(spans(scan(io.BytesIO(b"".join(
            tarfile.TarInfo(f"0.{number}").tobuf() for number in range(300)
        )))))  # fmt: skip


def parquet(num_rows: int) -> bytes:
    stream = io.BytesIO()
    column = pa.DictionaryArray.from_arrays(np.zeros(num_rows, dtype=np.int32), ["x" * 1000])
    pq.write_table(pa.table({"key": column, "keep": column, "reason": column}), stream)
    return stream.getvalue()


@pytest.mark.parametrize("read", [parse_rows, parse_table])
def test_tables_say_how_large_they_are_before_they_are_read(
    read: Callable[[bytes], Any],
) -> None:
    bomb = parquet(2_000_000)
    assert len(bomb) < MEGABYTE
    with memory_below(100 * MEGABYTE), pytest.raises(ValueError, match="2,000,000 rows"):
        read(bomb)


def sparse_member() -> bytes:
    """A GNU sparse member of a terabyte, without any data."""
    info = tarfile.TarInfo("0000000000.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (8**11 - 1)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return bytes(header) + bytes(10240 - 512)


def test_tars_stay_as_large_as_they_are(tmp_path: Path) -> None:
    """webdataset's reader unpacks compressed tars and fills up sparse members; ours refuses."""
    info = tarfile.TarInfo("0000000000.png")
    info.size = 300 * MEGABYTE
    whole = info.tobuf() + bytes(info.size + 10240 - 512)
    (tmp_path / "gzip.tar").write_bytes(gzip.compress(whole, 1))
    del whole
    (tmp_path / "large.tar").write_bytes(info.tobuf())
    (tmp_path / "sparse.tar").write_bytes(sparse_member())
    for name, size in (("large.tar", info.size + 10240), ("zeros.tar", 2**40)):
        with (tmp_path / name).open("ab") as stream:
            stream.truncate(size)  # takes no space
    for name, kind in (
        ("gzip.tar", "bad header"),
        ("large.tar", "large member"),
        ("sparse.tar", "foreign member"),
        ("zeros.tar", "trailing data"),
    ):
        with memory_below(50 * MEGABYTE), pytest.raises(ValueError, match=kind):
            list(open_dataset(tmp_path / name))
        with (tmp_path / name).open("rb") as stream, pytest.raises(ValueError, match=kind):
            list(scan(stream))


def test_yaml_aliases_stand_for_nothing(tmp_path: Path) -> None:
    """Billion laughs, also through merge keys, which PyYAML writes out while it reads."""
    names = "abcdefghi"
    ten = [(name, ", ".join([f"*{before}"] * 10)) for before, name in pairwise(names)]
    lists = [f"{name}: &{name} [{aliases}]" for name, aliases in ten]
    merged = [f"{name}: &{name} {{<<: [{aliases}]}}" for name, aliases in ten]
    for first, rest in (("a: &a [x]", lists), ("a: &a {x: 1}", merged)):
        text = "\n".join([first, *rest, "prompts: *i"])
        (tmp_path / "bomb.yaml").write_text(text)
        with memory_below(20 * MEGABYTE), pytest.raises(ValueError, match="an alias"):
            load(tmp_path / "bomb.yaml")
    with memory_below(20 * MEGABYTE), pytest.raises(ValueError, match="at most 1,048,576 bytes"):
        load("/dev/zero")
    assert parse(b"num: 3").num == 3


# --- names that are paths ------------------------------------------------------------------------

HOSTILE = (
    "../../outside/x", "/etc/passwd", "..", ".", "", "a/../../b", "data/../../outside/x",
    "data/train-000000.tar/../../../outside/x.tar", "..\\..\\x", "~/x", "a\0b", "a\nb",
    "data/train-000000.tar\n", "%2e%2e/x", "file:///etc/passwd", "pipe:touch owned",
)  # fmt: skip

_watched: list[Path] = []
_opened: list[Path] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.remove", "os.rename", "os.mkdir", "os.listdir"):
        path = arguments[0]
        found = Path(path).absolute() if isinstance(path, str | Path) else Path()
        if _watched[0] in found.parents:
            _opened.append(found)
        elif str(path).startswith("/etc/passwd"):
            _opened.append(Path(path))


sys.addaudithook(_hook)


@contextmanager
def only_inside(parent: Path, *allowed: str) -> Iterator[None]:
    """Nothing below ``parent`` is opened, listed, moved or removed but in the allowed folders."""
    _opened.clear()
    _watched.append(parent)
    try:
        yield
    finally:
        _watched.clear()
    inside = [parent / name for name in allowed]
    for path in _opened:
        resolved = path.resolve()
        assert any(folder in (resolved, *resolved.parents) for folder in inside), path


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A dataset beside a folder that no name of its may lead to."""
    make_dataset(tmp_path / "in" / "data", num=4, shard_size=2, labeled=False, image_format="png")
    add_audit(tmp_path / "in" / "data", "a", set())
    (tmp_path / "in" / "outside").mkdir()
    for name in ("x", "x.tar", "x.json"):
        shutil.copy(tmp_path / "in/data/data/train-000000.tar", tmp_path / "in/outside" / name)
    return (tmp_path / "in").resolve()


@pytest.mark.parametrize("check", [check_audit_id, check_label_id])
def test_ids_cannot_become_other_folders(check: Callable[[str], str]) -> None:
    for name in HOSTILE:
        with pytest.raises(ValueError) as caught:
            check(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_leads_nowhere_else(name: str, world: Path) -> None:
    """Every reader of manifests: loader, verify, export, audit rows, report, merge."""
    data = world / "data"
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["shards"][1]["name"] = name
    rewrite(data / "manifest.json", shards=manifest["shards"])
    readers: list[Callable[[], Any]] = [
        lambda: list(open_dataset(data)),
        lambda: list(open_dataset(data, audited="a")),
        lambda: export(data, world / "out", "coco"),
        lambda: write_report(data),
        lambda: merge([data, data], world / "merged"),
    ]
    with only_inside(world, "data", "out", "merged"):
        for read in readers:
            with pytest.raises(ValueError) as caught:
                read()
            assert "\n" not in str(caught.value)
        kinds = {problem.kind for problem in verify_dataset(data)}
    assert "unreadable file" in kinds
    assert not (data / "report").exists()


def test_markers_and_keys_lead_nowhere_else(world: Path) -> None:
    data = world / "data"
    for name in HOSTILE:
        rewrite(data / "stats" / "train-000001.json", name=name)
        rewrite(data / "audit" / "a" / "train-000001.json", name=name, annotations_from=name)
        with only_inside(world, "data"):
            assert "bad marker" in {problem.kind for problem in verify_dataset(data)}
            with pytest.raises(ValueError, match="audit a must be about every shard"):
                open_dataset(data, audited="a")
            for version in (0, -1, 10**30):
                with pytest.raises(ValueError, match="version must be one"):
                    open_dataset(data, version=version)


def test_readers_import_no_plug_in_of_a_dataset(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes a dataset writes its configuration: its names are not imported by readers."""
    data = world / "data"
    (world / "planted_plug_in.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(world))
    tree = yaml.safe_load((data / "config.yaml").read_text())
    tree["model"]["card"] = tree["segmentation"]["method"] = "planted_plug_in:run"
    tree["labeling"]["method"] = tree["labeling"]["refiner"] = "planted_plug_in:run"
    (data / "config.yaml").write_text(yaml.safe_dump(tree))
    assert parse((data / "config.yaml").read_bytes()).model.card == "planted_plug_in:run"
    assert len(list(open_dataset(data, audited="a"))) == 4
    verify_dataset(data, deep=True)
    export(data, world / "out", "coco")
    segmentation_settings(open_storage(data))
    assert "planted_plug_in" not in sys.modules


def test_foreign_files_are_named_and_links_are_no_shards(world: Path) -> None:
    data = world / "data"
    (data / "data" / "train-000002.tar").symlink_to(world / "outside" / "x.tar")
    (data / "data" / "evil\n\x1b[2J.tar").write_bytes(b"x")
    assert "data/train-000002.tar" not in open_storage(data).names("data")
    (problem,) = verify_dataset(data)
    assert (problem.kind, problem.where) == ("no plain file", "data/train-000002.tar")
    (data / "data" / "train-000002.tar").unlink()
    found = verify_dataset(data)
    assert "foreign file" in {problem.kind for problem in found}
    assert all(str(problem).isprintable() for problem in found)


# --- the report server ---------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[int]:
    with make_server(b"<p>ours") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def ask(port: int, path: str, host: str) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    answer = response.status, response.read(), str(response.headers)
    connection.close()
    return answer


@pytest.mark.parametrize("note", ["none", "another page", "another folder", "another release"])
def test_a_page_of_others_is_not_served(
    note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a dataset brings as its report: it stands there, and another one is served."""
    data, foreign = (
        write_made(tmp_path / "data"),
        b"<script>location = 'http://evil.example'</script>",
    )
    shown: list[bytes] = []
    monkeypatch.setattr(
        ThreadingHTTPServer, "serve_forever",
        lambda server: shown.append(server.RequestHandlerClass.content),
    )  # fmt: skip
    write_report(data, num=2)
    ours = (data / "report" / "index.html").read_bytes()
    report.view(str(data))
    assert shown.pop() == ours
    assert "made anew" not in capsys.readouterr().err
    (data / "report" / "index.html").write_bytes(foreign)
    (data / "report" / "index.html.sha256").write_text(hashlib.sha256(foreign).hexdigest())
    if note == "another folder":
        remember(str(tmp_path), foreign)
    elif note == "another release":
        with monkeypatch.context() as other:
            other.setattr(serve, "__version__", "0.0.1")
            remember(str(data), foreign)
    elif note == "none":
        shutil.rmtree(Path(os.environ["XDG_STATE_HOME"]) / "synthgen", ignore_errors=True)
    report.view(str(data))
    (page,) = shown
    assert b"evil" not in page
    assert b"<title>" in page
    assert "made anew" in capsys.readouterr().err
    assert (data / "report" / "index.html").read_bytes() == foreign


def test_the_page_has_no_network_and_no_origin(served: int) -> None:
    headers = ask(served, "/", f"{ADDRESS}:{served}")[2]
    policy = re.findall("Content-Security-Policy: (.*)", headers)[0]
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy  # falls back to none
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert policy.endswith("; sandbox allow-scripts")


def test_no_other_host_name_is_answered(served: int) -> None:
    """DNS rebinding: a page elsewhere whose name resolves to this machine."""
    port = served
    assert ask(port, "/", f"{ADDRESS}:{port}")[:2] == (200, b"<p>ours")
    for host in (
        *("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1"),
        *(f"localhost.evil.example:{port}", f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}@evil", ""),
        *(f"[::1]:{port}", f"0.0.0.0:{port}", f"2130706433:{port}", f"LOCALHOST:{port}x"),
    ):
        assert ask(port, "/", host)[0] == 403, host
    with socket.create_connection((ADDRESS, port), timeout=60) as connection:
        connection.sendall(f"GET /\0 HTTP/1.1\r\nHost: {ADDRESS}:{port}\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        assert b"ours" not in b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_made_tars_are_whole() -> None:
    """What bombs are made from is readable before it is forged."""
    assert len(encode_many(2)) == 2
    assert decode_image(png(8, 8), "L").shape == (8, 8)
    column = parquet(10)
    assert pq.read_table(io.BytesIO(column)).num_rows == 10
