"""Runs: what determines the bytes, what does not, and what becomes of samples that fail."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import pyarrow.parquet as pq
import pytest
import torch
from children import context, make_shards
from tiny_run import PROMPTS, tiny_config, tree_hashes, write_prompts
from typer.testing import CliRunner

from synthgen import jobs
from synthgen.cli import app
from synthgen.config import Config, ModelConfig, load
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.verify import verify_dataset
from synthgen.diffusion import backbones
from synthgen.diffusion import generate as drawing
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.schedulers import FAMILY
from synthgen.jobs.identity import config_digest, model_content, read_config
from synthgen.storage.publish import open_storage
from synthgen.types import Failure, Prompt, Sample

generate_module, identity_module, job_module = (
    sys.modules[f"synthgen.jobs.{name}"] for name in ("generate", "identity", "job")
)
SHARDS = ("train-000000", "train-000001", "train-000002")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl")


@pytest.fixture
def config(tiny_pipeline: Path, prompts: Path) -> Config:
    return tiny_config(tiny_pipeline, prompts)


def markers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((out / "stats").glob("*.json"))]


# --- the plan ---------------------------------------------------------------------------------


def test_the_plan_goes_round_the_prompts(config: Config) -> None:
    specs = jobs.plan(config)
    assert [len(spec.samples) for spec in specs] == [3, 3, 2]
    samples = [sample for spec in specs for sample in spec.samples]
    assert [s.prompt.id for s in samples] == ["car", "dog", "sky"] * 2 + ["car", "dog"]
    assert [s.image_index for s in samples] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert samples[4].key == "0000010001"
    assert len({s.key for s in samples}) == len({s.seed for s in samples}) == 8
    assert all(0 <= s.seed < 2**63 for s in samples)


def test_the_seed_is_blake2b_of_what_it_says() -> None:
    text = b'[7, "car", 2]'
    expected = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") // 2
    assert jobs.sample_seed(7, "car", 2) == expected
    assert jobs.sample_seed(7, 'car", 2', 2) != expected


def test_inserting_a_prompt_changes_no_other_seed(config: Config, prompts: Path) -> None:
    def seeds() -> dict[tuple[str, int], int]:
        samples = [s for spec in jobs.plan(config) for s in spec.samples]
        return {(s.prompt.id, s.image_index): s.seed for s in samples}

    before = seeds()
    write_prompts(prompts, ({"id": "new", "prompt": "a house", "classes": []}, *PROMPTS))
    after = seeds()
    assert {key: after[key] for key in before.keys() & after.keys()} == {
        key: before[key] for key in before.keys() & after.keys()
    }
    assert ("new", 0) in after


def test_a_larger_num_keeps_every_earlier_sample(config: Config) -> None:
    small = [s for spec in jobs.plan(config) for s in spec.samples]
    large = jobs.plan(config.model_copy(update={"num": 50}))
    assert [s for spec in large for s in spec.samples][:8] == small


# --- the digest -------------------------------------------------------------------------------


def test_the_digest_covers_settings_prompts_and_weights(
    config: Config, prompts: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    digest = jobs.config_digest(config)
    assert jobs.config_digest(config.model_copy(update={"num": 9})) == digest
    elsewhere = write_prompts(tmp_path / "elsewhere.jsonl")
    assert jobs.config_digest(config.model_copy(update={"prompts": str(elsewhere)})) == digest
    copied = shutil.copytree(tiny_pipeline, tmp_path / "copied")
    assert jobs.config_digest(tiny_config(copied, prompts)) == digest
    different = [
        tiny_config(tiny_pipeline, prompts, override)
        for override in ("seed=12", "segmentation.clusters.ks=[2,4]", "dataset.image_format=png")
    ]
    unet = copied / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(unet.read_bytes())
    content[-1] ^= 1
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    (other / "unet" / unet.name).write_bytes(content)
    different.append(tiny_config(other, prompts))
    digests = {jobs.config_digest(other) for other in different}
    write_prompts(prompts, PROMPTS[:2])
    digests.add(jobs.config_digest(config))
    assert len(digests | {digest}) == 6


def test_a_run_reads_prompts_once_and_hashes_the_model_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counted(*arguments: Any) -> Any:
            calls[name] += 1
            return real(*arguments)

        monkeypatch.setattr(module, name, counted)

    for module, name in (
        (generate_module, "prompts_of"),
        (identity_module, "model_content"),
        (job_module, "open_storage"),
    ):
        count(module, name)
    jobs.generate(config, tmp_path / "out")
    assert calls == {"prompts_of": 1, "model_content": 1, "open_storage": 1}


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_a_model_is_the_same_with_its_weights_and_without(
    name: str, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under every scheduler: diffusers adds defaults and corrects outdated settings."""
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", name]
    (folder / "model_index.json").write_text(json.dumps(index))
    stored = {"_class_name": name, "beta_schedule": "scaled_linear"}
    if "clip_sample" in inspect.signature(getattr(diffusers, name)).parameters:
        stored |= {"clip_sample": True, "steps_offset": 0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(stored))
    config = ModelConfig(card=str(folder))
    whole, outline = load_backbone(config), load_backbone(config, weights=False)
    assert (outline.pipeline.unet, outline.pipeline.vae) == (None, None)
    expected = {k: v for k, v in whole.pipeline.scheduler.config.items() if k[0] != "_"}
    content = model_content(config)
    assert content["scheduler"] == json.loads(json.dumps({"class": name, **expected}))
    assert content["model"] == dict(whole.identity)
    assert (whole.device, whole.dtype) == (outline.device, outline.dtype)


