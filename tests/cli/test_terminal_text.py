"""What a dataset says reaches the terminal and the log as text: no escape sequence acts."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_export import make_dataset

from synthgen import cli
from synthgen.cli.command import Result
from synthgen.cli.options import say
from synthgen.dataset.audits import AUDITS
from synthgen.dataset.changes import changed_keys, list_keys
from synthgen.jobs.identity import check_drawn
from synthgen.storage.publish import open_storage
from synthgen.storage.untrusted import printable

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b1m"


def test_no_escape_sequence_of_a_dataset_reaches_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever ends a command is printed here, and all else that commands say by ``say``."""
    with pytest.raises(SystemExit):
        cli._die(ValueError(f"reason {EVIL}"), 2)
    say(f"    {EVIL}   1")
    printed = capsys.readouterr()
    for text in (printed.err, printed.out):
        assert "owned" in text
        assert text.rstrip("\n").isprintable()


def test_tables_of_audits_and_labels_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = {"samples": 1, "kept": 0, "rejected": 1, "reasons": {EVIL: 1}}
    cli.audit.verdict({"id": "a", "means": {}, "totals": totals}, tmp_path, 1.0).tell()
    row = {"images": 1, "pixels": 1, "score": 0.5, "not_found": 0}
    statistics = {"images": 1, "classes": {EVIL: row}, "background": 0, "undecided": 0}
    Result(lines=cli.label._lines({"id": "l", "statistics": statistics}, tmp_path)).tell()
    seen = capsys.readouterr().out
    assert seen.count("owned") == 2
    assert seen.replace("\n", "").isprintable()


def test_keys_of_settings_and_names_of_sources_are_text(tmp_path: Path) -> None:
    """They are logged too: environments, settings, what was merged."""
    assert list_keys(changed_keys({EVIL: 1}, {})).isprintable()
    with pytest.raises(ValueError, match="owned") as caught:
        check_drawn({"content": {"merged": [{"name": EVIL}]}}, "out")
    assert str(caught.value).isprintable()
    make_dataset(tmp_path / "out", num=2)
    storage = open_storage(tmp_path / "out")
    AUDITS.claim(storage, "a", {EVIL: 1}, 1)
    with pytest.raises(ValueError, match="owned") as caught:
        AUDITS.claim(storage, "a", {}, 1)
    assert str(caught.value).isprintable()


def test_printable_keeps_lines_and_letters() -> None:
    assert printable("Straße\n日本 🙂") == "Straße\n日本 🙂"
    assert printable(EVIL).isprintable()
