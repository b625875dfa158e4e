"""Commands as processes of a terminal of their own: a group that gets signals, a Prefect home.

They are forked with everything heavy imported, but Prefect.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
from children import context
from ordered import OVERRIDES
from tiny_run import write_prompts

LONG = 20_000  # samples: no command of a test ends by itself


def generate_words(folder: Path, num: int = LONG) -> list[str]:
    """``generate`` of samples of the fake model into ``folder/out``, four to a shard."""
    settings = (*OVERRIDES, f"num={num}")
    words = [word for setting in settings for word in ("--set", setting)]
    prompts = write_prompts(folder / "prompts.jsonl")
    return ["generate", str(prompts), "--out", str(folder / "out"), *words]


class Command:
    """A command that runs.

    Args:
        process: It.
        said: What it prints on standard error.
    """

    def __init__(self, process: BaseProcess, said: Path) -> None:
        self.process, self._said = process, said
        assert process.pid is not None
        self.pid = process.pid

    @property
    def said(self) -> str:
        """What it printed on standard error so far."""
        return self._said.read_text()

    def family(self) -> list[psutil.Process]:
        """All that it has started."""
        return psutil.Process(self.pid).children(recursive=True)

    def wait_until(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait for it, while the command goes on."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.exitcode is None, (self.process.exitcode, self.said)
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def end(self, *numbers: signal.Signals, seconds: float = 60) -> tuple[int | None, float]:
        """Its exit code and seconds, after signals to its group, as a terminal sends them."""
        started = time.monotonic()
        for number in numbers:
            os.killpg(self.pid, number)
            time.sleep(0.2)
        self.process.join(seconds)
        return self.process.exitcode, time.monotonic() - started


@contextmanager
def command(
    words: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Command]:
    """A command in a session of its own; what of it is left at the end is killed."""
    folder.mkdir(exist_ok=True)
    home = {"PREFECT_HOME": str(folder / "prefect"), **(environment or {})}
    said = folder / "stderr"
    process = context().Process(target=_main, args=(words, home, said))
    process.start()
    found = Command(process, said)
    try:
        yield found
    finally:
        left = found.family() if process.is_alive() else []
        for each in left:
            each.kill()
        process.kill()
        process.join()


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them is left after a moment."""
    return not psutil.wait_procs(processes, timeout=20)[1]


def _main(words: list[str], environment: Mapping[str, str], said: Path) -> None:
    os.setsid()
    os.environ.update(environment)
    log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["synthgen", *words]
    from synthgen.cli import main

    main()
