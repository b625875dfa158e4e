"""Mistakes on the command line: one line that says what to do, before anything is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_export import make_dataset

from synthgen.cli import main

Refused = Callable[..., str]
SECRET = "hunter2hunter2"


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Run a command that must end with exit code 2; gives its one line."""

    def run(*args: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert (stopped.value.code, printed.out) == (2, ""), printed.err
        lines = printed.err.strip().splitlines()
        assert len(lines) == 1, printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, labeled dataset of four drawn images."""
    out = tmp_path_factory.mktemp("mistakes") / "data"
    make_dataset(out, num=4, shard_size=2)
    return out


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"s3://key:{SECRET}@127.0.0.1/x", "must not hold credentials"),
        (f"s3://bucket/x?token={SECRET}", "must not hold credentials"),
        (f"ftp://me:{SECRET}@host/x", "Got 'ftp'"),
        (f"hf://datasets/me:{SECRET}@hub/x/y", "hf://datasets/owner/name. Got another"),
        (f"hf://me:{SECRET}@hub/x", "check the URL"),
        ("hf://me/scenes", "did you mean hf://datasets/me/scenes?"),
    ],
)
def test_targets_of_push_are_refused_without_repeating_secrets(
    url: str, words: str, made: Path, refused: Refused
) -> None:
    said = refused("push", made, url)
    assert words in said
    assert SECRET not in said
