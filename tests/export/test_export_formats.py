"""Every export read back by the reader that it is for, and compared with the dataset."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard
from made_export import add_audit, make_dataset
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_export import fill
from tiny_run import tiny_config, write_prompts
from torchvision.datasets import CocoDetection, VOCDetection, VOCSegmentation
from transformers import DetrImageProcessor

from synthgen import jobs
from synthgen.dataset.labels import class_names
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.rle import decode_masks
from synthgen.export.coco import id_to_rgb, panoptic_segments
from synthgen.export.contours import outline
from synthgen.export.format import ExportSample, Instance
from synthgen.export.yolo import INSET
from synthgen.jobs import export

SPLIT = "0.6/0.4"
LABELING = (
    *("labeling.method=clusters", "labeling.presence=0.05"),
    *("labeling.margin=0.001", "labeling.background=0.05"),
)


@pytest.fixture(scope="module", params=["drawn", "model"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled samples in three shards: ten of drawn shapes, or eight that a model made."""
    out = tmp_path_factory.mktemp("formats") / "data"
    if request.param == "drawn":
        make_dataset(out)
        return out
    prompts = write_prompts(out.parent / "prompts.jsonl")
    pipeline = request.getfixturevalue("tiny_pipeline")
    jobs.generate(tiny_config(pipeline, prompts, *LABELING), out)
    counts = [len(sample["json"]["instances"]) for sample in open_dataset(out)]
    assert max(counts) > 2, "labels must be worth exporting"
    assert min(counts) == 0, "and one image must have none"
    return out


def named(world: Path) -> dict[int, str]:
    """Classes by id, without background and undecided."""
    return {i: name for i, name in class_names(world).items() if i not in (0, 255)}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples without labels, stored as PNG."""
    out = tmp_path_factory.mktemp("bare") / "data"
    make_dataset(out, num=4, labeled=False, image_format="png")
    return out


@pytest.fixture(scope="module")
def samples(world: Path) -> dict[str, dict]:
    return {sample["key"]: sample for sample in open_dataset(world)}


def instance_masks(sample: dict) -> list[tuple[str, np.ndarray]]:
    """Name and mask of a sample's objects, as the loader gives them."""
    found = sample["json"]["instances"]
    masks = decode_masks([item["rle"] for item in found], *sample["mask"].shape)
    return [(item["label"], mask) for item, mask in zip(found, masks, strict=True)]


def read_png(path: Path, mode: str = "L") -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == mode
        return np.array(image)


def check_box(bbox_xywh: list[int], mask: np.ndarray) -> None:
    x, y, w, h = bbox_xywh
    assert mask[y : y + h, x : x + w].sum() == mask.sum()
    edges = mask[y], mask[y + h - 1], mask[:, x], mask[:, x + w - 1]
    assert all(edge.any() for edge in edges)


def read_coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


# --- COCO ---------------------------------------------------------------------------------------


