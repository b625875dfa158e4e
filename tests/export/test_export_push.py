"""Pushing: to a local file system and to one that goes the way of object stores."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from made_export import make_dataset, tree

from synthgen.dataset.loader import open_dataset
from synthgen.export.push import PushReport, local_files, push
from synthgen.jobs import export
from synthgen.progress import Stopped
from synthgen.storage.claim import CLAIM, claimed
from synthgen.storage.local import host_id
from synthgen.storage.publish import Storage, open_storage
from synthgen.storage.urls import StoreError


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("push") / "data"
    make_dataset(out, num=6, shard_size=2)
    (out / ".synthgen").mkdir(exist_ok=True)
    (out / ".synthgen/log").write_text("not for others")
    return out


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_world, tmp_path / "data")


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/remote/deep"
    fsspec.filesystem("memory").store.clear()
    return "memory://remote/deep"


def remote(url: str) -> dict[str, bytes]:
    """Files at a URL by name, without the plan."""
    fs, root = fsspec.core.url_to_fs(url)
    found = {str(path).removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(root)}
    return {name: content for name, content in found.items() if not name.startswith(".synthgen/")}


def visible(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(root).items() if not name.startswith(".")}


def test_a_pushed_dataset_opens_there_and_is_not_sent_twice(world: Path, url: str) -> None:
    events: list[str] = []
    done = push(world, url, lambda event, **fields: events.append(fields["name"]))
    assert remote(url) == visible(world)
    assert events[-1] == "manifest.json"
    assert done.sent == len(events)
    assert done.num_bytes == sum(len(content) for content in visible(world).values())
    keys = [sample["key"] for sample in open_dataset(url)]
    assert keys == [sample["key"] for sample in open_dataset(world)]
    assert push(world, url) == PushReport(0, len(events), 0)


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_push_goes_on_and_shows_no_manifest_before(
    after: int, world: Path, url: str
) -> None:
    seen: list[object] = []

    def stopping(event: str, **fields: object) -> None:
        seen.append(fields["name"])
        if len(seen) == after:
            raise Stopped

    with pytest.raises(Stopped):
        push(world, url, stopping)
    assert len(remote(url)) == after
    assert "manifest.json" not in remote(url)
    with pytest.raises(ValueError, match=r"must have a manifest"):
        open_dataset(url)
    done = push(world, url)
    assert done.skipped == after
    assert remote(url) == visible(world)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_files_of_another_content_and_the_same_size_are_sent_again(world: Path, url: str) -> None:
    push(world, url)
    tar = world / "data/train-000001.tar"
    flip(tar)
    done = push(world, url)
    assert (done.sent, done.num_bytes) == (1, tar.stat().st_size)
    assert remote(url) == visible(world)
    tar.unlink()  # what is gone here is gone there
    push(world, url)
    assert remote(url) == visible(world)
    # the plan of a push that is cut off must not vouch for files of the one before
    changed = ("data/train-000000.tar", "data/train-000002.tar", "manifest.json")
    for name in changed:
        flip(world / name)

    def stopping(event: str, **fields: object) -> None:
        if fields["name"] == changed[0]:
            raise Stopped

    with pytest.raises(Stopped):
        push(world, url, stopping)
    assert not {"manifest.json", changed[1]} & remote(url).keys()
    push(world, url)
    assert remote(url) == visible(world)


def test_what_did_not_arrive_whole_is_sent_again(
    world: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is that of the plan; its bytes are not."""
    send = Storage.send

    def garble(target: Storage, path: Path, name: str) -> None:
        send(target, path, name)
        if not name.startswith(".synthgen/"):
            target.fs.pipe_file(target.path(name), bytes(path.stat().st_size))
            raise StoreError("a store that keeps another file")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "send", garble)
        with pytest.raises(StoreError):
            push(world, url)
    push(world, url)
    assert remote(url) == visible(world)


def test_exports_are_pushed_too(world: Path, url: str, tmp_path: Path) -> None:
    export(world, tmp_path / "out", "coco")
    push(tmp_path / "out", url)
    assert remote(url) == visible(tmp_path / "out")
    assert "annotations/instances_train.json" in remote(url)


