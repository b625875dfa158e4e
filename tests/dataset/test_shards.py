"""Tars: equal bytes for equal samples, and every fault found and named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_records import encode_many, make_record, write_tar

from synthgen.dataset.records import decode_image, encode_image, encode_record
from synthgen.dataset.shards import BrokenShardError, ShardWriter, read_span, scan, spans
from synthgen.dataset.verify import verify_tar
from synthgen.dataset.verify_samples import Problem
from synthgen.storage.publish import Storage, open_storage

Members = dict[str, dict[str, bytes]]


def problems_of(path: Path, num: int = 4, shard: int = 0, deep: bool = True) -> list[Problem]:
    with path.open("rb") as stream:
        return verify_tar(stream, path.name, shard, num, deep)


def kinds_of(path: Path, num: int = 4) -> set[str]:
    return {problem.kind for problem in problems_of(path, num)}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "train-000000.tar", encode_many(4))


def test_a_new_shard_is_correct_and_reproducible(tar: Path, tmp_path: Path) -> None:
    assert problems_of(tar) == []
    again = write_tar(tmp_path / "again.tar", encode_many(4))
    assert again.read_bytes() == tar.read_bytes()


def test_scan_and_spans_agree_with_tarfile(tar: Path) -> None:
    with tar.open("rb") as stream, tarfile.open(tar) as reference:
        members = list(scan(stream))
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in reference]
        found = [(f"{m.key}.{m.suffix}", m.header, m.offset, m.size) for m in members]
        assert found == expected
        for span in spans(iter(members)):
            stream.seek(span.offset)  # the byte range of a sample is a readable tar by itself
            part = io.BytesIO(stream.read(span.size) + b"\0" * 1024)
            with tarfile.open(fileobj=part) as alone:
                content = {m.name: alone.extractfile(m).read() for m in alone}
            assert content == {f"{span.key}.{s}": d for s, d in read_span(stream, span).items()}


def test_every_truncation_is_found(tar: Path) -> None:
    """At every 512-byte boundary; other readers notice almost none of them."""
    content = tar.read_bytes()
    silent = 0
    for size in range(0, len(content), 512):
        cut = tar.with_name("cut.tar")
        cut.write_bytes(content[:size])
        assert problems_of(cut, deep=False), f"cut at {size} of {len(content)} not found"
        silent += _tarfile_accepts(cut)
    assert silent > 10


def test_an_abandoned_writer_leaves_a_tar_that_nobody_takes_for_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    writer = ShardWriter(path)
    writer.write("0000000000", encode_record(make_record("0000000000"), "jpg"))
    writer.abandon()
    with path.open("rb") as stream, pytest.raises(BrokenShardError, match="truncated"):
        list(scan(stream))


def _edit(info: dict[str, object], **changes: object) -> bytes:
    return json.dumps({**info, **changes}).encode()


def _with_json(members: Members, key: str, change: Callable[[dict], None]) -> Members:
    info = json.loads(members[key]["json"])
    change(info)
    members[key]["json"] = json.dumps(info).encode()
    return members


def _foreign(m: Members) -> Members:
    m["0000000002"]["pickle"] = b"cos\nsystem\n(S'true'\ntR."
    return m


def _missing(m: Members) -> Members:
    del m["0000000001"]["txt"]
    return m


def _bad_key(m: Members) -> Members:
    return {("x" if key == "0000000003" else key): value for key, value in m.items()}


def _other_shard(m: Members) -> Members:
    return {("0000070003" if key == "0000000003" else key): value for key, value in m.items()}


def _swapped(m: Members) -> Members:
    return dict(sorted(m.items(), reverse=True))


def _bad_id(m: Members) -> Members:
    mask = decode_image(m["0000000001"]["mask.png"], "L").copy()
    mask[0, 0] = 200
    m["0000000001"]["mask.png"] = encode_image(mask, "png")
    return m


def _wrong_id(m: Members) -> Members:
    mask = decode_image(m["0000000001"]["mask.png"], "L")
    m["0000000001"]["mask.png"] = encode_image(np.where(mask == 1, 0, mask).astype("u1"), "png")
    return m


def _wrong_area(m: Members) -> Members:
    return _with_json(m, "0000000001", lambda info: info["segments"][2].update(area=1))


def _bad_parent(m: Members) -> Members:
    return _with_json(m, "0000000001", lambda info: info["segments"][2].update(parent=99))


def _bad_box(m: Members) -> Members:
    return _with_json(m, "0000000001", lambda info: info["segments"][0].update(bbox_xywh=[0] * 4))


def _bad_json(m: Members) -> Members:
    m["0000000001"]["json"] = b"{"
    return m


def _bad_rle(m: Members) -> Members:
    return _with_json(m, "0000000001", lambda info: info["segments"][0]["rle"].update(counts="00"))


def _wrong_prompt(m: Members) -> Members:
    m["0000000001"]["txt"] = b"something else"
    return m


def _wrong_size(m: Members) -> Members:
    m["0000000001"]["jpg"] = encode_image(np.zeros((8, 8, 3), dtype=np.uint8), "jpg")
    return m


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (_foreign, "foreign member"),
        (_missing, "missing member"),
        (_bad_key, "bad key"),
        (_other_shard, "bad key"),
        (_swapped, "wrong order"),
        (_bad_id, "bad id"),
        (_wrong_id, "bad id"),
        (_wrong_area, "wrong area"),
        (_bad_parent, "bad id"),
        (_bad_box, "wrong box"),
        (_bad_json, "unreadable sample"),
        (_bad_rle, "unreadable sample"),
        (_wrong_prompt, "wrong prompt"),
        (_wrong_size, "wrong size"),
    ],
)
def test_a_fault_in_a_sample_is_named(
    fault: Callable[[Members], Members], kind: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "train-000000.tar", fault(encode_many(4)))
    assert kind in kinds_of(path)
    assert any("000000000" in str(problem) for problem in problems_of(path))


def test_repeated_samples_and_wrong_counts_are_named(tar: Path) -> None:
    assert kinds_of(tar, num=5) == {"wrong count"}
    writer = ShardWriter(tar)
    for key, members in [*encode_many(4).items(), *encode_many(1).items()]:
        writer.write(key, members)
    writer.close()
    assert "duplicate key" in kinds_of(tar)
    writer = ShardWriter(tar)
    for key, members in [*encode_many(1).items(), *encode_many(1).items()]:
        writer.write(key, members)
    writer.close()
    assert "duplicate member" in kinds_of(tar)


def test_links_folders_and_trailing_data_are_named(tar: Path) -> None:
    content = tar.read_bytes()
    tar.write_bytes(content + b"x" * 10240)
    assert kinds_of(tar) == {"trailing data"}
    for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE):
        info = tarfile.TarInfo("0000000000.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as writer:
            writer.addfile(info)
        assert "foreign member" in kinds_of(tar, num=0)
    tar.write_bytes(b"no tar at all".ljust(10240, b"."))
    assert "bad header" in kinds_of(tar)


def test_a_byte_flipped_anywhere_in_a_header_is_found(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    for position in (0, 100, 124, 148, 156, 257):
        changed = bytearray(content)
        changed[position] ^= 1
        tar.write_bytes(changed)
        assert problems_of(tar), f"flip at {position} not found"


def test_storage_goes_the_same_way_on_other_file_systems(tmp_path: Path) -> None:
    for storage in (open_storage(tmp_path / "out"), open_storage("memory://bucket/out")):
        _use(storage, tmp_path)
    assert not list((tmp_path / "out" / ".synthgen" / "staging").iterdir())


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "file::s3://b/x", "http://h/x", "PIPE:x"])
def test_unknown_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="one of the schemes file, memory"):
        open_storage(url)


def _use(storage: Storage, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    staged.write_bytes(b"whole")
    storage.publish(staged, "data/a.tar")
    storage.publish_bytes(b"text", "README.md")
    storage.publish_bytes(b"new text", "README.md")
    assert not staged.exists()
    assert storage.read("data/a.tar") == b"whole"
    assert storage.read("README.md") == b"new text"
    assert storage.read("data/b.tar") is None
    assert storage.size("data/a.tar") == 5
    assert storage.size("nothing/here") is None
    assert storage.names("data") == ["data/a.tar"]
    assert storage.names() == ["README.md"]
    assert storage.names("nothing") == []
    storage.remove("data/a.tar")
    storage.remove("data/a.tar")
    assert storage.names("data") == []


def _tarfile_accepts(path: Path) -> bool:
    try:
        with tarfile.open(path, "r|") as tar:
            return sum(1 for _ in tar) >= 0
    except tarfile.TarError:
        return False
