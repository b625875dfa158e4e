"""Untrusted input at random: a valid result, or one ValueError of one short printable line.

Never another exception, a hang, gigabytes from kilobytes, or a file outside. The properties run as
users run them: without the run-time type checks of the other tests, which would hide what a wrong
type does. ``-m slow`` runs the same properties fifty times longer, on other examples.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_records import encode_many, make_record
from pycocotools import mask as coco

from synthgen.config import Config, dump, load, parse
from synthgen.dataset.audits import AuditRow, parse_table, read_audit_marker, table_bytes
from synthgen.dataset.labels import class_names, read_labels_marker
from synthgen.dataset.manifest import build_manifest, marker_bytes, parse_marker, read_manifest
from synthgen.dataset.metadata import Row, parse_rows, rows_bytes
from synthgen.dataset.records import decode_image, decode_sample, encode_image, encode_record
from synthgen.dataset.rle import decode_masks, encode_masks, run_lengths
from synthgen.dataset.shards import BrokenShardError, scan, spans
from synthgen.dataset.verify import verify_tar
from synthgen.dataset.verify_samples import MAX_LINE, verify_sample
from synthgen.jobs.identity import read_identity
from synthgen.prompts import load_prompts
from synthgen.storage.publish import Storage, open_storage
from synthgen.storage.urls import SCHEMES, open_url
from synthgen.types import Verdict

FACTOR = int(os.environ.get("SYNTHGEN_FUZZ", "1"))
LONGEST = 600
KEY = "0000000001"


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Settings of a property: the same examples in every quick run, others at length."""
    return settings(
        max_examples=examples * FACTOR,
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True, scope="module")
def as_users_run_it() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result; None after a ValueError that a user can read."""
    try:
        return function(*arguments)
    except ValueError as error:
        caught = error
    assert type(caught) in (ValueError, BrokenShardError), repr(caught)
    message = str(caught)
    assert message.isprintable(), repr(message)
    assert 0 < len(message) <= LONGEST, message
    return None


# --- values --------------------------------------------------------------------------------------

HOSTILE = st.sampled_from(
    [
        *("../../x", "/etc/passwd", "a\nb", "\x1b[2J", "\u202e", "", "x" * 5000, "pipe:id", "\0"),
        *(10**4000, -(2**63), 1e308, float("nan"), float("inf"), True, None, [], {}, -1, 2**40),
    ]
)
SCALARS = st.one_of(HOSTILE, st.integers(), st.floats(), st.text(max_size=20), st.booleans())
NAMES = st.sampled_from(
    [
        *("id", "prompt", "prompt_sd", "classes", "name", "caption", "image_id", "category_id"),
        *("annotations", "categories", "images", "key", "segments", "rle", "size", "counts"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=6),
    ),
    max_leaves=12,
)
DEEP = [b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900, b"[" * 100_000]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def edits(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one to three of its values replaced, removed or added to."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        while True:
            places = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not places:
                break
            place = draw(st.sampled_from(places))
            inner = node[place]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                node = inner
                continue
            if draw(st.integers(0, 9)) == 0:
                del node[place]
            else:
                node[place] = draw(VALUES)
            break
    return tree


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some flipped, cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 512, 1024]))
        kind = draw(st.sampled_from(["flip", "fill", "cut", "double", "put", "end"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "fill":
            data[at : at + length] = bytes([draw(st.sampled_from([0, 48, 128, 255]))]) * length
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "put":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            del data[at:]
    return bytes(data)


# --- prompts -------------------------------------------------------------------------------------

ENTRIES = st.fixed_dictionaries(
    {"prompt": st.text(max_size=30) | VALUES, "classes": st.lists(st.text(max_size=9)) | VALUES},
    optional={"id": st.text(max_size=9) | SCALARS, "prompt_sd": VALUES},
)


def check_prompts(path: str) -> None:
    prompts = outcome(load_prompts, path)
    if prompts is not None:
        assert len({prompt.id for prompt in prompts}) == len(prompts) > 0
        for prompt in prompts:
            assert all(0 < len(text) <= 2000 for text in (prompt.id, prompt.text))
            assert len(prompt.id) <= 210  # 200, and the number of a copy
            assert "\n" not in prompt.text + prompt.id + "".join(prompt.class_names)


@fuzz(60)
@given(lines=st.lists(st.one_of(ENTRIES.map(as_json), VALUES.map(as_json), st.binary())))
@example(lines=DEEP[:1])
@example(lines=DEEP[1:2])
@example(lines=DEEP[2:])
@example(lines=[b'{"prompt": "a", "classes": [], "id": ' + b"9" * 4000 + b"}"])
def test_prompt_lists_and_lines(folder: Path, lines: list[bytes]) -> None:
    for name, content in (
        ("p.jsonl", b"\n".join(lines)),
        ("p.json", b"[" + b",".join(lines) + b"]"),
        ("p.txt", b"\n".join(lines)),
    ):
        (folder / name).write_bytes(content)
        check_prompts(str(folder / name))


CAPTIONS = {
    "annotations": [{"id": 1, "image_id": 7, "caption": "a cat"}, {"id": 2, "image_id": 8,
                                                                   "caption": "a dog"}]
}  # fmt: skip
INSTANCES = {
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [{"image_id": 7, "category_id": 1}, {"image_id": 8, "category_id": 2}],
}


@fuzz(60)
@given(captions=edits(CAPTIONS) | VALUES, instances=edits(INSTANCES) | st.just(INSTANCES))
def test_coco_captions(folder: Path, captions: Any, instances: Any) -> None:
    (folder / "captions.json").write_bytes(as_json(captions))
    (folder / "instances.json").write_bytes(as_json(instances))
    check_prompts(f"{folder}/captions.json+{folder}/instances.json")


@fuzz(80)
@given(
    scheme=st.sampled_from(["", "pipe:", "x::file://", "http://", *(f"{s}://" for s in SCHEMES)]),
    rest=st.text(max_size=20) | st.sampled_from(["me:pw@b/x", "[", "x?sig=y", "a" * 300, "a#b"]),
)
def test_urls(folder: Path, scheme: str, rest: str) -> None:
    before = sorted(folder.rglob("*"))
    found = outcome(open_url, scheme + rest)
    if found is not None:
        assert scheme.removesuffix("://") in SCHEMES or rest.lower().startswith(SCHEMES)
    if scheme in ("", "pipe:", "x::file://", "http://"):
        outcome(load_prompts, scheme + rest)
        outcome(open_storage, scheme + rest)
    assert sorted(folder.rglob("*")) == before


# --- configurations ------------------------------------------------------------------------------

KEYS = sorted(
    f"{section}.{name}" if isinstance(value, dict) else section
    for section, value in Config().model_dump().items()
    for name in (value if isinstance(value, dict) else [section])
)
YAML = st.one_of(
    st.text(max_size=40),
    VALUES.map(lambda value: json.dumps(value)),
    st.sampled_from([".nan", "-.inf", "2020-13-45", "!!timestamp x", "!!bool x", "0x" + "f" * 5000,
                     "!!python/object/apply:os.system [id]", "&a [*a]", "[" * 2000, "- " * 2000,
                     "? [a]\n: b", "!!int x", "!!binary x", "a: !!set {b}", "{<<: {a: 1}}"]),
)  # fmt: skip


def check_config(config: Config | None) -> None:
    if config is not None:
        assert parse(dump(config).encode()) == config
        json.dumps(config.digest_settings(), allow_nan=False)


@fuzz(120)
@given(key=st.sampled_from(KEYS), value=YAML)
def test_overrides(key: str, value: str) -> None:
    check_config(outcome(load, None, [f"{key}={value}"]))
    check_config(outcome(load, None, [f"{value}{key}"]))


@fuzz(60)
@given(content=st.binary(max_size=60) | YAML.map(str.encode) | edits(
    Config().model_dump(mode="json")).map(as_json))  # fmt: skip
def test_configurations(content: bytes) -> None:
    check_config(outcome(parse, content))


# --- shards --------------------------------------------------------------------------------------

SAMPLE = encode_record(make_record(KEY, 1, num=4), "png")
TAR = io.BytesIO()
with tarfile.open(fileobj=TAR, mode="w", format=tarfile.USTAR_FORMAT) as made:
    for _key, _members in encode_many(2, image_format="png").items():
        for _suffix, _content in _members.items():
            _info = tarfile.TarInfo(f"{_key}.{_suffix}")
            _info.size = len(_content)
            made.addfile(_info, io.BytesIO(_content))


def check_tar(content: bytes) -> None:
    for problem in verify_tar(io.BytesIO(content), "train-000000.tar", 0, 2, deep=True):
        assert str(problem).isprintable(), problem
        assert len(str(problem)) <= MAX_LINE
    outcome(lambda: list(spans(scan(io.BytesIO(content)))))


def test_the_tar_that_is_damaged_was_whole() -> None:
    assert verify_tar(io.BytesIO(TAR.getvalue()), "train-000000.tar", 0, 2, deep=True) == []


@fuzz(60)
@given(content=st.binary(max_size=2000) | damaged(TAR.getvalue()))
def test_damaged_tars(content: bytes) -> None:
    check_tar(content)


@fuzz(60)
@given(
    members=st.lists(
        st.tuples(
            st.text(max_size=30) | st.sampled_from(["../x", "/x.json", "a\nb.txt", f"{KEY}.json"]),
            st.sampled_from([*tarfile.REGULAR_TYPES, b"1", b"2", b"5", b"S", b"L", b"x", b"V"]),
            st.integers(-(2**62), 2**62) | st.sampled_from([0, -512, -1024, -1536, 2**40]),
        ),
        max_size=4,
    )
)
@example(members=[("a.json", b"0", 0), ("b.json", b"0", -1024)])  # an endless circle
@example(members=[("a\x1b[2Jb.json", b"0", 2**40)])
def test_forged_headers(members: list[tuple[str, bytes, int]]) -> None:
    content = b""
    for name, kind, size in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        try:
            content += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        except (ValueError, UnicodeError):
            continue
    check_tar(content + bytes(10240))


@fuzz(150)
@given(info=edits(json.loads(SAMPLE["json"])) | VALUES)
def test_forged_samples(info: Any) -> None:
    members = {**SAMPLE, "json": as_json(info)}
    for problem in verify_sample("x", KEY, members, deep=True):
        assert str(problem).isprintable()
        assert len(str(problem)) <= MAX_LINE
    outcome(decode_sample, KEY, members)


@pytest.mark.parametrize("content", DEEP)
def test_deep_json_is_no_sample_marker_or_manifest(content: bytes, folder: Path) -> None:
    members = {**SAMPLE, "json": content}
    assert [p.kind for p in verify_sample("x", KEY, members, deep=True)] == ["unreadable sample"]
    assert outcome(decode_sample, KEY, members) is None
    check_descriptions(folder, content)


@fuzz(150)
@given(counts=st.text(alphabet=[chr(c) for c in range(44, 115)]) | st.text(), extra=VALUES)
def test_forged_run_lengths(counts: str, extra: Any) -> None:
    """What passes is what pycocotools sees; nothing else may reach its decoder."""
    for rle in ({"size": [4, 6], "counts": counts}, {"size": extra, "counts": counts}):
        try:
            runs = run_lengths(rle)
            masks = decode_masks([rle], 4, 6)
        except (ValueError, TypeError, KeyError):
            continue  # callers take all three for a broken sample
        assert int(runs.sum()) == 24
        np.testing.assert_array_equal(masks[0], coco.decode(rle))
        assert encode_masks(masks)[0]["size"] == [4, 6]


_PIXELS = make_record(KEY).image
IMAGES = {name: encode_image(_PIXELS, name) for name in ("jpg", "png", "webp")}


@fuzz(60)
@given(data=st.data(), kind=st.sampled_from(sorted(IMAGES)))
def test_damaged_images(data: st.DataObject, kind: str) -> None:
    content = data.draw(damaged(IMAGES[kind]))
    for mode in ("RGB", "L"):
        pixels = outcome(decode_image, content, mode)
        assert pixels is None or (pixels.dtype == np.uint8 and pixels.size < 2**26 * 3)


# --- what datasets say of themselves -------------------------------------------------------------

MARKER = {
    "name": "train-000000", "config": "0" * 64, "planned": 2, "counts": {"ok": 2}, "reasons": {},
    "bytes": 10240, "sha256": "0" * 64, "skipped": False, "batch_size": 1,
    "seconds": {"generate": 1.0}, "created": "", "environment": {}, "schema_version": 1,
    "metadata_sha256": "", "previews_sha256": "",
}  # fmt: skip
AUDIT_MARKER = {
    "name": "train-000000", "digest": "", "annotations_digest": "", "settings": {"a": {"b": 1}},
    "tar_sha256": "", "sha256": "", "bytes": 1, "samples": 1, "reasons": {}, "created": "",
    "annotations_from": "", "seconds": {}, "schema_version": 1,
}  # fmt: skip
LABEL_MARKER = {
    "name": "train-000000", "digest": "", "tar_sha256": "", "sha256": "", "bytes": 1, "samples": 1,
    "statistics": {}, "seconds": 0.0, "created": "", "schema_version": 1,
}  # fmt: skip
MANIFEST = build_manifest([parse_marker(as_json(MARKER), "train-000000")], "0" * 64, [], {})
MANIFEST["schema_version"] = 1  # has no seal, with which every edit would be refused
IDENTITY = {"digest": "0" * 64, "content": {"model": {"id": "x"}}, "environments": [{}]}
DESCRIPTIONS = st.sampled_from(
    [MARKER, AUDIT_MARKER, LABEL_MARKER, MANIFEST, IDENTITY, {"1": "x"}]
)


def check_descriptions(folder: Path, content: bytes) -> None:
    """The same bytes in the place of every small file that readers believe."""
    storage: Storage = open_storage(folder / "described")
    for name in ("manifest.json", "manifests/v0001.json", "identity.json", "classes.json",
                 "audit/a/train-000000.json", "labels/a/train-000000.json"):  # fmt: skip
        path = folder / "described" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    marker = outcome(parse_marker, content, "train-000000")
    assert marker is None or json.loads(marker_bytes(marker)) == {
        **json.loads(content), "environment": marker.environment,
        "schema_version": marker.schema_version}  # fmt: skip
    manifest = outcome(read_manifest, storage)
    assert outcome(read_manifest, storage, 1) == manifest
    for row in manifest["shards"] if manifest else ():
        assert (storage.local_root / row["name"]).resolve().parent == folder / "described/data"
    audited = read_audit_marker(storage, "a", "train-000000")
    assert audited is None or audited.rejected == sum(audited.reasons.values())
    labeled = read_labels_marker(storage, "a", "train-000000")
    assert labeled is None or isinstance(labeled.statistics, dict)
    outcome(class_names, storage)
    outcome(read_identity, storage)


@fuzz(120)
@given(content=DESCRIPTIONS.flatmap(edits).map(as_json) | st.binary(max_size=40))
def test_forged_descriptions(folder: Path, content: bytes) -> None:
    check_descriptions(folder.resolve(), content)


ROWS = rows_bytes([Row("0", "ok", "", "", "p", "a cat", ("cat",), 0, 1, 0) for _ in range(9)])
TABLE = table_bytes([AuditRow("0", Verdict(True, "", {"top_5": 0.5}), []) for _ in range(9)],
                    ["top_5"])  # fmt: skip


@fuzz(60)
@given(rows=damaged(ROWS) | st.binary(), table=damaged(TABLE) | st.binary())
def test_damaged_parquet(rows: bytes, table: bytes) -> None:
    outcome(parse_rows, rows)
    outcome(parse_table, table)
    outcome(parse_rows, table)
    outcome(parse_table, rows)


def test_the_made_files_are_read(folder: Path) -> None:
    """Before they are damaged; else every property above could be empty."""
    assert len(parse_rows(ROWS)) == len(parse_table(TABLE)) == 9
    assert decode_sample(KEY, SAMPLE)["masks"].shape[0] == 4
    check_prompts_of_pair(folder)


def check_prompts_of_pair(folder: Path) -> None:
    (folder / "captions.json").write_bytes(as_json(CAPTIONS))
    (folder / "instances.json").write_bytes(as_json(INSTANCES))
    prompts = load_prompts(f"{folder}/captions.json+{folder}/instances.json")
    assert [prompt.class_names for prompt in prompts] == [("cat",), ("dog",)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_same_at_length() -> None:
    command = [sys.executable, "-m", "pytest", __file__, "-m", "not slow", "--timeout=3600"]
    subprocess.run(command, env={**os.environ, "SYNTHGEN_FUZZ": "50"}, check=True)