def test_coco_is_read_by_pycocotools_and_torchvision(
    world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    export(world, tmp_path, "coco", split=SPLIT)
    ids, seen = [], set()
    for split in ("train", "val"):
        path = tmp_path / f"annotations/instances_{split}.json"
        data = CocoDetection(str(tmp_path / split), str(path))
        for index in range(len(data)):
            image, annotations = data[index]
            sample = samples[Path(data.coco.loadImgs(data.ids[index])[0]["file_name"]).stem]
            seen.add(sample["key"])
            np.testing.assert_array_equal(np.array(image), sample["image"])
            for annotation, (label, mask) in zip(annotations, instance_masks(sample), strict=True):
                np.testing.assert_array_equal(data.coco.annToMask(annotation), mask)
                assert data.coco.loadCats(annotation["category_id"])[0]["name"] == label
                assert annotation["area"] == mask.sum()
                check_box(annotation["bbox"], mask)
        ids.append(sorted(data.coco.anns))
    assert seen == set(samples)
    assert ids == [list(range(1, len(found) + 1)) for found in ids]
    categories = data.coco.loadCats(data.coco.getCatIds())
    assert {item["id"]: item["name"] for item in categories} == named(world)


def test_coco_evaluation_of_perfect_predictions_is_one(world: Path, tmp_path: Path) -> None:
    export(world, tmp_path, "coco", segmentation="rle")
    truth = read_coco(tmp_path / "annotations/instances_train.json")
    keys = ("image_id", "category_id", "segmentation", "score")
    results = [{key: item[key] for key in keys} for item in truth.anns.values()]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_coco_of_bare_masks_has_every_mask_and_its_parent(bare: Path, tmp_path: Path) -> None:
    """Also where small ones are left out: the ring's half then hangs below the whole image."""
    for least in (0.0, 0.05):
        out = tmp_path / f"least{least}"
        export(bare, out, "coco", min_area=least)
        truth = read_coco(out / "annotations/instances_train.json")
        assert truth.dataset["categories"] == [
            {"id": 1, "name": "mask", "supercategory": "object"},
        ]
        for sample in open_dataset(bare):
            np.testing.assert_array_equal(
                read_png(out / f"train/{sample['key']}.png", "RGB"), sample["image"]
            )
            found = truth.imgToAnns[int(sample["key"]) + 1]
            masks = np.stack([truth.annToMask(annotation) for annotation in found])
            kept = sample["masks"].mean((1, 2)) >= least
            np.testing.assert_array_equal(masks.astype(bool), sample["masks"][kept])
            assert kept.all() == (least == 0)
        first = min(item["id"] for item in found)
        assert [item["parent"] for item in found] == [0, *[first] * (len(found) - 1)] or not least


def test_panoptic_obeys_the_formats_rules(
    world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    """What panopticapi checks before it evaluates, and that nothing of the map is lost."""
    export(world, tmp_path, "coco-panoptic")
    tree = json.loads((tmp_path / "annotations/panoptic_train.json").read_text())
    categories = {item["id"]: item for item in tree["categories"]}
    assert {item["isthing"] for item in categories.values()} == {0, 1}
    images = {item["id"]: item for item in tree["images"]}
    assert len(tree["annotations"]) == len(images) == len(samples)
    for annotation in tree["annotations"]:
        sample = samples[Path(images[annotation["image_id"]]["file_name"]).stem]
        path = tmp_path / "annotations/panoptic_train" / annotation["file_name"]
        ids = read_png(path, "RGB").astype(np.int64) @ (1, 256, 65536)
        segments = {item["id"]: item for item in annotation["segments_info"]}
        assert len(segments) == len(annotation["segments_info"])
        assert set(np.unique(ids)) - {0} == set(segments)
        classes = np.full(ids.shape, 255)
        for number, segment in segments.items():
            mask = ids == number
            assert segment["area"] == mask.sum() > 0
            check_box(segment["bbox"], mask)
            assert segment["iscrowd"] == 0
            category = categories[segment["category_id"]]
            stuff = category["name"] == "background"
            assert category["isthing"] == (not stuff)
            classes[mask] = 0 if stuff else category["id"]
        specks = (classes == 255) & (sample["semantic"] != 255)  # no object, so no segment
        kept = np.any([mask for _, mask in instance_masks(sample)] or [np.zeros_like(specks)], 0)
        assert not (specks & (kept | (sample["semantic"] == 0))).any()
        np.testing.assert_array_equal(
            np.where(specks, sample["semantic"], classes), sample["semantic"]
        )


def test_panoptic_ids_above_255_and_specks_without_a_segment() -> None:
    size = (40, 40)
    masks = np.zeros((400, *size), dtype=bool)
    masks[np.arange(400), np.arange(400) // 20 * 2, np.arange(400) % 20 * 2] = True
    semantic = masks.any(0).astype(np.uint8)
    instances = tuple(Instance(1, 1.0, mask) for mask in masks[:300])
    pixels, ids = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    sample = ExportSample(
        "0" * 10, "train", b"", "jpg", pixels, semantic, instances, ids, (), "p", "text"
    )
    found, segments = panoptic_segments(sample, 2)
    rgb = id_to_rgb(found).astype(int)
    np.testing.assert_array_equal(rgb @ [1, 256, 65536], found)
    assert len(segments) == 301
    assert segments[-1]["category_id"] == 2
    assert (found[masks[300:].any(0)] == 0).all()
    assert (found[semantic == 0] == 301).all()


# --- VOC, ADE20K, FiftyOne ----------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["jpg", "png"])
def test_voc_is_read_by_torchvision(
    stored: str, world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    """Images (exact where they are copied), maps and boxes, by torchvision's two readers."""
    if stored == "png":
        world = tmp_path / "data"
        make_dataset(world, num=6, image_format="png")
        samples = {sample["key"]: sample for sample in open_dataset(world)}
    out, seen = tmp_path / "out", list[str]()
    export(world, out, "voc", split=SPLIT)
    for split in ("train", "val"):
        data = VOCSegmentation(str(out), year="2012", image_set=split)
        boxes = VOCDetection(str(out), year="2012", image_set=split)
        for index in range(len(data)):
            image, target = data[index]
            sample = samples[Path(data.images[index]).stem]
            seen.append(sample["key"])
            assert target.mode == "P"
            np.testing.assert_array_equal(np.array(target), sample["semantic"])
            error = np.abs(np.array(image).astype(int) - sample["image"]).mean()
            assert error == 0 if stored == "jpg" else error < 8
            assert Path(data.images[index]).read_bytes()[:2] == b"\xff\xd8"
            check_voc_objects(out, sample, boxes[index][1]["annotation"])
    assert sorted(seen) == sorted(samples)
    both = VOCSegmentation(str(out), year="2012", image_set="trainval")
    assert len(both) == len(samples)


def check_voc_objects(out: Path, sample: dict, annotation: dict) -> None:
    """Object map and boxes against the loader's objects; box limits are inclusive, from 1."""
    path = out / f"VOCdevkit/VOC2012/SegmentationObject/{sample['key']}.png"
    numbers, objects = read_png(path, "P"), instance_masks(sample)
    for number, ((label, mask), item) in enumerate(
        zip(objects, annotation.get("object", []), strict=True), start=1
    ):
        np.testing.assert_array_equal(numbers == number, mask)
        assert list(item) == ["name", "pose", "truncated", "difficult", "bndbox"]
        edge = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
        found = (item["name"], item["pose"], item["truncated"])
        assert found == (label, "Unspecified", str(int(edge)))
        left, top, right, bottom = (
            int(item["bndbox"][name]) for name in ("xmin", "ymin", "xmax", "ymax")
        )
        check_box([left - 1, top - 1, right - left + 1, bottom - top + 1], mask)
    covered = np.any([mask for _, mask in objects] or [numbers < 0], 0)
    np.testing.assert_array_equal(numbers == 255, ~covered & (sample["semantic"] != 0))  # specks
    np.testing.assert_array_equal(numbers == 0, sample["semantic"] == 0)
    height, width = sample["mask"].shape
    assert annotation["size"] == {"width": str(width), "height": str(height), "depth": "3"}


def test_ade_gives_the_ids_back_with_reduce_zero_label(
    world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    export(world, tmp_path, "ade", split=SPLIT)
    seen = set()
    for name in ("training", "validation"):
        labels = sorted((tmp_path / "annotations" / name).iterdir())
        images = sorted((tmp_path / "images" / name).iterdir())
        assert [path.name for path in images] == [f"{path.stem}.jpg" for path in labels]
        for path in labels:
            found = read_png(path).astype(int)
            # MMSegmentation, datasets/pipelines/loading.py: 0 -> 255, the others one lower
            reduced = np.where(found == 0, 255, found - 1)
            np.testing.assert_array_equal(reduced, samples[path.stem]["semantic"])
            seen.add(path.stem)
    assert seen == set(samples)
    lines = (tmp_path / "objectInfo.txt").read_text().splitlines()
    assert dict(line.split("\t") for line in lines) == {
        "Idx": "Name",
        "0": "other (ignored)",
        "1": "background",
        **{str(number + 1): name for number, name in named(world).items()},
    }


def test_fiftyone_folders_pair_up_and_carry_prompts_scores_and_verdicts(
    world: Path, tmp_path: Path
) -> None:
    """The layout of its ImageSegmentationDirectory: equal stems in data/ and labels/.

    FiftyOne is not there: what its README's lines touch is compared.
    """
    data = shutil.copytree(world, tmp_path / "data")
    add_audit(data, "mine", {"0000000001"})
    export(data, tmp_path / "out", "fiftyone", split=SPLIT, audited="mine", keep_only=False)
    samples = {s["key"]: s for s in open_dataset(data, audited="mine", keep_only=False)}
    for split in ("train", "val"):
        folder = tmp_path / "out" / split
        images = {path.stem: path for path in (folder / "data").iterdir()}
        assert images.keys() == {path.stem for path in (folder / "labels").iterdir()}
        rows = {row["key"]: row for row in map(json.loads, (folder / "fields.jsonl").open())}
        assert images.keys() == rows.keys()
        for key, row in rows.items():
            sample = samples.pop(key)
            found = read_png(folder / f"labels/{key}.png")
            np.testing.assert_array_equal(found, sample["semantic"])
            np.testing.assert_array_equal(read_png(images[key], "RGB"), sample["image"])
            verdict = sample["verdict"]
            told = (sample["prompt"], verdict.keep, verdict.reason)
            assert (row["prompt"], row["keep"], row["reason"]) == told
            height, width = sample["mask"].shape
            for item, shown in zip(sample["json"]["instances"], row["objects"], strict=True):
                assert (shown["label"], shown["confidence"]) == (
                    item["label"],
                    item["label_score"],
                )
                box = np.array(shown["bounding_box"]) * [width, height, width, height]
                np.testing.assert_allclose(box, item["bbox_xywh"], atol=1e-3)
    assert not samples


# --- YOLO ---------------------------------------------------------------------------------------


def check_yolo(path: Path, names: dict[int, str], expected: list[tuple[str, np.ndarray]]) -> None:
    """Lines by the rules that ultralytics' verify_image_label enforces, filled to masks."""
    rows = [line.split() for line in path.read_text().strip().splitlines() if line]
    assert len({tuple(row) for row in rows}) == len(rows), "duplicate labels are dropped"
    for row, (name, mask) in zip(rows, expected, strict=True):
        assert len(row) > 6, "a segment, not a box"
        points = np.array(row[1:], dtype=np.float32).reshape(-1, 2).astype(np.float64)
        assert 0 <= points.min() <= points.max() <= 1
        assert names[int(row[0])] == name
        filled = fill(points * mask.shape[::-1], *mask.shape)
        np.testing.assert_array_equal(filled, mask)


def test_yolo_lines_give_every_mask_back(
    world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    export(world, tmp_path, "yolo-seg", split=SPLIT)
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data["names"] == dict(enumerate(named(world).values()))
    assert "path" not in data, "folders are beside the file, wherever it is used from"
    table = json.loads((tmp_path / "classes.json").read_text())
    assert {int(number): name for number, name in table.items()} == data["names"]
    seen = set()
    for image in sorted(
        path for split in ("train", "val") for path in (tmp_path / data[split]).iterdir()
    ):
        # ultralytics finds labels by replacing the last /images/ and the suffix
        left, _, right = str(image).rpartition(f"{os.sep}images{os.sep}")
        label = Path(f"{left}{os.sep}labels{os.sep}{right}").with_suffix(".txt")
        check_yolo(label, data["names"], instance_masks(samples[image.stem]))
        seen.add(image.stem)
    assert seen == set(samples)


def test_yolo_and_parquet_without_labels_or_val(bare: Path, tmp_path: Path) -> None:
    export(bare, tmp_path / "yolo", "yolo-seg")
    data = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert data == {"train": "images/train", "val": "images/train", "names": {0: "mask"}}
    for sample in open_dataset(bare):
        path = tmp_path / f"yolo/labels/train/{sample['key']}.txt"
        check_yolo(path, data["names"], [("mask", mask) for mask in sample["masks"]])
    export(bare, tmp_path / "parquet", "hf-parquet")
    columns = pq.read_schema(tmp_path / "parquet/data/train-000000.parquet").names
    assert not {"semantic", "keep"} & {*columns}
    card = DatasetCard.load(tmp_path / "parquet/README.md")
    assert card.data.to_dict()["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"}
    ]


# --- Hugging Face -------------------------------------------------------------------------------


def test_parquet_is_read_by_datasets(
    world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    export(world, tmp_path / "out", "hf-parquet", split=SPLIT)
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "val"}
    seen = set()
    for row in (row for split in loaded.values() for row in split):
        sample = samples[row["key"]]
        seen.add(row["key"])
        for name in ("image", "mask", "semantic"):
            np.testing.assert_array_equal(np.array(row[name]), sample[name])
        assert row["prompt"] == sample["prompt"]
        rles = [segment["rle"] for segment in row["segments"]]
        masks = decode_masks(rles, row["height"], row["width"])
        np.testing.assert_array_equal(masks, sample["masks"])
        labels = [segment["label"] for segment in row["segments"]]
        assert labels == [segment["label"] for segment in sample["json"]["segments"]]
    assert seen == set(samples)
    first = next(iter(load_dataset(str(tmp_path / "out"), split="train", streaming=True)))
    np.testing.assert_array_equal(np.array(first["image"]), samples[first["key"]]["image"])


# --- what loaders ask for -----------------------------------------------------------------------


@pytest.mark.parametrize("segmentation", [None, "rle", "rle-list"])
def test_every_segmentation_gives_the_masks_and_their_parents_back(
    segmentation: str | None, world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    """Read by transformers' DETR, which takes no compressed run lengths, and by pycocotools."""
    export(world, tmp_path, "coco", masks="all", split=SPLIT, segmentation=segmentation)
    processor, seen, names = DetrImageProcessor(do_resize=False), 0, {*named(world).values()}
    for split in ("train", "val"):
        truth = read_coco(tmp_path / f"annotations/instances_{split}.json")
        for image in truth.imgs.values():
            sample, found = samples[Path(image["file_name"]).stem], truth.imgToAnns[image["id"]]
            for mask, segment, annotation in zip(
                sample["masks"], sample["json"]["segments"], found, strict=True
            ):
                np.testing.assert_array_equal(truth.annToMask(annotation), mask)
                number = found[segment["parent"] - 1]["id"] if segment["parent"] else 0
                assert annotation["parent"] == number
                name = segment["label"] if segment["label"] in names else "mask"
                assert truth.cats[annotation["category_id"]]["name"] == name
            if found and segmentation != "rle":
                read = processor(
                    images=Image.fromarray(sample["image"]),
                    annotations={"image_id": image["id"], "annotations": found},
                    return_segmentation_masks=True,
                    return_tensors="pt",
                )["labels"][0]["masks"]
                np.testing.assert_array_equal(read.numpy().astype(bool), sample["masks"])
                seen += 1
    assert seen > 5 or segmentation == "rle"
    table = json.loads((tmp_path / "classes.json").read_text())
    assert {table[str(number)] for number in truth.cats} == {*names, "mask"}


def test_small_objects_join_what_they_border_on_in_every_format(
    world: Path, samples: dict[str, dict], tmp_path: Path
) -> None:
    least = 60.0
    for name in ("coco", "voc", "coco-panoptic"):
        export(world, tmp_path / name, name, min_area=least)
    truth = read_coco(tmp_path / "coco/annotations/instances_train.json")
    left = kept = 0
    for key, sample in samples.items():
        folder = tmp_path / "voc/VOCdevkit/VOC2012"
        semantic = read_png(folder / f"SegmentationClass/{key}.png", "P")
        objects = read_png(folder / f"SegmentationObject/{key}.png", "P")
        found = truth.imgToAnns[int(key) + 1]
        masks = [truth.annToMask(item).astype(bool) for item in found]
        before = [mask for _, mask in instance_masks(sample)]
        assert len(found) == sum(mask.sum() >= least for mask in before)
        left += len(before) - len(found)
        kept += len(found)
        for item, mask in zip(found, masks, strict=True):
            assert item["area"] == mask.sum() >= least
            assert (semantic[mask] == item["category_id"]).all()
        # a class's pixels are objects: no specks are left, hence no void but what is ignored
        np.testing.assert_array_equal((objects > 0) & (objects < 255), np.any(masks, 0))
        np.testing.assert_array_equal(objects == 255, semantic == 255)
        changed = semantic != sample["semantic"]
        large = np.any([mask for mask in before if mask.sum() >= least] or [changed & False], 0)
        assert not (changed & (large | np.isin(sample["semantic"], (0, 255)))).any()
        path = tmp_path / f"coco-panoptic/annotations/panoptic_train/{key}.png"
        whole = read_png(path, "RGB")
        np.testing.assert_array_equal((whole == 0).all(-1), semantic == 255)
    assert kept > 5
    assert left > 5 or len(samples) == 10  # all drawn shapes are large


def test_polygons_of_one_piece_are_exact_where_a_trainer_fills_them() -> None:
    """Ultralytics' polygon2mask cuts to whole pixels and fills with the outline (OpenCV)."""
    cv2 = pytest.importorskip("cv2")
    rows, columns = np.indices((64, 96))
    blob = np.hypot(rows - 30, columns - 40) < 20 + 5 * np.sin(columns / 5)
    for mask in (blob, columns > 90, (rows == 5) & (columns == 7), rows + columns < 30):
        for scale in (1, 2, 10):
            size = (mask.shape[1] * scale, mask.shape[0] * scale)
            shares = np.round(outline(mask, INSET) / mask.shape[::-1], 6).astype(np.float32)
            filled = np.zeros(size[::-1], dtype=np.uint8)
            cv2.fillPoly(filled, [(shares * np.float32(size)).astype(np.int32)], 1)
            np.testing.assert_array_equal(filled, np.kron(mask, np.ones((scale, scale))))
