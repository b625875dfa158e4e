"""Fixtures shared by the tests: the tiny random-weight pipeline, and no network."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fault_table import faults, pytest_terminal_summary  # noqa: F401

if TYPE_CHECKING:
    from synthgen.diffusion.backbones import Backbone

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of children: bytes depend on threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # notes of reports; not those of the user
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


UNIT = (
    "labeling",
    "prompts",
    "segmentation",
    "test_config.py",
    "test_judge.py",
    "test_records.py",
)
"""Folders and files of tests of pure functions; with all doctests they are the marker ``unit``."""


LONG = ("test_clusters.py", "test_schedule.py", "test_demo.py", "test_store_faults.py")
"""Files of minutes go first, so that of several processes none is left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a minute: ``pytest -m unit``; long files first."""
    items.sort(
        key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG)
    )
    for item in items:
        pure = isinstance(item, pytest.DoctestItem) or {*item.path.parts} & {*UNIT}
        if pure and not any(item.iter_markers("slow")):
            item.add_marker(pytest.mark.unit)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Give signals back: a command that runs in this process answers them in its own way."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random-weight diffusers pipeline of SD 2.1's topology (see ``tiny.py``)."""
    from tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="session")
def tiny_dataset(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of the tiny pipeline (see ``tiny_run.py``); copy it to change it."""
    from tiny_run import tiny_config, write_prompts

    from synthgen import jobs

    folder = tmp_path_factory.mktemp("tiny-run")
    config = tiny_config(tiny_pipeline, write_prompts(folder / "prompts.jsonl"))
    jobs.generate(config, folder / "out")
    return folder / "out"


@pytest.fixture
def backbone(tiny_pipeline: Path) -> Backbone:
    """The tiny pipeline, loaded."""
    from synthgen.config import ModelConfig
    from synthgen.diffusion.backbones import load_backbone

    return load_backbone(ModelConfig(card=str(tiny_pipeline)))
