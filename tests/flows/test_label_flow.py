"""The labeling flow on a real (ephemeral) server: bytes, artifacts, what is tried again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prefect
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import rewrite

from synthgen.cli.label import run_label
from synthgen.cli.options import Engine
from synthgen.config import LabelConfig
from synthgen.flows.label import label as flow
from synthgen.flows.shards import collect, may_pass_again, refuse_crashed
from synthgen.jobs import label
from synthgen.storage.seal import sha256_of

prefect_testing = pytest.importorskip("prefect.testing.utilities")
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("server")]
SETTINGS = LabelConfig(method="clusters", presence=0.05, margin=0.001, background=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A Prefect server of its own for this module."""
    with prefect_testing.prefect_test_harness(server_startup_timeout=240):
        yield


@pytest.fixture
def out(tiny_dataset: Path, tmp_path: Path) -> Path:
    """Eight samples in three shards, not labeled."""
    return shutil.copytree(tiny_dataset, tmp_path / "out")


def hashes(out: Path, label_id: str) -> dict[str, str]:
    """Tars and summary of labels; markers hold times."""
    folder = out / "labels" / label_id
    paths = [*folder.glob("*.tar"), folder / "labels.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def artifacts(key: str, label_id: str) -> list[Any]:
    """The artifacts of this server with a key, about some labels."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        found = client.read_artifacts(artifact_filter=wanted)
        return [item.data for item in found if item.description == label_id]


def attempts(shard: str) -> list[int]:
    """How often each task run of a shard was tried, the last one first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
    from prefect.client.schemas.sorting import TaskRunSort

    with get_client(sync_client=True) as client:
        wanted = TaskRunFilter(name=TaskRunFilterName(any_=[f"label-{shard}"]))
        newest = TaskRunSort.EXPECTED_START_TIME_DESC
        return [
            run.run_count for run in client.read_task_runs(task_run_filter=wanted, sort=newest)
        ]


def test_both_engines_give_the_same_bytes_and_the_flow_reports(
    out: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    inline = shutil.copytree(tiny_dataset, tmp_path / "inline")
    expected = label(inline, SETTINGS, label_id="a")
    assert run_label(out, SETTINGS, label_id="a", engine=Engine.flow, workers=2) == expected
    assert hashes(out, "a") == hashes(inline, "a")
    assert len(hashes(out, "a")) == 4
    (shards,) = artifacts("synthgen-label-shards", "a")
    assert "train-000002" in str(shards)
    (classes,) = artifacts("synthgen-label-classes", "a")
    for name, row in expected["statistics"]["classes"].items():
        assert name in str(classes)
        assert str(row["pixels"]) in str(classes)


def test_without_settings_the_flow_labels_by_clusters(out: Path) -> None:
    summary = flow(str(out), num=1)
    assert summary["id"].startswith("clusters-")
    assert (summary["shards"], summary["statistics"]["images"]) == (1, 3)


def test_a_shard_that_cannot_be_labeled_is_named_and_not_tried_again(out: Path) -> None:
    path = out / "metadata" / "train-000001.parquet"
    content, table = path.read_bytes(), pq.read_table(path)
    seeds = pa.array([seed + 1 for seed in table["seed"].to_pylist()], pa.int64())
    position = table.column_names.index("seed")
    pq.write_table(table.set_column(position, table.schema.field("seed"), seeds), path)
    marker = out / "stats" / "train-000001.json"
    told = marker.read_bytes()
    rewrite(marker, metadata_sha256=sha256_of(path.read_bytes()))
    with pytest.raises(RuntimeError, match=r"1 crashed \(train-000001\).*must come out as it"):
        flow(str(out), SETTINGS, label_id="b")
    assert attempts("train-000001")[0] == 1
    assert (out / "labels/b/train-000002.json").exists()
    assert not (out / "labels/b/summary.json").exists()
    path.write_bytes(content)
    marker.write_bytes(told)
    assert flow(str(out), SETTINGS, label_id="b")["statistics"]["images"] == 8


def test_a_disk_that_recovers_is_tried_again(out: Path) -> None:
    blocker = out / "labels" / "c" / "train-000001.tar"
    blocker.mkdir(parents=True)  # publishing this shard must fail
    with pytest.raises(RuntimeError, match="train-000001"):
        flow(str(out), SETTINGS, label_id="c")
    assert attempts("train-000001")[0] == 3
    blocker.rmdir()
    assert flow(str(out), SETTINGS, label_id="c")["shards"] == 3


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
