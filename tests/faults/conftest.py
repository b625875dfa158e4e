"""Every test here is marked ``faults``; ``-m faults`` runs the quick ones.

Long ones, and those that need a cluster, an S3 server or Postgres, run where the expression names
their marker too: ``-m 'faults and slow'``, ``-m 'faults and ray'``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from synthgen.config import Config

HERE = Path(__file__).parent
APART = ("slow", "ray", "s3", "postgres")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and leave out what the expression does not name."""
    expression = config.getoption("markexpr")
    chosen, left_out = [], []
    for item in items:
        ours = HERE in item.path.parents
        if ours:
            item.add_marker("faults")
        apart = any(item.get_closest_marker(name) and name not in expression for name in APART)
        (left_out if ours and apart else chosen).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Forty samples of the fake model in ten shards; modules with other needs have their own."""
    from ordered import ordered_config

    return ordered_config(tmp_path_factory.mktemp("flows"))


@pytest.fixture(scope="module")
def expected(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of the dataset that nothing interrupted, made without a server."""
    from tiny_run import tree_hashes

    from synthgen import jobs

    out = tmp_path_factory.mktemp("whole") / "out"
    jobs.generate(config, out)
    return tree_hashes(out)
