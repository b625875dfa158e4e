"""A finished dataset: read by the tools its users have, verified, and described."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml
from made_records import encode_many, write_tar
from PIL import Image
from pycocotools import mask as coco
from tiny_run import rewrite
from torch.utils.data import DataLoader

import synthgen
from synthgen.dataset.audits import (
    AUDIT_SCHEMA_VERSION,
    AUDITS,
    AuditMarker,
    audit_marker_bytes,
)
from synthgen.dataset.card import class_table, hub_features, readme
from synthgen.dataset.loader import decode_mask, open_dataset
from synthgen.dataset.metadata import Row, parse_rows, rows_bytes
from synthgen.dataset.records import encode_image
from synthgen.dataset.verify import verify_dataset
from synthgen.jobs.identity import read_config
from synthgen.storage.publish import open_storage


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dataset, tmp_path / "dataset")


def tars(root: Path) -> list[str]:
    return sorted(str(path) for path in (root / "data").glob("*.tar"))


def check_by_pycocotools(image: np.ndarray, mask: np.ndarray, info: dict[str, Any]) -> None:
    """The json's masks, decoded by pycocotools and painted largest first, give the mask."""
    painted = np.zeros(mask.shape, dtype=np.uint8)
    for segment in sorted(info["segments"], key=lambda s: -s["area"]):
        pixels = coco.decode(segment["rle"]).astype(bool)
        assert int(pixels.sum()) == segment["area"] == int(coco.area(segment["rle"]))
        assert coco.toBbox(segment["rle"]).astype(int).tolist() == segment["bbox_xywh"]
        painted[pixels] = segment["id"]
    assert image.shape == (*mask.shape, 3) == (info["height"], info["width"], 3)
    np.testing.assert_array_equal(painted, mask)


def test_rows_of_datasets_without_the_newest_columns_are_read() -> None:
    row = Row("0000000000", "ok", "", "", "car", "a car", ("car",), 0, 1, 0)
    table = pq.read_table(io.BytesIO(rows_bytes([row])))
    stream = io.BytesIO()
    pq.write_table(table.drop_columns(["iterations", "converged"]), stream)
    assert parse_rows(stream.getvalue()) == [row]


def test_webdataset_reads_it_with_our_mask_decoder(tiny_dataset: Path) -> None:
    pipeline = wds.WebDataset(tars(tiny_dataset), shardshuffle=False).decode(decode_mask, "rgb8")
    samples = list(pipeline)
    assert len(samples) == 8
    for sample in samples:
        check_by_pycocotools(sample["jpg"], sample["mask.png"], sample["json"])
        assert sample["txt"] == sample["json"]["prompt"]


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets_reads_it(
    tiny_dataset: Path, streaming: bool, tmp_path: Path
) -> None:
    from datasets import load_dataset

    rows = load_dataset(
        str(tiny_dataset), split="train", streaming=streaming, cache_dir=str(tmp_path)
    )
    count = 0
    for row in rows:
        assert row["mask.png"].mode == "L"
        check_by_pycocotools(np.asarray(row["jpg"]), np.asarray(row["mask.png"]), row["json"])
        assert row["txt"] == row["json"]["prompt"]
        assert row["json"]["provenance"]["versions"]["torch"]
        count += 1
    assert count == 8


def test_hugging_face_datasets_reads_late_types(tiny_dataset: Path, tmp_path: Path) -> None:
    """Five samples without masks or classes first: inference alone would guess null columns."""
    from datasets import load_dataset

    members = encode_many(12)
    for key in list(members)[:6]:
        info = json.loads(members[key]["json"])
        info.update(segments=[], num_segments=0, classes=[])
        members[key]["json"] = json.dumps(info).encode()
    write_tar(tmp_path / "data" / "train-000000.tar", members)
    identity = json.loads((tiny_dataset / "identity.json").read_text())
    identity["environments"][0]["versions"] = {"synthgen": "0.1.0"}
    config = read_config(synthgen.storage.publish.open_storage(tiny_dataset))
    card = readme(config, identity, ["data/train-000000.tar"], None)
    (tmp_path / "README.md").write_text(card)
    rows = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [len(row["json"]["segments"]) for row in rows] == [0] * 6 + [6] * 6
    assert rows[7]["json"]["classes"] == ["cat"]


