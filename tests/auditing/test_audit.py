"""Audits of a finished dataset of rendered scenes by an auditor that knows the truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco
from tiny_run import rewrite
from truth_world import (
    CONFIG,
    TruthAuditor,
    make_dataset,
    members_of,
    our_masks,
    scene,
    truth,
    write_shard,
)
from typer.testing import CliRunner

from synthgen.auditing.annotations import export_sa1b, from_records, to_records
from synthgen.auditing.judge import REASONS, metric_names
from synthgen.cli import app
from synthgen.config import AuditConfig, dump, load_audit
from synthgen.dataset.audits import check_audit_id, parse_table
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.manifest import build_manifest, publish_manifest, read_markers
from synthgen.dataset.records import encode_record
from synthgen.embedded.vocabulary import CLASSES
from synthgen.jobs import AuditJob, audit
from synthgen.progress import Stopped
from synthgen.segmentation.metrics import top_n
from synthgen.storage.publish import open_storage
from synthgen.types import Annotations, LabelMap, Prompt, Record

QUICK = load_audit(["color_baseline=false", "auditor.batch_size=3"])
STRICT = load_audit(["color_baseline=false", "auditor.batch_size=3", "verdict.min_top_n=0.99"])


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven scenes in two shards; copy it to audit it."""
    out = tmp_path_factory.mktemp("world") / "out"
    make_dataset(out, num=7, shard_size=4)
    return out


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_world, tmp_path / "world")


