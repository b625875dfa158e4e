"""The Prefect flow on a real (ephemeral) server: artifacts, reports, a shard that crashes."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prefect
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    TaskRunFilter,
    TaskRunFilterName,
)
from torch.utils.data import DataLoader

import synthgen
from synthgen import jobs
from synthgen.cli.label import run_label
from synthgen.cli.options import Engine
from synthgen.config import Config, LabelConfig, load, load_audit
from synthgen.dataset.verify import verify_dataset
from synthgen.flows.artifacts import SIDE
from synthgen.flows.audit import audit
from synthgen.flows.extend import extend
from synthgen.flows.generate import generate
from synthgen.flows.label import label
from synthgen.flows.shards import collect, may_pass_again, refuse_crashed

prefect_testing = pytest.importorskip("prefect.testing.utilities")


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A Prefect server of its own for this module."""
    with prefect_testing.prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> Config:
    """Four images in two shards on the tiny pipeline."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue <script>alert(1)</script> cup\n")
    return load(
        overrides=[
            f"prompts={prompts}",
            "num=4",
            f"model.card={tiny_pipeline}",
            "generation={num_inference_steps: 2, height: 64, width: 64}",
            "segmentation.clusters.ks=[2,3]",
            "segmentation.features.components=2",
            "dataset.shard_size=2",
        ]
    )


def artifacts(key: str) -> list[Any]:
    """The artifacts of this server with a key."""
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        return [artifact.data for artifact in client.read_artifacts(artifact_filter=wanted)]


def attempts(name: str) -> list[int]:
    """How often each task run of a name was tried."""
    with get_client(sync_client=True) as client:
        wanted = TaskRunFilter(name=TaskRunFilterName(any_=[name]))
        return [run.run_count for run in client.read_task_runs(task_run_filter=wanted)]


@pytest.mark.usefixtures("server")
def test_the_flow_makes_a_verified_dataset_and_reports_it(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = generate(config, str(out))
    assert manifest["totals"]["samples"] == 4
    assert (out / "manifest.json").exists()
    tables = [str(table) for table in artifacts("synthgen-generate-shards")]
    assert any("train-000001" in table for table in tables)
    assert "100" in str(artifacts("synthgen-generate-progress"))
    (page,) = (str(page) for page in artifacts("synthgen-dataset") if str(out) in str(page))
    assert "samples: 4" in page
    picture = base64.b64decode(page.split("data:image/jpeg;base64,")[1].split(")")[0])
    with Image.open(io.BytesIO(picture)) as sheet:  # two samples of the newest shard, in pairs
        assert sheet.size == (4 * SIDE, SIDE)
    assert len(picture) < 60_000


@pytest.mark.usefixtures("server")
def test_a_forked_reader_ends_well_after_a_flow(config: Config, tmp_path: Path) -> None:
    """Prefect 3 lets every fork of a process that has run a flow end with code 1."""
    out = tmp_path / "out"
    generate(config, str(out))
    dataset = synthgen.open_dataset(out)
    assert len(list(DataLoader(dataset, batch_size=None, num_workers=1))) == 4


@pytest.mark.usefixtures("server")
def test_the_flow_audits_and_reports_when_asked_to(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = load_audit(["auditor.name=halves:load_halves", "verdict.min_top_n=1"])
    generate(config, str(out), audit=settings, report=True)
    (summary,) = out.glob("audit/*/summary.json")
    assert json.loads(summary.read_text())["totals"]["reasons"] == {"low_agreement": 4}
    assert "rejected: 4" in str(artifacts("synthgen-audit"))
    assert "| Top-1 |" in str(artifacts("synthgen-audit"))
    assert "100" in str(artifacts("synthgen-audit-progress"))
    assert f"synthgen view {out}" in str(artifacts("synthgen-report"))
    page = (out / "report" / "index.html").read_text()
    assert summary.parent.name in page
    assert "<script>alert(1)" not in page


@pytest.mark.usefixtures("server")
def test_a_failed_audit_fails_its_run_and_stands(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs.generate(config, out)
    settings = load_audit(["auditor.name=halves:load_halves", "verdict.min_top_n=1"])
    with pytest.raises(RuntimeError, match=r"At most 50% of the samples may be rejected\. Got 4"):
        audit(str(out), settings, max_failed=0.5)
    assert list(out.glob("audit/*/summary.json"))


@pytest.mark.usefixtures("server")
def test_the_growth_flow_begins_extends_and_audits_what_is_new(
    config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = load_audit(["auditor.name=halves:load_halves"])
    planned = [extend(str(out), 1, config, audit=settings)["totals"]["planned"] for _ in range(2)]
    assert planned == [4, 6]
    assert verify_dataset(out, deep=True) == []
    (summary,) = out.glob("audit/*/summary.json")
    assert json.loads(summary.read_text())["totals"]["samples"] == 6
    shards = [str(table) for table in artifacts("synthgen-generate-shards")]
    assert any("train-000002" in t and "train-000001" not in t for t in shards)  # what is new


@pytest.mark.usefixtures("server")
def test_a_retry_after_the_extension_was_published_adds_nothing(
    config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    jobs.generate(config, out)
    (out / "report").write_text("a file where the report's folder must be")
    growing = extend.with_options(retries=2, retry_delay_seconds=0)
    with pytest.raises(OSError, match="writable folder"):
        growing(str(out), 1, config, report=True)
    assert jobs.status(out).planned == 6
    (out / "report").unlink()
    told = [growing(str(out), 1, report=True)["totals"]["planned"] for _ in range(2)]
    assert told == [6, 8]  # one that nobody heard of is ended first


@pytest.mark.usefixtures("server")
def test_a_crashed_shard_is_reported_and_made_by_the_next_run(
    config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    jobs.GenerateJob(config, out).begin()
    blocker = out / "data" / "train-000001.tar"
    blocker.mkdir(parents=True)  # publishing this shard must fail
    with pytest.raises(RuntimeError, match="train-000001"):
        generate(config, str(out))
    assert not (out / "manifest.json").exists()
    assert (out / "stats" / "train-000000.json").exists()
    assert set(attempts("generate-train-000001")) == {1}  # a ValueError stays one
    blocker.rmdir()
    assert generate(config, str(out))["totals"]["samples"] == 4


@pytest.mark.usefixtures("server")
def test_labels_of_both_engines_are_the_same_and_the_flow_reports(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = LabelConfig(method="clusters", presence=0.05, margin=0.001, background=0.05)
    outs = [shutil.copytree(tiny_dataset, tmp_path / name) for name in ("inline", "flow")]
    expected = jobs.label(outs[0], settings, label_id="a")
    assert run_label(outs[1], settings, label_id="a", engine=Engine.flow, workers=2) == expected
    inline, flow = (
        {path.name: path.read_bytes() for path in out.glob("labels/a/*.tar")} for out in outs
    )
    assert len(inline) == 3
    assert inline == flow
    assert any("train-000002" in str(table) for table in artifacts("synthgen-label-shards"))
    (classes,) = artifacts("synthgen-label-classes")
    for name, row in expected["statistics"]["classes"].items():
        assert name in str(classes)
        assert str(row["pixels"]) in str(classes)
    summary = label(str(outs[1]), num=1)  # without settings: by clusters
    assert summary["id"].startswith("clusters-")
    assert (summary["shards"], summary["statistics"]["images"]) == (1, 3)


@pytest.mark.usefixtures("server")
def test_every_shard_is_collected_and_mistakes_are_not_tried_again() -> None:
    tried: list[str] = []

    @prefect.task(retries=2, retry_delay_seconds=1, retry_condition_fn=may_pass_again)
    def planted(shard: str) -> dict[str, Any]:
        tried.append(shard)
        if shard == "mistake":
            raise ValueError("seed must be another.")
        if shard == "cut off" and tried.count(shard) < 3:
            raise OSError("the store broke off")
        return {"samples": 1}

    @prefect.flow(persist_result=False)
    def planted_flow() -> list[dict[str, Any]]:
        shards = ["good", "mistake", "cut off"]
        return list(collect(shards, planted.submit, 2, "planted"))

    rows = sorted(planted_flow(), key=lambda row: str(row["shard"]))
    assert rows == [
        {"shard": "cut off", "samples": 1},
        {"shard": "good", "samples": 1},
        {"shard": "mistake", "error": "ValueError: seed must be another."},
    ]
    assert sorted(tried) == ["cut off", "cut off", "cut off", "good", "mistake"]
    with pytest.raises(
        RuntimeError, match=r"must be done\. Got 1 crashed \(mistake\): ValueError"
    ):
        refuse_crashed(rows)
    refuse_crashed(rows[:2])
