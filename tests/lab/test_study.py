"""Parameter studies: captured once, swept row by row, resumed to the same bytes."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from planted import PIXELS, planted_sample, quadrants, random_sample
from tiny_run import tiny_config, write_prompts

from synthgen.auditing import judge
from synthgen.cli import main
from synthgen.config import AuditorConfig, ClusterConfig, Config, SegmentationConfig
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.selection import attention_layers
from synthgen.lab.study import study as study_module
from synthgen.lab.study.captures import (
    Captures,
    Progress,
    check_scratch,
    local_storage,
)
from synthgen.lab.study.images import truth_annotations, truth_scores
from synthgen.lab.study.settings import Layout, Setting, StudyName, model_layout, study_rows
from synthgen.lab.study.study import Study, score_row
from synthgen.lab.world.render import render
from synthgen.progress import report
from synthgen.registry import CLUSTER_REFINERS
from synthgen.segmentation.packed import PackedMasks
from synthgen.segmentation.segment import segment_sample
from synthgen.types import (
    Annotations,
    Failure,
    HeadFeatures,
    MaskSet,
    PlannedSample,
    Prompt,
    Sample,
    Segmentation,
)

pytestmark = pytest.mark.timeout(1200)  # real pipelines, on machines that are busy

NAMES: tuple[StudyName, ...] = ("layers", "components", "resolutions", "mid", "upsampling")
HALVES = AuditorConfig(name="test_study:load_halves")


def run_study(
    names: Sequence[StudyName],
    config: Config,
    auditor: AuditorConfig,
    out: Path,
    progress: Progress = report,
    **options: Any,
) -> list[Path]:
    """Studies from beginning to end, or from where they were cut off."""
    study = Study(names, config, auditor, out, **options)
    study.capture(progress)
    study.score(progress)
    return study.finalize()


class HalvesAuditor:
    """Sees the four halves and the whole of every image; counts what it looked at."""

    def __init__(self) -> None:
        self.identity = {"name": "halves"}
        self.looked = 0

    def annotate(self, images: Sequence[np.ndarray]) -> list[Annotations]:
        self.looked += len(images)
        return [halves(image.shape[:2]) for image in images]


def halves(size: tuple[int, ...]) -> Annotations:
    rows, columns = np.mgrid[: size[0], : size[1]] * 2
    masks = [rows < size[0], rows >= size[0], columns < size[1], columns >= size[1], rows >= 0]
    ones = (1.0,) * len(masks)
    return Annotations(np.stack(masks), ones, ones, ((-1.0, -1.0),) * 5, ("",) * 5)


def load_halves(settings: AuditorConfig) -> HalvesAuditor:
    return HalvesAuditor()


def test_layout_of_a_real_unet(tiny_study: Config) -> None:
    backbone = load_backbone(tiny_study.model)
    layers = attention_layers(backbone.pipeline.unet, (8, 16))
    assert model_layout(layers, (32, 64)) == Layout((8, 4, 2), 16, 64, 16, True)
    every = {layer.name: layer.grid for layer in layers}
    features = HeadFeatures({name: torch.zeros(1, 1, 1) for name in every}, every)
    for row in study_rows("mid", Layout((8, 4, 2), 16, 64, 64, True)):
        chosen = row.setting.select(features).values
        slow = {"none": [], "up": ["up"], "down": ["down"], "both": ["up", "down"]}
        parts = slow[row.setting.layers] + ["mid"] * row.setting.mid
        assert set(chosen) == {n for n in every if any(n.startswith(part) for part in parts)}
    part = Setting("up", False, (4,), 3, True, 16).select(features).grids
    assert set(part.values()) == {(4, 8)}
    assert len(part) == 3


# --- one row -----------------------------------------------------------------------------------


def test_a_row_is_the_datasets_own_pipeline() -> None:
    sample, base = random_sample(((4, 4), (8, 8)), dim=8), SegmentationConfig()
    renamed = {
        name.replace("up.", "up_blocks.1."): v for name, v in sample.features.values.items()
    }
    grids = {name.replace("up.", "up_blocks.1."): g for name, g in sample.features.grids.items()}
    seen = halves((32, 32))
    sample = replace(sample, features=HeadFeatures(renamed, grids))
    setting = Setting("up", False, (8,), 3, True, 16)
    found = score_row(sample, setting, base, seen)
    tree = base.model_dump()
    tree["features"] |= {"components": 3, "reweight": True, "normalization": "none"}
    tree["clusters"] |= {"resolution": 16}
    only = {name for name, grid in grids.items() if grid == (8, 8)}
    features = HeadFeatures({n: renamed[n] for n in only}, {n: grids[n] for n in only})
    expected = segment_sample(replace(sample, features=features), SegmentationConfig(**tree))
    ours, theirs = (PackedMasks.of(x.masks, 32, 32) for x in (expected.mask_set, seen))
    metrics = judge.score(ours, expected.mask_set.members, theirs, base.clusters.ks)
    assert found == {k: metrics[k] for k in found}
    assert "top_15" in found
    assert not any(name.startswith("color_baseline") for name in found)


def test_known_regions_are_found() -> None:
    sample = planted_sample()
    features = HeadFeatures(
        {"up_blocks.1.attn1": sample.features.values["up.0"]}, {"up_blocks.1.attn1": (16, 16)}
    )
    sample, region = replace(sample, features=features), quadrants(PIXELS)
    masks = np.stack([region == value for value in range(4)])
    ones = (1.0,) * 4
    seen = Annotations(masks, ones, ones, ((-1.0, -1.0),) * 4, ("",) * 4)
    base = SegmentationConfig(clusters=ClusterConfig(ks=(2, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 64 of 8 components: clamped in silence, said once before
        full = score_row(sample, Setting("up", False, (16,), 64, False, 64), base, seen)
    few = score_row(sample, Setting("up", False, (16,), 1, False, 64), base, seen)
    assert full["top_5"] > 0.9
    assert few["top_5"] == pytest.approx(full["top_5"], abs=0.02)  # one direction per head


def test_truth_of_a_scene() -> None:
    scene = render(2_000_003)
    seen = truth_annotations(scene)
    assert seen.masks[0].tobytes() == (scene.instance == 0).tobytes()
    assert all(
        any((mask == (scene.instance == o.instance)).all() for mask in seen.masks)
        for o in scene.objects
    )
    labels = np.stack([scene.semantic, scene.part])
    masks = [labels[0] == v for v in np.unique(labels[0])] + [
        labels[1] == v for v in np.unique(labels[1])
    ]
    orphans = np.full(len(masks), -1)
    exact = Segmentation.of(MaskSet(np.stack(masks), (), orphans), (2, 3), labels)
    found = truth_scores(scene, exact)
    assert found["class_iou"] == found["part_iou"] == found["ari"] == 1.0


# --- captures ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_study(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three tiny images of three prompts in two batches."""
    prompts = write_prompts(tmp_path_factory.mktemp("study") / "prompts.jsonl")
    return tiny_config(tiny_pipeline, prompts, "num=3")


