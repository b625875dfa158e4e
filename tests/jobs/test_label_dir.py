"""Labels in whole datasets: on the fly, beside a finished one, interrupted, with bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import rewrite, tiny_config, write_prompts

from synthgen import jobs
from synthgen.cli import main
from synthgen.config import LabelConfig
from synthgen.dataset.contact_sheet import inner_point, write_contact_sheet
from synthgen.dataset.labels import class_names, label_ids
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.metadata import parse_rows
from synthgen.dataset.verify import verify_dataset
from synthgen.jobs import LabelJob, label
from synthgen.storage.seal import sha256_of

pytestmark = pytest.mark.timeout(1800)  # whole datasets, on machines that are busy

CLUSTERS = LabelConfig(method="clusters", presence=0.05, margin=0.001, background=0.05)
SETTINGS = [
    *("labeling.method=clusters", "labeling.presence=0.05"),
    *("labeling.margin=0.001", "labeling.background=0.05"),
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def plain(tiny_pipeline: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of masks alone; copy it to put labels beside it."""
    out = tmp_path_factory.mktemp("plain") / "out"
    jobs.generate(tiny_config(tiny_pipeline, prompts), out)
    return out


@pytest.fixture(scope="module")
def labeled(tiny_pipeline: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset, labeled while it was made."""
    out = tmp_path_factory.mktemp("labeled") / "out"
    jobs.generate(tiny_config(tiny_pipeline, prompts, *SETTINGS), out)
    return out


@pytest.fixture
def out(plain: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain, tmp_path / "out")
    return tmp_path / "out"


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".synthgen" not in path.parts
    }


def code(*arguments: str) -> int:
    """Exit code of the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["synthgen", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
    return int(exit_.value.code or 0)


# --- while a dataset is made ------------------------------------------------------------------


def test_labels_change_neither_images_nor_masks(plain: Path, labeled: Path) -> None:
    for before, after in zip(open_dataset(plain), open_dataset(labeled), strict=True):
        np.testing.assert_array_equal(before["image"], after["image"])
        np.testing.assert_array_equal(before["mask"], after["mask"])
        np.testing.assert_array_equal(before["masks"], after["masks"])
        assert after["semantic"].shape == after["mask"].shape
        known = {"", "background", *after["json"]["classes"]}
        assert {item["label"] for item in after["json"]["segments"]} <= known
        ids = {class_names(labeled)[i] for i in np.unique(after["semantic"]).tolist()}
        found = ids - {"background", "ignore"}
        assert found == set(after["json"]["classes"]) - set(after["json"]["not_found"])
    assert verify_dataset(labeled, deep=True) == []


def test_prompts_without_classes_are_undecided(labeled: Path) -> None:
    sky = [sample for sample in open_dataset(labeled) if sample["json"]["prompt_id"] == "sky"]
    assert len(sky) == 2
    for sample in sky:
        assert set(np.unique(sample["semantic"])) == {255}
        assert sample["json"]["instances"] == sample["json"]["not_found"] == []


def test_a_labeled_sample_is_replayed_byte_for_byte(labeled: Path) -> None:
    same = jobs.replay(labeled, "0000010001")
    assert same == {f"0000010001.{s}": True for s in ("jpg", "json", "mask.png", "sem.png", "txt")}


def test_the_rows_count_what_the_maps_hold(labeled: Path) -> None:
    samples = {sample["key"]: sample for sample in open_dataset(labeled)}
    for path in sorted((labeled / "metadata").glob("*.parquet")):
        for row in parse_rows(path.read_bytes()):
            semantic, names = samples[row.key]["semantic"], class_names(labeled)
            assert row.labels is not None
            counted = dict(zip(row.labels.class_names, row.labels.pixels, strict=True))
            ids = set(np.unique(semantic).tolist()) - {0, 255}
            assert counted == {names[i]: int((semantic == i).sum()) for i in ids}
            assert row.labels.background == (semantic == 0).sum()
            assert row.labels.undecided == (semantic == 255).sum()
            assert all(0 <= score <= 1 for score in row.labels.scores)


def test_the_card_carries_classes_and_their_statistics(plain: Path, labeled: Path) -> None:
    card = (labeled / "README.md").read_text()
    assert "`KEY.sem.png`" in card
    assert "## Classes" in card
    pixels = sum(int((s["semantic"] == 1).sum()) for s in open_dataset(labeled))
    total = sum(s["semantic"].size for s in open_dataset(labeled))
    images = sum(1 in s["semantic"] for s in open_dataset(labeled))
    assert f"| car | {images} | {pixels / total:.2%} |" in card
    assert "They have no class labels" in (plain / "README.md").read_text()
    assert "labeling" not in (plain / "config.yaml").read_text()
    assert "labeling" not in (plain / "identity.json").read_text()


def test_hugging_face_reads_labels_by_the_card(labeled: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(labeled), split="train", cache_dir=str(tmp_path))
    for row, sample in zip(rows, open_dataset(labeled), strict=True):
        np.testing.assert_array_equal(np.asarray(row["sem.png"]), sample["semantic"])
        assert row["json"]["not_found"] == sample["json"]["not_found"]
        assert row["json"]["instances"] == sample["json"]["instances"]


def test_the_contact_sheet_shows_the_names(plain: Path, labeled: Path, tmp_path: Path) -> None:
    with_names = Image.open(write_contact_sheet(labeled, tmp_path / "a.png", num=2))
    without = Image.open(write_contact_sheet(plain, tmp_path / "b.png", num=2))
    assert with_names.width > without.width
    mask = np.zeros((9, 12), dtype=bool)
    mask[1:8, 2:9] = True
    mask[0, 11] = True
    assert inner_point(mask) == (5, 4)


# --- beside a finished dataset ----------------------------------------------------------------


def test_side_labels_have_the_bytes_of_labels_on_the_fly(out: Path, labeled: Path) -> None:
    before = hashes(out)
    summary = label(out, CLUSTERS, label_id="side")
    after = hashes(out)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("labels/side/") for name in after.keys() - before.keys())
    for side, fly in zip(open_dataset(out, labels="side"), open_dataset(labeled), strict=True):
        np.testing.assert_array_equal(side["semantic"], fly["semantic"])
        for name in ("segments", "not_found", "instances"):
            assert side["json"][name] == fly["json"][name]
    card = (labeled / "README.md").read_text()
    for name, row in summary["statistics"]["classes"].items():
        assert f"| {name} | {row['images']} |" in card
    assert verify_dataset(out) == []


def test_other_ks_bring_their_own_masks(out: Path) -> None:
    label(out, CLUSTERS, ks=(2, 4), label_id="two")
    for before, after in zip(open_dataset(out), open_dataset(out, labels="two"), strict=True):
        np.testing.assert_array_equal(before["image"], after["image"])
        ks = {k for item in after["json"]["segments"] for k, _ in item["members"]}
        assert ks <= {2, 4}
        assert len(after["masks"]) == after["json"]["num_segments"]
        assert after["mask"].max() <= len(after["masks"])
        for item, mask in zip(after["json"]["segments"], after["masks"], strict=True):
            assert item["area"] == mask.sum()


def test_self_attention_is_recorded_where_the_method_needs_it(out: Path) -> None:
    found = {}
    for method in ("propagate", "dataset-diffusion"):
        settings = CLUSTERS.model_copy(update={"method": method})
        label(out, settings, label_id=method, num=1)
        found[method] = label_ids(out)
    assert found["dataset-diffusion"] == ["dataset-diffusion", "propagate"]


def test_an_id_stands_for_one_set_of_settings(out: Path) -> None:
    for _ in range(2):
        LabelJob(out, CLUSTERS, label_id="mine").begin()
    other = LabelJob(out, CLUSTERS.model_copy(update={"margin": 0.5}), label_id="mine")
    with pytest.raises(ValueError, match=r"change of labeling.margin. Undo it, or choose"):
        other.begin()
    assert LabelJob(out, CLUSTERS).result_id.startswith("clusters-")


def test_a_sample_that_does_not_come_out_again_is_not_labeled(out: Path) -> None:
    path = out / "metadata" / "train-000000.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    seeds = pa.array([seed + 1 for seed in table["seed"].to_pylist()], pa.int64())
    position = table.column_names.index("seed")
    pq.write_table(table.set_column(position, table.schema.field("seed"), seeds), path)
    rewrite(out / "stats" / "train-000000.json", metadata_sha256=sha256_of(path.read_bytes()))
    with pytest.raises(ValueError, match=r"must come out as it is.*Got other bytes"):
        label(out, CLUSTERS, label_id="other")
    assert not (out / "labels/other/train-000000.tar").exists()


# --- bad input, on the command line -----------------------------------------------------------


def bad(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that bad input gives, after exit code 2."""
    assert code(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def source(tmp_path: Path, pipeline: Path, *prompts: dict[str, object]) -> list[str]:
    """Arguments that generate a labeled dataset from prompts."""
    path = write_prompts(tmp_path / "p.jsonl", prompts)
    given = ["generate", str(path), "--out", str(tmp_path / "new"), "--engine", "inline"]
    settings = [f"model.card={pipeline}", "labeling.method=clusters", "num=1"]
    return [*given, *(word for s in settings for word in ("--set", s))]


def test_bad_classes_are_one_line_and_exit_code_2(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [{"prompt": f"a {i}", "classes": [f"thing {i:03d}"]} for i in range(255)]
    cases: list[tuple[tuple[dict[str, object], ...], list[str], str]] = [
        (({"prompt": "a car", "classes": ["dog"]},), ["labeling.text=prompt"], "no token for"),
        (tuple(many), [], "at most 254 classes"),
        (
            ({"prompt": "x", "classes": ["airplane"]}, {"prompt": "y", "classes": ["plane"]}),
            [],
            "must have one name",
        ),
        (({"prompt": "a car", "classes": []},), [], "Got none in any prompt"),
        (({"prompt": "a car", "classes": ["car"]},), ["labeling.method=custer"], "clusters"),
        (({"prompt": "a car", "classes": ["car"]},), ["labeling.margin=2"], "labeling.margin"),
    ]
    for number, (prompts, settings, message) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = [word for setting in settings for word in ("--set", setting)]
        line = bad(capsys, *source(folder, tiny_pipeline, *prompts), *words)
        assert message in line, line
        assert not (folder / "new" / "data").exists()


def test_bad_arguments_of_label_are_one_line_and_exit_code_2(
    out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there = str(out)
    assert "must change a setting of labeling" in bad(capsys, "label", there, "--set", "num=3")
    assert "Did you mean 'vote'" in bad(capsys, "label", there, "--method", "vot")
    assert "increasing integers" in bad(capsys, "label", there, "--ks", "5,2")
    assert "id of labels" in bad(capsys, "label", there, "--id", "../data")
    assert "method must be a labeler" in bad(capsys, "label", there, "--method", "none")
    assert "manifest" in bad(capsys, "label", str(tmp_path / "nowhere"))
    (out / "classes.json").write_text('{"0": "background", "255": "ignore"}')
    assert "Got none in any prompt" in bad(capsys, "label", there)
    table = {"0": "background", "1": "airplane", "2": "plane", "255": "ignore"}
    (out / "classes.json").write_text(json.dumps(table))
    assert "must have one name" in bad(capsys, "label", there)


def test_a_class_that_never_occurs_is_counted_and_harms_nothing(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for s in SETTINGS[1:] for word in ("--set", s)]
    never = ["--set", "labeling.presence=1.0"]
    inline = ["--engine", "inline", "--json"]
    assert code("label", str(out), "--id", "never", *settings, *never, *inline) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    classes = summary["statistics"]["classes"]
    assert {name: row["images"] for name, row in classes.items()} == {
        "car": 0,
        "dog": 0,
        "tree": 0,
    }
    assert classes["car"]["not_found"] == 3
    for sample in open_dataset(out, labels="never"):
        assert sample["json"]["not_found"] == sample["json"]["classes"]
        assert sample["json"]["instances"] == []


# --- the embedded model -----------------------------------------------------------------------
