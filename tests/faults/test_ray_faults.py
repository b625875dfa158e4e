"""SIGKILL of Ray's nodes while they make shards; a node is a raylet with one worker."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fault_table import Faults
from invariants import check_whole
from ordered import ordered_config
from prefect_server import running_server, used
from tiny_run import tree_hashes

from synthgen import jobs
from synthgen.config import Config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3000)]
HELPERS = Path(__file__).parents[1] / "helpers"
KILLS = 2


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Long enough to be struck more than once."""
    return ordered_config(tmp_path, "num=400", "dataset.shard_size=8")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that makes nothing, and three nodes with one worker each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    pytest.importorskip("prefect_ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(initialize_head=True, head_node_args=node_settings(0))
    try:
        for _ in range(KILLS + 1):
            made.add_node(**node_settings(1))
        ray.init(address=made.address, namespace="prefect", log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def node_settings(cpus: int) -> dict[str, Any]:
    """A small node."""
    return {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": 100_000_000}


def kill_nodes(cluster: Any, out: Path, ended: threading.Event, faults: Faults) -> int:
    """Kill all nodes but one at random moments; returns how many."""
    rng, struck = random.Random(3), 0
    while struck < KILLS and not ended.wait(rng.uniform(2, 10)):
        made = len(list(out.glob("stats/*.json")))
        if made <= 8 * struck:
            continue  # its workers are still starting
        nodes = [node for node in cluster.list_all_nodes() if not node.is_head()]
        faults.inject("SIGKILL of a Ray node", out)
        cluster.remove_node(rng.choice(nodes), allow_graceful=False)
        struck += 1
    return struck


def test_sigkill_of_nodes(cluster: Any, config: Config, tmp_path: Path, faults: Faults) -> None:
    from synthgen.flows.generate import generate

    out, whole, ended = tmp_path / "out", tmp_path / "whole", threading.Event()
    jobs.generate(config, whole)
    with (
        running_server(tmp_path / "server") as server,
        used(server.environment),
        ThreadPoolExecutor(1) as pool,
    ):
        struck = pool.submit(kill_nodes, cluster, out, ended, faults)
        try:
            generate(config, str(out), runner="ray", workers=KILLS + 1)
        finally:
            ended.set()
        assert struck.result() == KILLS
    check_whole(config, out, tree_hashes(whole))
    faults.survive()