def test_pinned_features_are_the_hubs_spelling_of_the_schema() -> None:
    from datasets import Features

    described = hub_features("png", ["synthgen", "torch"])
    assert Features._from_yaml_list(described)._to_yaml_list() == described


def test_a_dataloader_with_two_workers_reads_every_sample_once(tiny_dataset: Path) -> None:
    dataset = synthgen.open_dataset(tiny_dataset)
    samples = list(DataLoader(dataset, batch_size=None, num_workers=2))
    alone = {sample["key"]: sample for sample in dataset}
    assert sorted(sample["key"] for sample in samples) == sorted(alone)
    assert len(alone) == 8
    for sample in samples:
        expected = alone[sample["key"]]
        assert set(sample) == {"key", "image", "mask", "masks", "json", "prompt"}
        for name in ("image", "mask", "masks"):
            np.testing.assert_array_equal(np.asarray(sample[name]), expected[name])


def test_open_dataset_gives_what_pycocotools_and_pillow_give(tiny_dataset: Path) -> None:
    reference = {s["__key__"]: s for s in wds.WebDataset(tars(tiny_dataset), shardshuffle=False)}
    for sample in open_dataset(tiny_dataset):
        raw = reference[sample["key"]]
        image = Image.open(io.BytesIO(raw["jpg"])).convert("RGB")
        np.testing.assert_array_equal(sample["image"], np.asarray(image))
        assert (sample["image"].dtype, sample["mask"].dtype) == (np.uint8, np.uint8)
        assert sample["masks"].dtype == bool
        for pixels, segment in zip(sample["masks"], sample["json"]["segments"], strict=True):
            np.testing.assert_array_equal(pixels, coco.decode(segment["rle"]))
    assert "masks" not in next(iter(open_dataset(tiny_dataset, masks=False)))


def test_shuffling_is_a_permutation_that_the_seed_decides(tiny_dataset: Path) -> None:
    def keys(**options: int) -> list[str]:
        return [sample["key"] for sample in open_dataset(tiny_dataset, **options)]

    assert keys(shuffle=8, seed=1) == keys(shuffle=8, seed=1)
    assert keys(shuffle=8, seed=1) != keys(shuffle=8, seed=2)
    assert sorted(keys(shuffle=8, seed=1)) == keys() == sorted(keys())


def test_one_tar_opens_alone(tiny_dataset: Path) -> None:
    assert [s["key"] for s in open_dataset(tars(tiny_dataset)[2])] == ["0000020000", "0000020001"]


@pytest.mark.parametrize("url", ["pipe:touch owned", "pipe:touch owned.tar", "http://h/x.tar"])
def test_the_loader_runs_no_shell_and_no_network(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="one of the schemes"):
        open_dataset(url)
    assert not list(tmp_path.iterdir())


def test_the_loader_says_what_is_wrong(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="existing tar"):
        open_dataset(tmp_path / "x.tar")
    tar = Path(tars(dataset)[1])
    tar.write_bytes(tar.read_bytes()[:-10240])
    with pytest.raises(ValueError, match=r"train-000001\.tar must have"):
        list(open_dataset(dataset))


# --- verification of whole datasets ---------------------------------------------------------


def test_a_finished_dataset_has_no_problems(tiny_dataset: Path) -> None:
    assert verify_dataset(tiny_dataset) == []
    assert verify_dataset(tiny_dataset, deep=True) == []


def _tar(root: Path) -> Path:
    return root / "data" / "train-000001.tar"


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: _tar(root).write_bytes(change(_tar(root).read_bytes()))


def _samples(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], object]:
    """The second shard with other samples in it."""

    def edit(root: Path) -> None:
        samples = list(wds.WebDataset(str(_tar(root)), shardshuffle=False))
        change(samples)
        with wds.TarWriter(str(_tar(root)), encoder=False, mtime=0) as writer:
            for sample in samples:
                writer.write({k: v for k, v in sample.items() if k == "__key__" or k[0] != "_"})

    return edit


def _remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def _copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