def planned(index: int) -> PlannedSample:
    return PlannedSample(f"{index:010d}", Prompt(f"p{index}", "noise"), 0, index)


def drawn(batch: Sequence[PlannedSample]) -> list[Sample | Failure]:
    return [replace(random_sample(seed=p.seed), prompt=p.prompt, seed=p.seed) for p in batch]


def test_only_what_is_missing_damaged_or_too_narrow_is_made_again(tmp_path: Path) -> None:
    batches = ((planned(0), planned(1)), (planned(2), planned(3)), (planned(4),))
    keys = [p.key for batch in batches for p in batch]
    names = frozenset(random_sample().features.values)
    captures, made = Captures(local_storage(tmp_path), names), []

    def make(batch: tuple[PlannedSample, ...]) -> list[Sample | Failure]:
        made.extend(p.key for p in batch)
        return drawn(batch)

    captures.fill(batches, keys[:4], make, lambda *a, **k: None)
    assert made == keys[:4]  # the last is not wanted
    (drawn_first,), again = drawn([planned(0)]), captures.load(planned(0))
    assert again.image.tobytes() == drawn_first.image.tobytes()
    assert dict(again.features.grids) == dict(drawn_first.features.grids)
    for name, value in drawn_first.features.values.items():
        assert torch.equal(again.features.values[name], value)
    contents = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    made.clear()
    captures.fill(batches, keys[:4], make, lambda *a, **k: None)
    assert not made
    (tmp_path / f"{keys[1]}.safetensors").unlink()
    damaged = tmp_path / f"{keys[2]}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    captures.fill(batches, keys[:4], make, lambda *a, **k: None)
    assert made == keys[:4]  # whole batches, so that their bytes are the same
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")} == contents
    made.clear()
    wider = Captures(local_storage(tmp_path), names | {"mid_block.attn1"})
    with pytest.raises(ZeroDivisionError):
        wider.fill(batches, keys, lambda batch: [1 / 0], lambda *a, **k: None)


