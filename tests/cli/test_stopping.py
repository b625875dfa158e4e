"""Signals from a terminal: seconds, one line, the exit code, no process left, and it goes on."""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from commands import command, generate_words, gone

from synthgen import jobs
from synthgen.cli import main

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


def generate_here(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Make two shards in this process, by the command."""
    words = [*generate_words(folder, num=8), "--engine", "inline", *options]
    monkeypatch.setattr(sys, "argv", ["synthgen", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert jobs.status(folder / "out").finalized


@pytest.mark.parametrize("stream", ["/dev/full", None])
def test_a_standard_error_that_takes_nothing_ends_no_run(
    stream: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream and open(stream, "w"))  # noqa: PTH123, SIM115
    generate_here(tmp_path, monkeypatch, "--json-logs")


@pytest.mark.parametrize("option", ["--json-logs", "--quiet", "--verbose"])
def test_every_line_on_standard_error_is_ours(
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = jobs.GenerateJob.finalize

    def warn(*arguments: Any) -> Any:
        warnings.warn("of a\nlibrary", stacklevel=1)
        logging.getLogger("some.library").info("told")
        logging.getLogger("prefect.flow_runs").warning("of Prefect")
        return real(*arguments)

    monkeypatch.setattr("synthgen.jobs.GenerateJob.finalize", warn)
    generate_here(tmp_path, monkeypatch, option)
    lines = capsys.readouterr().err.splitlines()
    if option == "--json-logs":
        found = [json.loads(line) for line in lines]
        assert {"log", "shard", "samples"} <= {line["event"] for line in found}
        logged = {line["message"] for line in found if line["event"] == "log"}
        assert "of a library" in logged
        assert not logged & {"told", "of Prefect"}
    elif option == "--quiet":
        assert lines == []
    else:
        assert {"warning: of a library", "info: told", "warning: of Prefect"} <= set(lines)
