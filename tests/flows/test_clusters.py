"""Shards on real workers: one model each, killed ones lose nothing, poison stays where it is.

Ray runs here with two processes that believe to have a GPU each; Dask with two processes.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_children import ORDERS, SEGMENTER
from readme import readme_commands
from tiny_run import tiny_config, tree_hashes, write_prompts

from synthgen import jobs
from synthgen.config import Config, dump
from synthgen.dataset.verify import verify_dataset

HELPERS = Path(__file__).parents[1] / "helpers"
WORKERS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A Prefect server of its own for this module."""
    testing = pytest.importorskip("prefect.testing.utilities")
    with testing.prefect_test_harness(server_startup_timeout=240):
        yield


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that workers take orders from; they inherit our environment."""
    folder = tmp_path_factory.mktemp("orders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ORDERS, str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to HOME
        yield folder


@pytest.fixture(scope="module")
def ray_cluster(orders: Path) -> Iterator[None]:
    """Ray in this process: two workers, two GPUs that are only numbers."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    pytest.importorskip("prefect_ray")
    ray.init(
        "local",
        num_cpus=WORKERS,
        num_gpus=WORKERS,
        include_dashboard=False,
        object_store_memory=100_000_000,
        namespace="prefect",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def config(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Twelve tiny images in six shards."""
    prompts = write_prompts(tmp_path_factory.mktemp("clusters") / "prompts.jsonl")
    return tiny_config(tiny_pipeline, prompts, "num=12", "dataset.shard_size=2", SEGMENTER)


@pytest.fixture(scope="module")
def expected(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes that one process alone makes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    jobs.generate(config, out)
    return tree_hashes(out)


def seed_of(config: Config, shard: int) -> str:
    """The seed of the last sample of a shard."""
    return str(jobs.plan(config)[shard].samples[-1].seed)


def loads(orders: Path) -> list[int]:
    """How many models each worker loaded; we segmented too."""
    workers = [path for path in (orders / "loads").iterdir() if path.name != str(os.getpid())]
    return [int(path.read_text()) for path in workers]


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server", "ray_cluster")
class TestRay:
    """In order: the workers of the first test serve the others."""

    def test_there_are_as_many_models_as_workers(
        self, config: Config, orders: Path, expected: dict[str, str], tmp_path: Path
    ) -> None:
        from synthgen.flows.generate import generate

        out = tmp_path / "out"
        generate(config, str(out), runner="ray", workers=WORKERS)
        assert loads(orders) == [1] * WORKERS
        assert tree_hashes(out) == expected

    def test_a_killed_worker_loses_nothing(
        self, config: Config, orders: Path, expected: dict[str, str], tmp_path: Path
    ) -> None:
        from synthgen.flows.generate import generate

        out = tmp_path / "out"
        (orders / "kill").write_text(seed_of(config, 1))
        generate(config, str(out), runner="ray", workers=WORKERS)
        assert not (orders / "kill").exists()  # somebody died of it
        assert tree_hashes(out) == expected
        assert verify_dataset(out, deep=True) == []
        assert all(path.startswith(".synthgen/staging/") for path in jobs.gc(out))

    def test_a_poison_shard_is_reported_and_the_next_run_makes_it(
        self, config: Config, orders: Path, expected: dict[str, str], tmp_path: Path
    ) -> None:
        from synthgen.flows.generate import generate

        out = tmp_path / "out"
        (orders / "poison").write_text(seed_of(config, 2))
        with pytest.raises(RuntimeError, match=r"1 crashed \(train-000002\).*poison in sample"):
            generate(config, str(out), runner="ray", workers=WORKERS)
        assert jobs.status(out).complete_shards == 5
        assert not (out / "manifest.json").exists()
        (orders / "poison").unlink()
        generate(config, str(out), runner="ray", workers=WORKERS)
        assert tree_hashes(out) == expected

    def test_a_shard_that_kills_every_worker_fails_alone_and_by_name(
        self, config: Config, orders: Path, expected: dict[str, str], tmp_path: Path
    ) -> None:
        from synthgen.flows import ray_runner
        from synthgen.flows.generate import generate

        out = tmp_path / "out"
        (orders / "slay").write_text(seed_of(config, 1))
        with pytest.raises(RuntimeError, match=r"1 crashed \(train-000001\)") as caught:
            generate(config, str(out), runner="ray", workers=WORKERS)
        (orders / "slay").unlink()
        print(caught.value)
        assert "\n" not in str(caught.value)
        slain = (orders / "slain").read_text().split()
        assert len(set(slain)) == len(slain) == ray_runner.MAX_RETRIES + 1
        assert jobs.status(out).complete_shards == 5
        generate(config, str(out), runner="ray", workers=WORKERS)
        assert tree_hashes(out) == expected


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_command_joins_a_cluster(
    server: None, config: Config, orders: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("prefect_ray", reason="Ray is not installed: pip install '.[ray]'")
    from prefect.settings import PREFECT_API_URL

    source, out, port = tmp_path / "config.yaml", tmp_path / "out", _free_port()
    source.write_text(dump(config))
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    head = f"--head --block --port={port} --num-cpus={WORKERS} --num-gpus={WORKERS}"
    small = "--include-dashboard=false --object-store-memory=100000000 --disable-usage-stats"
    start = [str(Path(sys.executable).parent / "ray"), "start", *f"{head} {small}".split()]
    command = [sys.executable, "-c", "from synthgen.cli import main; main()", "generate"]
    options = f"--out {out} --runner ray --workers {WORKERS} --address auto".split()
    with subprocess.Popen(start, stdout=subprocess.DEVNULL) as cluster:
        try:
            said = subprocess.run(
                [*command, str(source), *options],
                env=environment,
                capture_output=True,
                text=True,
                timeout=800,
            )
        finally:
            cluster.terminate()
    assert said.returncode == 0, said.stderr[-3000:]
    assert "12 images in" in said.stdout  # the workers' progress reached us
    assert tree_hashes(out) == expected


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_commands_of_the_readme_run(orders: Path, tmp_path: Path) -> None:
    """Without a server of ours: Prefect's own, to which the workers of Ray report."""
    pytest.importorskip("prefect_ray", reason="Ray is not installed: pip install '.[ray]'")
    commands = readme_commands("--runner ray")
    assert [words[0] for words in commands] == ["generate", "plan", "bench"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-c", "from synthgen.cli import main; main()", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert verify_dataset(tmp_path / "data" / "ray", deep=True) == []
    assert (tmp_path / "data" / "scale.png").exists()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_dask_makes_the_same_bytes_and_survives_a_killed_worker(
    server: None, config: Config, orders: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("prefect_dask", reason="Dask is not installed: pip install '.[dask]'")
    from synthgen.flows.generate import generate

    (orders / "kill").write_text(seed_of(config, 1))
    generate(config, str(tmp_path / "out"), runner="dask", workers=WORKERS)
    assert not (orders / "kill").exists()
    assert tree_hashes(tmp_path / "out") == expected


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
