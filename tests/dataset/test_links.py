"""Links, pipes and folders in the place of a dataset's files: nothing is done through them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_export import add_audit, tree
from ordered import ordered_config
from test_threats import only_inside

from synthgen import jobs
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.verify import verify_dataset
from synthgen.export.push import push
from synthgen.jobs import export
from synthgen.jobs.merge import merge
from synthgen.report.page import write_report

FOLDERS = ("data", "stats", "metadata", "manifests", "previews", "audit", "report", ".synthgen")
FILES = (
    *("identity.json", "config.yaml", "classes.json", "README.md", "manifest.json"),
    *("data/train-000001.tar", "stats/train-000001.json", "metadata/train-000001.parquet"),
    *("previews/train-000000.tar", "report/index.html", "audit/a"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("links")
    jobs.generate(ordered_config(folder, "num=8"), folder / "out")
    jobs.generate(ordered_config(folder, "num=4", "seed=1"), folder / "second")
    add_audit(folder / "out", "a", set())
    write_report(folder / "out", num=2)
    return folder / "out"


@pytest.fixture
def world(finished: Path, tmp_path: Path) -> Path:
    """``data``, ours to look at, and ``other``, which is nobody's business."""
    shutil.copytree(finished, tmp_path / "in" / "data")
    shutil.copytree(finished, tmp_path / "in" / "other")
    shutil.copytree(finished.parent / "second", tmp_path / "in" / "second")
    (tmp_path / "in" / "other" / "stats" / "train-000000.json").unlink()  # gc would remove its tar
    return (tmp_path / "in").resolve()


def commands(world: Path) -> dict[str, Callable[[], object]]:
    data = world / "data"
    return {
        "verify": lambda: verify_dataset(data, deep=True),
        "gc": lambda: jobs.gc(data, orphan_seconds=0.0),
        "status": lambda: jobs.status(data),
        "open_dataset": lambda: list(open_dataset(data, audited="a")),
        "report": lambda: write_report(data),
        "export": lambda: export(data, world / "exported", "coco", audited="a"),
        "push": lambda: push(data, f"file://{world}/pushed"),
        "merge": lambda: merge([data, world / "second"], world / "merged"),
        "generate": lambda: jobs.generate(ordered_config(world.parent, "num=8"), data),
    }


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_no_command_goes_through_a_link(name: str, world: Path) -> None:
    place, behind = world / "data" / name, world / "other" / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(behind)
    before, refused = tree(world / "other"), dict[str, str]()
    for command, call in commands(world).items():
        with only_inside(world, "data", "exported", "pushed", "second", "merged"):
            try:
                call()
            except ValueError as error:
                refused[command] = str(error)
    assert tree(world / "other") == before
    assert place.is_symlink()
    for message in refused.values():
        assert re.search("Got a link|, a link|there: no audits", message)
        assert "\n" not in message
    assert "verify" not in refused
    assert name in {problem.where for problem in verify_dataset(world / "data")}
    if not name.startswith("."):
        assert "push" in refused


def test_a_pipe_stops_nobody(world: Path) -> None:
    marker = world / "data" / "stats" / "train-000001.json"
    marker.unlink()
    os.mkfifo(marker)
    assert [(p.kind, p.where) for p in verify_dataset(world / "data")] == [
        ("no plain file", "stats/train-000001.json")
    ]
    with pytest.raises(ValueError, match="Got a pipe or device"):
        jobs.gc(world / "data", orphan_seconds=0.0)
    assert (world / "data" / "data" / "train-000001.tar").exists()


def test_a_folder_in_the_place_of_a_file_is_named(world: Path) -> None:
    for name in ("data/train-000001.tar", "stats/train-000000.json"):
        (world / "data" / name).unlink()
        (world / "data" / name).mkdir()
    found = [problem for problem in verify_dataset(world / "data") if "folder" in problem.message]
    tars = {f"data/train-00000{number}.tar" for number in range(2)}
    assert {problem.where for problem in found} == tars
    with pytest.raises(ValueError, match=r"train-000000\.json must be a file. Got a folder"):
        jobs.gc(world / "data", orphan_seconds=0.0)


def test_a_tar_is_opened_by_a_link_that_its_user_names(world: Path) -> None:
    """The folder and the tar that a command is given may be links: who types is trusted."""
    (world / "link").symlink_to(world / "data")
    (world / "link.tar").symlink_to(world / "data" / "data" / "train-000000.tar")
    assert len(list(open_dataset(world / "link"))) == 8
    assert len(list(open_dataset(world / "link.tar"))) == 4
    assert verify_dataset(world / "link") == []
    for name in ("x.tar", "train-000000.tar"):  # folders that are called like a tar
        shutil.copytree(world / "data", world / name)
        assert len(list(open_dataset(world / name))) == 8
        assert len(list(open_dataset(f"file://{world}/{name}"))) == 8


def test_a_name_that_no_disk_takes_is_refused_in_one_line(world: Path) -> None:
    long = world / ("x" * 300)
    calls: list[Callable[[], object]] = [
        lambda: export(world / "data", long, "coco"),
        lambda: open_dataset(long),
        lambda: jobs.generate(ordered_config(world.parent, "num=8"), long),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="at most 255 bytes"):
            call()
    assert export(world / "data", world / ("y" * 255), "coco")["counts"]


@pytest.mark.parametrize("part", ["totals", "times", "environments", "models"])
def test_an_incomplete_manifest_is_one_line_for_whoever_reads_it(part: str, world: Path) -> None:
    """And an incomplete identity, and a sample that does not say how it was made."""
    data = world / "data"
    tree = json.loads((data / "manifest.json").read_text())
    del tree[part]
    (data / "manifest.json").write_text(json.dumps(tree))
    identity = json.loads((data / "identity.json").read_text())
    identity["content"] = {}
    (data / "identity.json").write_text(json.dumps(identity))
    for call in (lambda: write_report(data), lambda: jobs.replay(data, "0000000000")):
        with pytest.raises(ValueError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_sample_is_said_with_its_file(world: Path) -> None:
    tar = world / "data" / "data" / "train-000001.tar"
    content = tar.read_bytes().replace(b'"num_segments"', b'"gum_segments"', 1)
    tar.write_bytes(content)
    for check in (None, False):
        with pytest.raises(ValueError, match=r"data/train-000001\.tar.*000001000|000001000.*tar"):
            list(open_dataset(world / "data", check=check))
    tar.write_bytes(content[:1000] + bytes(len(content) - 1000))
    for call in (
        lambda: list(open_dataset(world / "data", check=False)),
        lambda: jobs.replay(world / "data", "0000010003"),
    ):
        with pytest.raises(ValueError, match=r"train-000001\.tar must be whole"):
            call()
