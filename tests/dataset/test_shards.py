"""Tars: equal bytes for equal samples, and every fault found and named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def _info(change: Callable[[dict[str, Any]], object]) -> Callable[[Members], object]:
    """Something else in the json of the second sample."""

    def edit(members: Members) -> None:
        info = json.loads(members["0000000001"]["json"])
        change(info)
        members["0000000001"]["json"] = json.dumps(info).encode()

    return edit


def _member(name: str, content: bytes, key: str = "0000000001") -> Callable[[Members], object]:
    return lambda members: members[key].update({name: content})


def _ids(change: Callable[[np.ndarray], object]) -> Callable[[Members], object]:
    def edit(members: Members) -> None:
        mask = decode_image(members["0000000001"]["mask.png"], "L")
        change(mask)
        members["0000000001"]["mask.png"] = encode_image(mask, "png")

    return edit


BLACK = encode_image(np.zeros((8, 8, 3), dtype=np.uint8), "jpg")
FAULTS: list[tuple[Callable[[Members], object], str]] = [
    (_member("pickle", b"cos\nsystem\n(S'true'\ntR.", "0000000002"), "foreign member"),
    (lambda members: members["0000000001"].pop("txt"), "missing member"),
    (lambda members: members.update(x=members.pop("0000000003")), "bad key"),
    (lambda members: members.update({"0000070003": members.pop("0000000003")}), "bad key"),
    (lambda members: members.update({"0000000000": members.pop("0000000000")}), "wrong order"),
    (_ids(lambda mask: mask.__setitem__((0, 0), 200)), "bad id"),
    (_ids(lambda mask: mask.__setitem__(mask == 1, 0)), "bad id"),
    (_info(lambda info: info["segments"][2].update(area=1)), "wrong area"),
    (_info(lambda info: info["segments"][2].update(parent=99)), "bad id"),
    (_info(lambda info: info["segments"][0].update(bbox_xywh=[0] * 4)), "wrong box"),
    (_member("json", b"{"), "unreadable sample"),
    (_info(lambda info: info["segments"][0]["rle"].update(counts="00")), "unreadable sample"),
    (_member("txt", b"something else"), "wrong prompt"),
    (_member("jpg", BLACK), "wrong size"),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS)
def test_a_fault_in_a_sample_is_named(
    fault: Callable[[Members], object], kind: str, tmp_path: Path
) -> None:
    members = encode_many(4)
    fault(members)
    problems = problems_of(write_tar(tmp_path / "train-000000.tar", members))
    assert kind in {problem.kind for problem in problems}
    assert any("000000000" in str(problem) for problem in problems)


def test_repeated_samples_and_wrong_counts_are_named(tar: Path) -> None:
    assert kinds_of(tar, num=5) == {"wrong count"}
    for num, kind in ((4, "duplicate key"), (1, "duplicate member")):
        writer = ShardWriter(tar)
        for key, members in [*encode_many(num).items(), *encode_many(1).items()]:
            writer.write(key, members)
        writer.close()
        assert kind in kinds_of(tar)


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


def test_storage_goes_the_same_way_on_other_file_systems(tmp_path: Path) -> None:
    for storage in (open_storage(tmp_path / "out"), open_storage("memory://bucket/out")):
        _use(storage, tmp_path)
    assert not list((tmp_path / "out" / ".synthgen" / "staging").iterdir())


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