def test_failures_are_kept_and_left_out(
    tiny_study: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image is black, the second has head outputs that are not finite."""
    real = study_module.make_images

    def make_images(*args: Any) -> list[Sample | Failure]:
        made = real(*args)
        if made[0].prompt.id == "car":
            values = {name: value.clone() for name, value in made[1].features.values.items()}
            next(iter(values.values()))[0, 0, 0] = math.nan
            made[1] = replace(made[1], features=HeadFeatures(values, made[1].features.grids))
            made[0] = Failure(made[0].prompt, made[0].seed, "black_image", "all pixels are 0")
        return made

    monkeypatch.setattr(study_module, "make_images", make_images)
    (path,) = run_study(["layers"], tiny_study, HALVES, tmp_path)
    assert "(failed: 1 × black_image, 1 × nan_latents)" in path.read_text()
    found = pq.read_table(tmp_path / "layers.parquet").to_pylist()
    assert {row["prompt_id"] for row in found} == {"sky"}


def test_scratch_is_budgeted_before_anything_is_made(tiny_study: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--scratch-gb must be at least 0.1 .* Got 1e-05; raise"):
        run_study(["layers"], tiny_study, HALVES, tmp_path / "out", scratch_gb=1e-5)
    assert not (tmp_path / "out").exists()
    check_scratch(10**9, 3, 3.0)


# --- studies from beginning to end -------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_study: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five studies of three tiny images, made without a break."""
    out = tmp_path_factory.mktemp("studies")
    with pytest.warns(UserWarning, match="Components must be at most"):
        run_study(NAMES, tiny_study, HALVES, out)
    return out


def test_tables_hold_every_row_of_every_image(finished: Path, tiny_study: Config) -> None:
    layout = Layout((8, 4, 2), 16, 64, 16, True)
    for name in NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = study_rows(name, layout)
        table = pq.read_table(finished / f"{name}.parquet")
        assert table.num_rows == 3 * len(rows)
        found = table.to_pylist()
        assert {row["key"] for row in found} == {f"{i:010d}" for i in range(3)}
        assert [row["layers"] for row in found[::3]] == [row.setting.layers for row in rows]
        assert all(0 <= row["top_5"] <= 1 and row["top_5_count"] == 5 for row in found)
        about = json.loads(table.schema.metadata[b"synthgen.lab.study"])
        assert (about["name"], about["auditor"]) == (name, HALVES.name)
        text = (finished / f"{name}.md").read_text()
        assert f"## Study `{name}`" in text
        assert "3 drawn from the prompts 'prompts.jsonl'" in text
        assert str(finished) not in text
        assert "What the figures say" in text
    (folder,) = (finished / "scratch").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 3, "studies share captures, and scores"
    assert len([path for path in folder.glob("scores-*") if path.is_dir()]) == 1


def test_a_finished_study_does_nothing_again(
    finished: Path, tiny_study: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(study_module, "make_images", never)
    monkeypatch.setattr(study_module, "score_row", never)
    with pytest.warns(UserWarning, match="Components must be"):
        run_study(NAMES, tiny_study, HALVES, finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


class Cut(BaseException):
    """What a signal raises."""


def cut_after(count: int) -> Callable[..., None]:
    """A progress that ends the study at its n-th event."""
    left = iter(range(count))

    def progress(event: str, **fields: object) -> None:
        if next(left, None) is None:
            raise Cut

    return progress


def test_a_study_that_was_cut_off_ends_in_the_same_bytes(
    tiny_study: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    (first,) = run_study(["layers"], tiny_study, HALVES, whole)
    assert first == whole / "layers.md"
    scored: list[tuple[int, str]] = []

    def counted(sample: Sample, setting: Setting, *rest: Any) -> dict[str, float]:
        scored.append((sample.seed, setting.name))
        return score_row(sample, setting, *rest)

    monkeypatch.setattr(study_module, "score_row", counted)
    for count in (1, 3, 6, 11):
        with pytest.raises(Cut):
            run_study(["layers"], tiny_study, HALVES, cut, progress=cut_after(count))
    run_study(["layers"], tiny_study, HALVES, cut)
    assert len(scored) == len(set(scored)) == 3 * 7  # no row twice, but those of the cuts
    for name in ("layers.md", "layers.parquet"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_more_images_keep_the_others(finished: Path, tiny_study: Config, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    two = tiny_study.model_copy(update={"num": 2})
    (path,) = Study(["layers"], two, HALVES, out).finalize()  # nothing to capture or to score
    assert "2 drawn" in path.read_text()


def test_no_table_is_written_before_its_rows_are_scored(
    tiny_study: Config, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="Got 3 images with missing rows, from 0000000000 on"):
        Study(["layers"], tiny_study, HALVES, tmp_path).finalize()


def test_other_settings_have_other_scores(tiny_study: Config, tmp_path: Path) -> None:
    plain = Study(["layers"], tiny_study, HALVES, tmp_path)
    segmentation = tiny_study.segmentation.model_copy(update={"method": "head-average"})
    changed = tiny_study.model_copy(update={"segmentation": segmentation})
    other = Study(["layers"], changed, HALVES, tmp_path)
    assert other.captures == plain.captures
    assert other.scores != plain.scores
    drawn_again = tiny_study.model_copy(update={"seed": 12})
    assert Study(["layers"], drawn_again, HALVES, tmp_path).captures != plain.captures


@pytest.fixture(scope="module")
def rendered(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layer study of two rendered scenes, judged by their truth."""
    out = tmp_path_factory.mktemp("rendered")
    config = tiny_config(tiny_pipeline, Path("scenes"), "num=2")
    truth = AuditorConfig(name="truth")
    run_study(["layers", "mid", "refinement"], config, truth, out, source="rendered")
    return out


def test_borders_are_studied_on_each_grid_and_at_each_k(rendered: Path) -> None:
    found = pq.read_table(rendered / "refinement.parquet").to_pylist()
    per_grid = [row for row in found if row["k"] is None]
    assert {row["refiner"] for row in per_grid} == {*CLUSTER_REFINERS}
    assert {tuple(row["grids"]) for row in per_grid} == {(8, 16, 32), (8,), (16,), (32,)}
    one_k = [row for row in found if row["k"] is not None]
    assert {(row["k"], row["refiner"]) for row in one_k} == {
        (k, refiner) for k in (2, 3) for refiner in ("none", "affinity-guided")
    }
    for row in one_k:
        assert 0 < row["num_masks"] <= row["k"]
        others = {f"top_5_k{k}" for k in (2, 3) if k != row["k"]}
        assert all(row[name] is None for name in others)
        assert row[f"top_5_k{row['k']}"] == pytest.approx(row["top_5"])
    text = (rendered / "refinement.md").read_text()
    assert "| refiner | k |" in text
    assert "- affinity-guided ≥ none (both [16], all k): " in text
    assert "- affinity-guided ≥ none (both [8, 16, 32], k 3): " in text


def test_rendered_scenes_are_scored_against_their_truth(rendered: Path) -> None:
    found = pq.read_table(rendered / "layers.parquet").to_pylist()
    assert {row["seed"] for row in found} == {2_000_000, 2_000_001}
    for row in found:
        scene = render(row["seed"])
        assert row["num_annotations"] == len(truth_annotations(scene))
        assert 0 < row["class_iou"] < 1
        assert 0 < row["part_iou"] < 1
    text = (rendered / "layers.md").read_text()
    assert "| class IoU | part IoU | masks |" in text
    assert "class IoU +" in text or "class IoU -" in text
    assert "known truth" in text


def test_truth_of_generated_images_is_refused(tiny_study: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--images rendered"):
        run_study(["layers"], tiny_study, AuditorConfig(name="truth"), tmp_path)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the command line in this process; gives exit code, output and errors."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_command_prints_the_paths_and_goes_on(
    command: Callable[..., tuple[int, str, str]], tiny_study: Config, tmp_path: Path
) -> None:
    config = tiny_study
    sets = [
        *("generation.num_inference_steps=1", "generation.height=32", "generation.width=64"),
        *("segmentation.clusters.ks=[2,3]", "model.device=cpu", "generation.batch_size=2"),
    ]
    args = [
        *("study", "layers", "--backbone", config.model.card, "--prompts", config.prompts),
        *("--num", 2, "--auditor", HALVES.name, "--out", tmp_path),
        *(part for text in sets for part in ("--set", text)),
    ]
    code, out, err = command(*args)
    assert (code, out.strip().replace("\n", "")) == (0, str(tmp_path / "layers.md"))
    assert "2/2 images, 1/1 batches" in err
    assert "14/14 rows, 2/2 images" in err
    assert command(*args)[0] == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["layers", "--set", "capture.layers=up"], "rows of a study decide it"),
        (["layers", "--set", "segmentation.features.components=3"], "rows of a study decide it"),
        (["layers", "--set", "sead=1"], "seed"),
        (["layers", "--images", "rendered", "--prompts", "voc"], "no effect"),
        (["layers", "--auditor", "truth"], "--images rendered"),
        (["layers", "--auditor", "scenes-san", "--num", "1"], "scenes-sam"),
        (["layers", "--backbone", "scense", "--auditor", HALVES.name], "scenes"),
        (["layrs"], "layers"),
        (["layers", "--num", "0"], "num"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command("study", *args)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