def test_bad_targets_and_unfinished_folders_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"finished dataset or export must be pushed"):
        push(tmp_path / "nothing", f"file://{tmp_path}/remote")
    for bad in (str(tmp_path / "plain"), "remote", "simplecache::file:///tmp/x", "pipe:rm"):
        with pytest.raises(ValueError, match=r"target must be a URL such as file:///data/out"):
            push(world, bad)
    with pytest.raises(ValueError, match=r"target must be a URL .* Got 'nonsense'"):
        push(world, "nonsense://x/y")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"empty or a push of ours\. Got .*mine\.txt"):
        push(world, f"file://{foreign}")
    assert tree(foreign) == {"mine.txt": b"x"}


PATTERNS = ("allow_patterns", "ignore_patterns")


class RecordingHub:
    """Stands for the hub, which tests cannot reach; keeps what huggingface_hub would be told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda **given: self.calls.append((name, given))


def test_the_hub_is_told_of_everything_and_of_the_manifest_last(world: Path) -> None:
    hub, names = RecordingHub(), list(tree(world))
    push(world, "hf://datasets/me/scenes", client=hub)
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder", "upload_folder"]
    for name, given in hub.calls:  # the real client takes these arguments
        inspect.signature(getattr(HfApi, name)).bind(None, **given)
    sent = [
        [*filter_repo_objects(names, **{n: given.get(n) for n in PATTERNS})]
        for _, given in hub.calls[1:]
    ]
    assert sent[1] == ["manifest.json"]
    assert sorted(sent[0] + sent[1]) == sorted(local_files(world))
    with pytest.raises(ValueError, match=r"hf://datasets/owner/name\. Got hf://datasets/scenes"):
        push(world, "hf://datasets/scenes")


def test_of_two_datasets_pushed_at_once_one_arrives_and_the_other_is_told(
    world: Path, url: str, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "other", num=4, shard_size=2, image_format="png")
    told: list[str] = []

    def second(event: str, **fields: object) -> None:
        if not told:
            with pytest.raises(RuntimeError) as error:
                push(tmp_path / "other", url)
            told.append(str(error.value))

    push(world, url, second)
    assert f"Got process {os.getpid()} on {socket.gethostname()} at work there" in told[0]
    assert told[0].endswith("(a push of data). Wait for it, or choose another target.")
    assert remote(url) == visible(world)
    push(tmp_path / "other", url)  # once it is free
    assert remote(url) == visible(tmp_path / "other")


def test_a_claim_in_a_store_is_looked_at_again_and_outlives_no_process(world: Path) -> None:
    """Of two that found the target free at once, whoever wrote first gives up."""
    fsspec.filesystem("memory").store.clear()
    target = open_storage("memory://remote/deep")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    claims = [
        {"token": "x", "host": host_id(), "process": int(gone.stdout), "renewed": time.time()},
        {"token": "x", "host": "elsewhere", "process": 1, "renewed": time.time() - 901},
    ]
    for claim in claims:  # left by one that is gone
        target.fs.pipe_file(target.path(CLAIM), json.dumps(claim).encode())
        with claimed(target, "a test"):
            pass
        assert target.size(CLAIM) is None
    alive = {"token": "x", "host": "elsewhere", "process": 7, "machine": "\x1b[31mred"}
    content = json.dumps({**alive, "renewed": time.time() - 600}).encode()
    target.fs.pipe_file(target.path(CLAIM), content)
    with pytest.raises(RuntimeError, match=r"process 7 on .x1b\[31mred at work"):
        push(world, "memory://remote/deep")
    target.remove(CLAIM)

    def overtaken(event: str, **fields: object) -> None:
        target.fs.pipe_file(target.path(CLAIM), content)

    with pytest.raises(RuntimeError, match=r"Got process 7 on"):
        push(world, "memory://remote/deep", overtaken)
    assert len(remote("memory://remote/deep")) == 1
    assert target.read(CLAIM) == content, "which is not ours to remove"