def contents(root: Path) -> dict[str, bytes]:
    """Every file of an audit whose bytes are promised: markers hold times."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.match("train-*.json")
    }


def test_shuffled_masks_are_rejected_and_true_ones_kept(tmp_path: Path) -> None:
    make_dataset(tmp_path / "good", num=24, shard_size=12)
    make_dataset(tmp_path / "shuffled", num=24, shard_size=12, shift=7)
    good = audit(tmp_path / "good", auditor=TruthAuditor())
    shuffled = audit(tmp_path / "shuffled", auditor=TruthAuditor())
    print(good["totals"], shuffled["totals"], good["means"], shuffled["means"])
    assert good["totals"]["kept"] >= 0.8 * 24
    assert shuffled["totals"]["rejected"] >= 0.95 * 24
    assert good["means"]["top_5"] > good["means"]["color_baseline_top_5"]
    assert set(shuffled["totals"]["reasons"]) <= set(REASONS)
    assert good["id"].startswith("truth-")
    assert len(good["id"]) == len("truth-") + 8


class Naming(TruthAuditor):
    """Also knows the classes; one mask each, as a semantic segmentation gives them."""

    class_names = CLASSES

    def _recognize(self, image: np.ndarray) -> Annotations:
        found = super()._recognize(image)
        semantic = scene(self.known[image.tobytes()]).semantic
        seen = [number for number in np.unique(semantic) if number]
        ones = (1.0,) * (len(found) + len(seen))
        return Annotations(
            np.concatenate([found.masks, [semantic == number for number in seen]]),
            *(ones, ones, ((-1.0, -1.0),) * len(ones)),
            (*found.labels, *(CLASSES[number - 1] for number in seen)),
        )


def test_labels_are_judged_by_an_auditor_that_names_classes(tmp_path: Path) -> None:
    """Of two samples every object is labeled as the first class; their masks are good."""
    storage, members, wrong = open_storage(tmp_path / "d"), {}, []
    ids = {name: number for number, name in enumerate(CLASSES, start=1)}
    table = {0: "background", **{number: name for name, number in ids.items()}, 255: "ignore"}
    storage.publish_bytes(dump(CONFIG).encode(), "config.yaml")
    storage.publish_bytes(json.dumps(table).encode(), "classes.json")
    for index in range(8):
        names = tuple(dict.fromkeys(item.class_name for item in scene(index).objects))
        semantic = np.zeros_like(scene(index).semantic)
        for local, name in enumerate(names, start=1):
            semantic[scene(index).semantic == ids[name]] = local
        if len(names) > 1 and len(wrong) < 2:
            wrong.append(f"{index:010d}")
            semantic[semantic > 0] = 1
        masks, nothing = our_masks(index), np.full(len(our_masks(index)), 255, np.uint8)
        ones = np.ones(semantic.shape)
        labels = LabelMap(names, semantic, ones, nothing, np.zeros(len(masks)), ())
        prompt = Prompt(f"p{index}", scene(index).caption, names)
        provenance = {"seed": index, "image_index": 0, "config": "0" * 64}
        record = Record(
            f"{index:010d}", scene(index).image, prompt, masks, provenance, labels, ids
        )
        members[record.key] = encode_record(record, "png")
    marker = write_shard(storage, 0, members, 8)
    publish_manifest(storage, build_manifest([marker], "0" * 64, [], {}))
    summary = audit(tmp_path / "d", QUICK, "named", Naming())
    assert summary["totals"]["reasons"] == {"label_disagrees": 2}
    kept = {sample["key"] for sample in open_dataset(tmp_path / "d", audited="named")}
    assert kept == set(members) - set(wrong)
    assert summary["means"]["label_mean_iou"] < 1.0
    assert {name for name in summary["means"] if "label_iou of" in name} <= {
        f"label_iou of {name}" for name in CLASSES
    }
    nameless = audit(tmp_path / "d", QUICK, "nameless", TruthAuditor())
    assert nameless["totals"]["reasons"] == {}
    assert "label_mean_iou" not in nameless["means"]


def test_a_table_holds_every_sample_its_metrics_and_what_was_seen(world: Path) -> None:
    data = contents(world / "data")
    summary = audit(world, QUICK, "first", TruthAuditor())
    assert contents(world / "data") == data
    assert summary["totals"]["samples"] == 7
    table = pq.read_table(world / "audit/first/train-000001.parquet").to_pylist()
    assert [row["key"] for row in table] == ["0000010000", "0000010001", "0000010002"]
    row, index = table[1], 5
    found, ours = truth(index), our_masks(index).masks
    seen = np.stack([coco.decode(r["segmentation"]) for r in row["annotations"]]).astype(bool)
    np.testing.assert_array_equal(seen, found.masks)
    assert [r["area"] for r in row["annotations"]] == found.masks.sum((1, 2)).tolist()
    assert row["top_5"] == pytest.approx(top_n(found.masks, ours, 5)[0])
    others = [top_n(found.masks, our_masks(i).masks, 5)[0] for i in (6, 4)]
    assert row["shuffled_masks_top_5"] == pytest.approx(np.mean(others))
    assert np.isnan(row["color_baseline_top_5"])
    assert set(metric_names((2, 6, 12))) < set(row)
    marker = json.loads((world / "audit/first/train-000001.json").read_text())
    assert marker["settings"]["annotations"]["auditor"]["generator"] == {"least": 0}
    assert marker["samples"] == 3
    tars = json.loads((world / "manifest.json").read_text())["shards"]
    assert marker["tar_sha256"] == tars[1]["sha256"]
    assert summary["means"]["top_5"] == pytest.approx(
        np.mean([r.verdict.metrics["top_5"] for s in (0, 1) for r in rows_of(world, "first", s)])
    )


def rows_of(world: Path, audit_id: str, shard: int) -> list:
    return parse_table((world / f"audit/{audit_id}/train-{shard:06d}.parquet").read_bytes())


def test_a_finished_audit_costs_nothing_and_an_interrupted_one_goes_on(world: Path) -> None:
    def stopping(event: str, **fields: object) -> None:
        if event == "samples" and fields["count"] == 3 and not auditor.looked <= 4:
            raise Stopped

    auditor = TruthAuditor()
    with pytest.raises(Stopped):
        audit(world, QUICK, "a", auditor, progress=stopping)
    assert not (world / "audit/a/summary.json").exists()
    assert (world / "audit/a/train-000000.json").exists()
    assert not (world / "audit/a/train-000001.parquet").exists()
    second = TruthAuditor()
    audit(world, QUICK, "a", second)
    assert second.looked == 3  # the second shard alone
    before = contents(world / "audit/a")
    third = TruthAuditor()
    audit(world, QUICK, "a", third)
    assert third.looked == 0
    assert contents(world / "audit/a") == before
    assert [p.name for p in (world / ".synthgen/staging").iterdir()] == []


def test_new_thresholds_use_what_was_seen_and_give_the_same_as_looking_again(world: Path) -> None:
    looked, again = TruthAuditor(), TruthAuditor()
    audit(world, QUICK, "loose", looked)
    strict = audit(world, STRICT, "strict", again)
    assert (looked.looked, again.looked) == (7, 0)
    assert strict["totals"]["reasons"] == {"low_agreement": strict["totals"]["rejected"]}
    assert strict["totals"]["rejected"] > 0
    reused, fresh = contents(world / "audit/strict"), world / "audit/strict"
    shutil.rmtree(world / "audit/loose")
    shutil.rmtree(fresh)
    audit(world, STRICT, "strict", again)
    assert again.looked == 7
    assert contents(fresh) == reused
    marker = json.loads((fresh / "train-000000.json").read_text())
    assert marker["annotations_from"] == ""


def test_another_audit_under_the_same_id_is_refused_by_key(world: Path) -> None:
    audit(world, QUICK, "mine", TruthAuditor())
    before = contents(world / "audit/mine")
    with pytest.raises(ValueError, match=r"change of verdict\.min_top_n\. Undo it, or choose"):
        audit(world, STRICT, "mine", TruthAuditor())
    with pytest.raises(ValueError, match=r"annotations\.auditor\.generator\.least"):
        audit(world, QUICK, "mine", TruthAuditor(least=9))
    assert contents(world / "audit/mine") == before
    ids = {AuditJob(world, s, auditor=TruthAuditor()).result_id for s in (QUICK, STRICT)}
    assert len(ids) == 2


def test_damaged_results_are_made_again(world: Path) -> None:
    audit(world, QUICK, "a", TruthAuditor())
    expected = contents(world / "audit/a")
    table = world / "audit/a/train-000000.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    (world / "audit/a/train-000001.json").write_text("{")
    auditor = TruthAuditor()
    audit(world, QUICK, "a", auditor)
    assert auditor.looked == 7
    assert contents(world / "audit/a") == expected


def test_whole_shards_until_num_samples(world: Path) -> None:
    assert audit(world, QUICK, "a", TruthAuditor(), num=2)["totals"]["samples"] == 4
    assert audit(world, QUICK, "a", TruthAuditor(), num=5)["totals"]["samples"] == 7


# --- what users do with it ----------------------------------------------------------------------


def test_the_loader_gives_verdicts_and_drops_the_rejected(world: Path) -> None:
    summary = audit(world, STRICT, "strict", TruthAuditor())
    every = list(open_dataset(world, audited="strict", keep_only=False))
    kept = list(open_dataset(world, audited="strict"))
    assert len(every) == 7
    assert len(kept) == summary["totals"]["kept"] < 7
    assert [s["key"] for s in kept] == [s["key"] for s in every if s["verdict"].keep]
    rejected = next(s["verdict"] for s in every if not s["verdict"].keep)
    assert rejected.reason == "low_agreement"
    assert rejected.metrics["top_5"] < 0.99
    assert "verdict" not in next(iter(open_dataset(world)))


def test_the_loader_names_the_audits_that_are_there(world: Path) -> None:
    with pytest.raises(ValueError, match=r"Got 'mine'; there: no audits\.$"):
        open_dataset(world, audited="mine")
    audit(world, QUICK, "half", TruthAuditor(), num=1)
    with pytest.raises(ValueError, match=r"Got 'mine'; there: half\.$"):
        open_dataset(world, audited="mine")
    with pytest.raises(ValueError, match=r"about every shard\. Got none of train-000001"):
        open_dataset(world, audited="half")


def test_sa1b_export_is_read_by_pycocotools(world: Path, tmp_path: Path) -> None:
    summary = audit(world, STRICT, "strict", TruthAuditor())
    assert export_sa1b(world, "strict", tmp_path / "kept") == summary["totals"]["kept"]
    assert export_sa1b(world, "strict", tmp_path / "all", keep_only=False) == 7
    tree = json.loads((tmp_path / "all/sa_0000010002.json").read_text())
    assert tree["image"] == {
        "image_id": 10002,
        "width": 128,
        "height": 128,
        "file_name": "sa_0000010002.jpg",
    }
    found = truth(6)
    for record, mask, point in zip(tree["annotations"], found.masks, found.points_xy, strict=True):
        np.testing.assert_array_equal(coco.decode(record["segmentation"]), mask)
        assert record["bbox"] == coco.toBbox(record["segmentation"]).tolist()
        assert record["point_coords"] == [list(point)]
        assert record["crop_box"] == [0.0, 0.0, 128.0, 128.0]
        assert set(record) == {
            *("id", "area", "bbox", "segmentation", "predicted_iou", "stability_score"),
            *("point_coords", "crop_box"),
        }


def test_records_and_annotations_are_inverse() -> None:
    found = truth(0)
    again = from_records(to_records(found), *found.masks.shape[1:])
    np.testing.assert_array_equal(again.masks, found.masks)
    assert replace(again, masks=found.masks) == replace(found, masks=found.masks)
    assert to_records(replace(found, masks=np.zeros_like(found.masks))) == []
    with pytest.raises(ValueError, match="SA-1B record"):
        from_records([{"segmentation": to_records(found)[0]["segmentation"]}], 128, 128)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "..", "../x", "A", "a/b", "a b", "-a", "a--b", "x" * 81])
def test_ids_that_are_no_folder_names_are_refused(bad: str, world: Path) -> None:
    with pytest.raises(ValueError, match="An audit's id must be"):
        check_audit_id(bad)
    with pytest.raises(ValueError, match="An audit's id must be"):
        audit(world, QUICK, bad, TruthAuditor())
    assert not (world / "audit").exists()


def test_a_dataset_that_is_not_finished_or_of_another_version(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have a manifest\.json"):
        audit(tmp_path / "nothing", QUICK, "a", TruthAuditor())
    rewrite(world / "manifest.json", schema_version=99)
    with pytest.raises(ValueError, match="must have schema_version 2"):
        audit(world, QUICK, "a", TruthAuditor())


@pytest.mark.parametrize("cut", [512, 1])
def test_a_truncated_shard_is_named(cut: int, world: Path) -> None:
    tar = world / "data/train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"data/train-000001\.tar must be .* see 'synthgen ver"):
        audit(world, QUICK, "a", TruthAuditor())
    assert (world / "audit/a/train-000000.json").exists()
    assert not (world / "audit/a/train-000001.parquet").exists()


class Answering(TruthAuditor):
    """An auditor that answers wrongly; another one than the truth, whose masks are kept."""

    def __init__(self, answer: object) -> None:
        super().__init__(least=1)
        self.answer = answer

    def annotate(self, images: Sequence[np.ndarray]) -> list[Annotations]:
        return self.answer  # type: ignore[return-value]


def test_an_auditor_that_sees_nothing_rejects_and_one_that_answers_wrongly_fails(
    world: Path,
) -> None:
    class Blind(TruthAuditor):
        def annotate(self, images: Sequence[np.ndarray]) -> list[Annotations]:
            return [Annotations(np.zeros((0, 0, 0), dtype=bool), (), (), (), ())] * len(images)

    summary = audit(world, QUICK, "blind", Blind())
    assert summary["totals"]["reasons"] == {"no_annotations": 7}
    assert "top_5" not in summary["means"]
    for answer in ([], None):
        with pytest.raises(ValueError, match=r"one Annotations per image\. Got"):
            audit(world, QUICK, "wrong", Answering(answer))
    small = Annotations(np.ones((1, 4, 4), dtype=bool), (1.0,), (1.0,), ((0.0, 0.0),), ("",))
    with pytest.raises(ValueError, match=r"size of the image, 128 x 128\. Got 4 x 4 for sample"):
        audit(world, QUICK, "wrong", Answering([small] * 3))


def test_a_sample_whose_masks_have_another_size_is_rejected(tmp_path: Path) -> None:
    storage = make_dataset(tmp_path, num=3, shard_size=3)
    members = dict(members_of(i, 0, i, i) for i in range(3))
    info = json.loads(members["0000000001"]["json"])
    info["height"], info["segments"] = 64, []
    members["0000000001"]["json"] = json.dumps(info).encode()
    write_shard(storage, 0, members, 3)
    publish_manifest(storage, build_manifest(read_markers(storage), "0" * 64, [], {}))
    summary = audit(tmp_path, QUICK, "a", TruthAuditor())
    assert summary["totals"]["reasons"] == {"size_mismatch": 1}
    rows = {row.key: row for row in rows_of(tmp_path, "a", 0)}
    assert not rows["0000000001"].verdict.keep
    assert len(rows["0000000001"].annotations) == len(truth(1))


def test_unknown_auditors_and_settings_are_named(world: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'scenes-sam'"):
        audit(world, load_audit(["auditor.name=scene-sam"]))
    with pytest.raises(ValueError, match=r"Did you mean 'verdict\.min_top_n'"):
        load_audit(["verdict.min_topn=0.4"])
    with pytest.raises(ValueError, match=r"verdict\.top is not valid"):
        load_audit(["verdict.top=4"])
    by_name = load_audit(["auditor.name=truth_world:load_truth", "color_baseline=false"])
    assert audit(world, by_name, num=1)["id"].startswith("truth-world-load-truth-")


def test_settings_of_an_audit_are_no_part_of_a_dataset() -> None:
    from truth_world import CONFIG

    assert "audit" not in CONFIG.digest_settings()
    assert AuditConfig() == load_audit()
    assert scene(0).image.shape == (128, 128, 3)


# --- the command line ---------------------------------------------------------------------------


def test_the_command_prints_ours_beside_the_baselines_and_fails_by_exit_code(
    world: Path, tmp_path: Path
) -> None:
    command = [
        "audit",
        str(world),
        "--auditor",
        "truth_world:load_truth",
        "-s",
        "color_baseline=false",
    ]
    done = CliRunner().invoke(app, [*command, "--id", "mine", "--sa1b", str(tmp_path / "sa1b")])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "sa1b").glob("sa_*.json"))) == 7
    assert "Audit mine of 7 samples" in done.output
    assert "Top-15" in done.output
    assert f"synthgen.open_dataset({str(world)!r}, audited='mine')" in done.output
    strict = [*command, "--json", "-s", "verdict.min_top_n=0.999"]
    failed = CliRunner().invoke(app, strict)
    assert failed.exit_code == 4
    assert "rejected. Got 7 of 7" in failed.output
    assert json.loads(failed.stdout)["totals"]["reasons"] == {"low_agreement": 7}
    assert CliRunner().invoke(app, [*strict, "--max-failed", "1"]).exit_code == 0
