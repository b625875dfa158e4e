"""Every file of a dataset is vouched for, and only such files are believed."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_run import tiny_config

from synthgen import jobs
from synthgen.config import Config, LabelConfig
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.manifest import read_marker
from synthgen.dataset.verify import verify_dataset
from synthgen.report.page import write_report
from synthgen.storage.publish import dump_json, open_storage
from synthgen.storage.seal import open_seal, seal


@pytest.fixture
def config(tiny_pipeline: Path, tiny_dataset: Path) -> Config:
    """The configuration that ``tiny_dataset`` was made with: 8 samples in shards of 3, 3 and 2."""
    return tiny_config(tiny_pipeline, tiny_dataset.parent / "prompts.jsonl")


@pytest.fixture
def out(tiny_dataset: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_dataset, tmp_path / "out")


@pytest.fixture(scope="module")
def other(
    tiny_pipeline: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A dataset of three other samples."""
    prompts = tiny_dataset.parent / "prompts.jsonl"
    out = tmp_path_factory.mktemp("other") / "out"
    jobs.generate(tiny_config(tiny_pipeline, prompts, "seed=5", "num=3"), out)
    return out


def kinds(out: Path, deep: bool = False) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in verify_dataset(out, deep)]


def older(out: Path) -> None:
    """As version 1 of the schema wrote it: no seals, and no hash but that of the tars."""
    for path in (*out.glob("stats/*"), *out.glob("manifests/*"), out / "manifest.json"):
        tree = json.loads(path.read_text()) | {"schema_version": 1}
        for name in ("seal", "labels", "metadata_sha256", "previews_sha256"):
            tree.pop(name, None)
        for name in ("versions", "files"):
            tree.get("times", {}).pop(name, None)
        for row in tree.get("shards", []):
            row.pop("previews", None)
        path.write_bytes(dump_json(tree))


def test_a_seal_is_the_last_line_and_any_other_content_breaks_it() -> None:
    content = dump_json({"schema_version": 2, "name": "ä"})
    sealed = seal(content)
    assert set(json.loads(sealed)) == {"schema_version", "name", "seal"}
    assert open_seal(sealed) == (content, True)
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        found = None
        with suppress(ValueError):
            found = open_seal(bytes(damaged))[1]
        assert found in (None, False)  # without one, it is refused by its schema version


def test_a_dataset_of_the_older_version_is_read_extended_and_then_vouched_for(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older(out)
    assert verify_dataset(out, deep=True) == []
    assert "no hashes of the description, of earlier manifests, rows and previews" in caplog.text
    assert len(list(open_dataset(out, version=1))) == 8
    assert jobs.extend(out, 1)["totals"]["planned"] == 11
    marker = read_marker(open_storage(out), "train-000003")
    assert marker is not None
    assert marker.metadata_sha256 != ""
    assert verify_dataset(out, deep=True) == []
    (out / "manifests" / "v0001.json").write_text("{}")
    assert kinds(out) == [("wrong hash", "manifests/v0001.json")]


def test_a_plan_that_is_not_finished_is_no_damage(out: Path, config: Config) -> None:
    jobs.GenerateJob(config.model_copy(update={"extended": 1}), out).begin()
    assert kinds(out) == [("unfinished", "config.yaml")]
    write_report(out)
    jobs.extend(out, 1)
    assert verify_dataset(out, deep=True) == []


def test_lost_previews_are_missed_and_drawn_again(out: Path, config: Config) -> None:
    path = out / "previews" / "train-000000.tar"
    content = path.read_bytes()
    path.unlink()
    assert kinds(out) == [("missing file", "previews/train-000000.tar")]
    assert jobs.GenerateJob(config, out).missing() == ["train-000000"]
    jobs.generate(config, out)
    assert path.read_bytes() == content
    assert verify_dataset(out, deep=True) == []


@pytest.mark.parametrize(
    "name", ["metadata/train-000001.parquet", "previews/train-000000.tar", "data/train-000002.tar",
             "classes.json", "identity.json", "config.yaml", "stats/train-000001.json"],
)  # fmt: skip
def test_what_reads_a_dataset_believes_only_what_is_vouched_for(
    name: str, out: Path, other: Path, tmp_path: Path
) -> None:
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    uses = [lambda: write_report(out), lambda: jobs.merge([out, other], tmp_path / "merged")]
    if "/" not in name:  # readers of shards find the others at the shard
        uses += [
            lambda: jobs.label(out, LabelConfig(method="clusters")),
            lambda: jobs.audit(out),
        ]
    for use in uses:
        with pytest.raises((ValueError, RuntimeError), match=name) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged" / "manifest.json").exists()
    assert not (out / "report").exists()
