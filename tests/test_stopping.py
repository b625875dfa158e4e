"""Signals from a terminal: seconds, one line, the exit code, no process left, and it goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from commands import command, generate_words, gone

pytestmark = pytest.mark.timeout(600)
SECONDS = 5.0


def stop(folder: Path, *numbers: signal.Signals, engine: str = "flow") -> None:
    """Stop a run in the middle, and look at what is said and left."""
    out = folder / "out"
    with command([*generate_words(folder), "--engine", engine, "--quiet"], folder) as running:
        running.wait_until(lambda: len(list(out.glob("stats/*.json"))) > 1)
        started = running.family()
        assert bool(started) == (engine == "flow")
        code, seconds = running.end(*numbers)
        assert code == 128 + numbers[0]
        assert running.said.count("\n") == 1, running.said
        assert "run again to go on" in running.said
        assert seconds < SECONDS
        assert gone(started)


def test_ctrl_c_of_a_terminal_ends_a_flow_in_seconds_with_one_line(tmp_path: Path) -> None:
    stop(tmp_path, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM,),
        (signal.SIGHUP,),
        (signal.SIGQUIT,),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
@pytest.mark.parametrize("engine", ["flow", "inline"])
def test_every_signal_ends_every_engine(
    numbers: tuple[signal.Signals, ...], engine: str, tmp_path: Path
) -> None:
    stop(tmp_path, *numbers, engine=engine)