def _write(name: str, content: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(content)


MASK = encode_image(np.full((32, 64), 250, dtype=np.uint8), "png")
_truncate = _bytes(lambda content: content[:-1024])
_flip_pixel = _bytes(lambda c: c[:1000] + bytes([c[1000] ^ 1]) + c[1001:])
_bad_id = _samples(lambda samples: samples[0].update({"mask.png": MASK}))

FAULTS: list[tuple[Callable[[Path], object], str, str]] = [
    (_truncate, "truncated", "train-000001.tar"),
    (_truncate, "wrong size", "train-000001.tar"),
    (_flip_pixel, "wrong hash", "train-000001.tar"),
    (_samples(lambda samples: samples.append(samples[0])), "duplicate key", "0000010000"),
    (_samples(lambda samples: samples[0].update(pyd=b"x")), "foreign member", "0000010000"),
    (_bad_id, "bad id", "0000010000"),
    (_bad_id, "wrong hash", "train-000001.tar"),
    (_remove("data/train-000001.tar"), "marker without tar", "train-000001.tar"),
    (_remove("stats/train-000001.json"), "tar without marker", "train-000001.tar"),
    (_remove("stats/train-000002.json"), "tar without marker", "train-000002.tar"),
    (_remove("metadata/train-000001.parquet"), "missing file", "train-000001.parquet"),
    (_remove("manifest.json"), "missing file", "manifest.json"),
    (_remove("README.md"), "missing file", "README.md"),
    (_copy("data/train-000001.tar", "data/extra.tar"), "foreign file", "extra.tar"),
    (_copy("data/train-000001.tar", "data/train-000009.tar"), "tar without marker", "000009"),
    (_copy("stats/train-000000.json", "stats/train-000001.json"), "bad marker", "000001"),
    (_write("stats/train-000001.json", "{"), "bad marker", "train-000001.json"),
    (_write("manifest.json", "{"), "unreadable file", "manifest.json"),
    (_write("metadata/train-000001.parquet", "PAR1"), "wrong hash", "000001.parquet"),
    (_write("classes.json", "[]"), "unreadable file", "classes.json"),
]


@pytest.mark.parametrize(("fault", "kind", "where"), FAULTS)
def test_every_fault_is_found_and_named(
    dataset: Path, fault: Callable[[Path], object], kind: str, where: str
) -> None:
    fault(dataset)
    found = verify_dataset(dataset)
    assert any(p.kind == kind and where in p.where for p in found), [str(p) for p in found]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("prompt", "a photo of a blue car"), ("prompt_id", "cars"), ("classes", ["cat"])),
        *(("seed", 1), ("image_index", 7), ("num_segments", 1)),
        *(("byte_offset", 512), ("byte_size", 512), ("key", "0000010009")),
        ("sha256", "0" * 64),
    ],
)
def test_a_changed_row_is_found_and_named(dataset: Path, column: str, value: Any) -> None:
    path = dataset / "metadata" / "train-000001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    assert rows[0][column] != value
    key = rows[0]["key"]
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    found = verify_dataset(dataset)
    assert [(problem.kind, problem.where) for problem in found] == [
        ("wrong hash", "metadata/train-000001.parquet")
    ]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(dataset / "stats" / "train-000001.json", metadata_sha256=sha256)
    found = verify_dataset(dataset)
    assert {problem.kind for problem in found} == {"wrong row"}
    wheres = {problem.where for problem in found}
    keys = {key, value} if column == "key" else {key}
    assert wheres == {f"metadata/train-000001.parquet '{key}'" for key in keys}
    assert all("remove stats/train-000001.json and run again" in str(p) for p in found)