def test_a_finished_dataset_loads_no_weights(
    tiny_dataset: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does its dry run, nor one of a dataset that is not begun."""
    out = shutil.copytree(tiny_dataset, tmp_path / "out")  # whose config.yaml is written again
    monkeypatch.setattr(backbones, "_load", None)
    labeled = load(overrides=["labeling.method=clusters"])
    jobs.GenerateJob(labeled, tmp_path / "absent").rehearse()
    jobs.GenerateJob(config, out).rehearse()
    assert jobs.generate(config, out)["totals"]["samples"] == 8


# --- equal bytes ------------------------------------------------------------------------------


def test_bytes_depend_neither_on_order_nor_processes_nor_place(
    tiny_dataset: Path, config: Config, tmp_path: Path
) -> None:
    """Two processes at once, backwards, from a copy of the prompts, in another folder."""
    out = tmp_path / "out"
    jobs.GenerateJob(config, out).begin()
    orders: list[tuple[int, ...]] = [(2, 0), (2, 1)]
    workers = [context().Process(target=make_shards, args=(config, out, o)) for o in orders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(250)
    assert [worker.exitcode for worker in workers] == [0, 0]
    jobs.GenerateJob(config, out).finalize()
    assert _comparable(out) == _comparable(tiny_dataset)
    assert verify_dataset(out, deep=True) == []


def _comparable(out: Path) -> dict[str, str]:
    """config.yaml names the paths of prompts and model, which may differ."""
    return {name: value for name, value in tree_hashes(out).items() if name != "config.yaml"}


def test_a_second_run_does_nothing_and_a_lost_shard_comes_back(
    tiny_dataset: Path, config: Config, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    assert jobs.generate(config, out)["totals"]["samples"] == 8
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {"config.yaml", "manifest.json"}  # another path, and its hash
    (out / "stats" / "train-000001.json").unlink()
    (out / "data" / "train-000002.tar").unlink()
    reused = [jobs.GenerateJob(config, out).run_shard(shard).reused for shard in SHARDS]
    assert reused == [True, True, False]
    jobs.GenerateJob(config, out).finalize()
    assert _comparable(out) == _comparable(tiny_dataset)


def test_growing_keeps_full_shards_and_publishes_a_second_version(
    tiny_dataset: Path, config: Config, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    larger = config.model_copy(update={"num": 10})
    jobs.GenerateJob(larger, out).begin()
    assert jobs.status(out).finalized is False
    job = jobs.GenerateJob(larger, out)
    done = [job.run_shard(spec.name) for spec in job.specs]
    assert [each.reused for each in done] == [True, True, False, False]
    job.finalize()
    assert verify_dataset(out, deep=True) == []
    assert {path.name for path in (out / "manifests").iterdir()} == {"v0001.json", "v0002.json"}
    fresh = tmp_path / "fresh"
    jobs.generate(larger, fresh)
    grown = _comparable(out)
    assert {n: h for n, h in grown.items() if n.startswith("data/")} == {
        n: h for n, h in _comparable(fresh).items() if n.startswith("data/")
    }
    with pytest.raises(ValueError, match="num must not shrink"):
        jobs.GenerateJob(config, out).begin()


def test_replay_makes_the_same_sample_and_notices_another(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    for key in ("0000000002", "0000010001"):  # a batch of one, and the second of two
        members = jobs.replay(out, key)
        assert members == {f"{key}.{s}": True for s in ("jpg", "json", "mask.png", "txt")}
    table = pq.read_table(out / "metadata" / "train-000001.parquet")
    rows = table.to_pylist()
    rows[1]["seed"] += 1
    import pyarrow as pa

    changed = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(changed, out / "metadata" / "train-000001.parquet")
    members = jobs.replay(out, "0000010001")
    assert members["0000010001.jpg"] is False
    assert members["0000010001.txt"] is True
    for key in ("0000990000", "0000010009", "../../x"):
        with pytest.raises(ValueError, match="must be"):
            jobs.replay(out, key)


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_other_image_formats(
    tiny_pipeline: Path, prompts: Path, tmp_path: Path, image_format: str
) -> None:
    overrides = (f"dataset.image_format={image_format}", "num=2", "dataset.preview_every=0")
    config = tiny_config(tiny_pipeline, prompts, *overrides)
    jobs.generate(config, tmp_path / "out")
    assert verify_dataset(tmp_path / "out", deep=True) == []
    assert len(list(open_dataset(tmp_path / "out"))) == 2
    assert not (tmp_path / "out" / "previews").exists()


# --- samples that fail ------------------------------------------------------------------------


Generate = Callable[..., list[Sample | Failure]]


def _failing(generate: Generate, fails: Callable[[Prompt, int], str]) -> Generate:
    """The real generator, some of whose samples are replaced by failures afterwards."""

    def wrapped(model: Any, prompts: Any, seeds: Any, *settings: Any) -> list[Sample | Failure]:
        outcomes = generate(model, prompts, seeds, *settings)
        return [
            Failure(p, s, reason, "made to fail, token=hunter2hunter2")  # type: ignore[arg-type]
            if (reason := fails(p, s))
            else outcome
            for p, s, outcome in zip(prompts, seeds, outcomes, strict=True)
        ]

    return wrapped


def test_failed_samples_are_rows_and_a_shard_without_samples_has_no_tar(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = jobs.plan(config)
    doomed = {sample.seed for sample in specs[1].samples} | {specs[0].samples[1].seed}
    failing = _failing(drawing.generate, lambda p, s: "black_image" if s in doomed else "")
    monkeypatch.setattr(drawing, "generate", failing)
    out = tmp_path / "out"
    manifest = jobs.generate(config, out)
    assert manifest["totals"]["samples"] == 4
    assert manifest["totals"]["reasons"] == {"black_image": 4}
    assert [row["skipped"] for row in manifest["shards"]] == [False, True, False]
    assert not (out / "data" / "train-000001.tar").exists()
    assert verify_dataset(out, deep=True) == []
    assert len(list(open_dataset(out))) == 4
    rows = pq.read_table(out / "metadata" / "train-000000.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert (rows[1]["reason"], rows[1]["byte_offset"]) == ("black_image", -1)
    assert rows[1]["message"] == "made to fail, token=***"
    assert "train-000001.tar" not in (out / "README.md").read_text().split("---\n")[1]
    with pytest.raises(ValueError, match="reason 'black_image'"):
        jobs.replay(out, "0000000001")
    status = jobs.status(out)
    assert (status.complete_shards, status.samples, status.failed) == (3, 4, 4)
    assert all(jobs.GenerateJob(config, out).run_shard(shard).reused for shard in SHARDS)


def test_samples_whose_clusters_did_not_stand_still_are_counted(
    tiny_pipeline: Path, prompts: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_pipeline, prompts, "num=2", "segmentation.clusters.max_iterations=1")
    jobs.generate(config, tmp_path / "out")
    (marker,) = markers(tmp_path / "out")
    assert (marker["counts"], marker["unconverged"]) == ({"ok": 2, "failed": 0}, 2)
    rows = pq.read_table(tmp_path / "out" / "metadata").to_pylist()
    assert [(row["iterations"], row["converged"]) for row in rows] == [(2, False)] * 2
    assert jobs.status(tmp_path / "out").unconverged == 2
    assert CliRunner().invoke(app, ["status", str(tmp_path / "out")]).stdout.count("unconverged")


# --- identity, environment, secrets -----------------------------------------------------------


def test_another_configuration_is_refused_and_the_keys_are_named(
    tiny_dataset: Path, config: Config, prompts: Path, tiny_pipeline: Path
) -> None:
    other = tiny_config(tiny_pipeline, prompts, "seed=12", "segmentation.features.components=3")
    job = jobs.GenerateJob(other, tiny_dataset)
    for call in (job.begin, job.finalize):
        with pytest.raises(
            ValueError, match=r"change of seed, segmentation\.features\.components"
        ):
            call()
    with pytest.raises(ValueError, match="change of seed"):
        jobs.GenerateJob(other, tiny_dataset).run_shard("train-000000")
    write_prompts(prompts, PROMPTS[:2])
    with pytest.raises(ValueError, match=r"change of prompts\.num, prompts\.sha256"):
        jobs.GenerateJob(config, tiny_dataset).begin()


def test_another_library_version_is_recorded_or_refused(
    tiny_dataset: Path, config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(tiny_dataset, tmp_path / "out")
    identity = json.loads((out / "identity.json").read_text())
    identity["environments"][0]["versions"]["torch"] = "1.0"
    (out / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(ValueError, match=r"change of versions\.torch"):
        jobs.GenerateJob(config, out, strict=True).begin()
    jobs.GenerateJob(config, out).begin()
    assert "versions.torch" in caplog.text
    environments = json.loads((out / "identity.json").read_text())["environments"]
    assert [e["versions"]["torch"] for e in environments] == ["1.0", version("torch")]
    jobs.GenerateJob(config, out, strict=True).begin()


def test_a_folder_with_something_else_is_left_alone(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"with thesis\.tex\. Choose another"):
        jobs.GenerateJob(config, folder).begin()
    with pytest.raises(ValueError, match="must be initialized first"):
        jobs.GenerateJob(config, tmp_path / "new").run_shard("train-000000")
    with pytest.raises(ValueError, match="must be a dataset"):
        jobs.status(folder)
    with pytest.raises(ValueError, match="must be a dataset"):
        jobs.gc(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_finalize_names_what_is_missing(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs.GenerateJob(config, out).begin()
    jobs.GenerateJob(config, out).run_shard("train-000001")
    with pytest.raises(RuntimeError, match=r"2 missing \(train-000000, train-000002\)"):
        jobs.GenerateJob(config, out).finalize()
    assert not (out / "manifest.json").exists()
    assert jobs.status(out).complete_shards == 1


def test_a_secret_is_nowhere_in_the_output(
    tiny_pipeline: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2hunter2"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    hidden = shutil.copytree(tiny_pipeline, tmp_path / f"model?token={secret}")
    source = write_prompts(tmp_path / f"{secret}.jsonl")
    config = tiny_config(hidden, source, "num=3", "dataset.preview_every=1")
    failing = _failing(drawing.generate, lambda p, s: "error" if p.id == "dog" else "")
    monkeypatch.setattr(drawing, "generate", failing)
    out = tmp_path / "out"
    jobs.generate(config, out)
    shutil.copytree(out / "metadata", out / "plain")
    for path in (out / "plain").iterdir():  # parquet is compressed: spell it out
        path.write_text(str(pq.read_table(path).to_pylist()))
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert "***" in (out / "config.yaml").read_text()


def test_weights_in_a_prompt_are_no_secrets(config: Config, tmp_path: Path) -> None:
    text = "(watermark:1.3), (signature:1.4), blurry"
    generation = config.generation.model_copy(update={"negative_prompt": text})
    config = config.model_copy(update={"generation": generation})
    jobs.GenerateJob(config, tmp_path / "out").begin()
    standing = read_config(open_storage(tmp_path / "out"))
    assert standing.generation.negative_prompt == text
    assert config_digest(standing) == config_digest(config)


def test_threads_are_those_of_the_beginning(config: Config, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        jobs.GenerateJob(config, tmp_path / "out").begin()
        torch.set_num_threads(1)
        jobs.GenerateJob(config, tmp_path / "out", strict=True).begin()  # not another environment
        jobs.GenerateJob(config, tmp_path / "out").run_shard("train-000000")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_estimate_says_its_basis(tiny_dataset: Path, config: Config) -> None:
    guess = jobs.estimate(config)
    assert (guess["shards"], guess["samples"], guess["seconds"]) == (3, 8, None)
    model = config.model.model_copy(update={"card": "scenes"})
    embedded = jobs.estimate(config.model_copy(update={"model": model}))
    assert 0 < embedded["seconds"] < 100
    assert "embedded model" in embedded["basis"]
    known = jobs.estimate(config.model_copy(update={"num": 80}), tiny_dataset)
    tars = sum(path.stat().st_size for path in (tiny_dataset / "data").iterdir())
    assert known["bytes"] == pytest.approx(tars * 10, rel=0.01)
    assert known["seconds"] > 0
    assert "8 samples" in known["basis"]