def test_a_changed_byte_of_an_audit_or_of_previews_is_found(dataset: Path) -> None:
    content = b"PAR1 as far as a hash can tell"
    fields = {"samples": 3, "reasons": {}, "seconds": {}, "settings": {}, "created": ""}
    fields |= {"digest": "", "annotations_digest": "", "annotations_from": "", "tar_sha256": ""}
    sha256 = hashlib.sha256(content).hexdigest()
    marker = AuditMarker(name="train-000000", sha256=sha256, bytes=len(content), **fields)
    table, marked = (dataset / f"audit/sam/train-000000.{end}" for end in ("parquet", "json"))
    AUDITS.claim(open_storage(dataset), "sam", {}, AUDIT_SCHEMA_VERSION)
    marked.write_bytes(audit_marker_bytes(marker))
    table.write_bytes(content)
    assert verify_dataset(dataset) == []
    for changed, kind in ((content[:-1] + b"L", "wrong hash"), (content[:-1], "wrong size")):
        table.write_bytes(changed)
        (problem,) = verify_dataset(dataset)
        assert (problem.kind, problem.where) == (kind, "audit/sam/train-000000.parquet")
        assert "remove audit/sam/train-000000.json and run 'synthgen audit" in str(problem)
    table.unlink()
    assert [problem.kind for problem in verify_dataset(dataset)] == ["missing file"]
    marked.write_text("{")
    assert [problem.kind for problem in verify_dataset(dataset)] == ["bad marker"]
    marked.unlink()
    path = dataset / "previews" / "train-000000.tar"
    path.write_bytes(b"another" + path.read_bytes()[7:])
    (problem,) = verify_dataset(dataset, deep=True)
    assert (problem.kind, problem.where) == ("wrong hash", "previews/train-000000.tar")


def test_a_shard_that_lost_tar_and_marker_is_named(dataset: Path) -> None:
    for number in (1, 2):
        (dataset / f"data/train-00000{number}.tar").unlink()
        (dataset / f"stats/train-00000{number}.json").unlink()
    found = {problem.where for problem in verify_dataset(dataset)}
    assert found == {"data/train-000001.tar", "data/train-000002.tar"}


# --- what a dataset says about itself -------------------------------------------------------


def test_the_layout_is_the_documented_one(tiny_dataset: Path) -> None:
    files = {path.relative_to(tiny_dataset).as_posix() for path in _files(tiny_dataset)}
    shards = [f"train-{number:06d}" for number in range(3)]
    assert files == {
        *("README.md", "config.yaml", "identity.json", "classes.json", "manifest.json"),
        "manifests/v0001.json",
        *(f"data/{shard}.tar" for shard in shards),
        *(f"stats/{shard}.json" for shard in shards),
        *(f"metadata/{shard}.parquet" for shard in shards),
        *(f"previews/{shard}.tar" for shard in shards[:2]),  # samples 0 and 4
    }


def test_the_card_names_the_tars_and_the_config_loads(tiny_dataset: Path) -> None:
    head = (tiny_dataset / "README.md").read_text().split("---\n")[1]
    files = yaml.safe_load(head)["configs"][0]["data_files"]
    assert files == [{"split": "train", "path": [f"data/train-00000{i}.tar" for i in range(3)]}]
    config = synthgen.config.load(tiny_dataset / "config.yaml")
    assert config.num == 8
    digest = json.loads((tiny_dataset / "manifest.json").read_text())["config"]
    assert digest in (tiny_dataset / "config.yaml").read_text()
    assert digest in (tiny_dataset / "README.md").read_text()


def test_metadata_has_a_row_per_planned_sample_with_its_place(tiny_dataset: Path) -> None:
    for number, planned in enumerate((3, 3, 2)):
        shard = f"train-{number:06d}"
        rows = pq.read_table(tiny_dataset / "metadata" / f"{shard}.parquet").to_pylist()
        content = (tiny_dataset / "data" / f"{shard}.tar").read_bytes()
        assert [row["key"] for row in rows] == [f"{number:06d}{i:04d}" for i in range(planned)]
        for row in rows:
            part = content[row["byte_offset"] : row["byte_offset"] + row["byte_size"]]
            assert part.startswith(f"{row['key']}.jpg".encode())
            assert f"{row['key']}.txt".encode() in part
            assert (row["status"], row["seconds_generate"] > 0) == ("ok", True)


def test_class_ids_leave_out_background_and_ignore() -> None:
    table = class_table(f"c{i:03d}" for i in range(300))
    found = {number: table[number] for number in ("0", "1", "254", "255", "256")}
    assert list(found.values()) == ["background", "c000", "c253", "ignore", "c254"]
    assert len(set(table.values())) == 302


def _files(root: Path) -> Iterator[Path]:
    found = (path for path in root.rglob("*") if path.is_file())
    return (path for path in found if ".synthgen" not in path.parts)
