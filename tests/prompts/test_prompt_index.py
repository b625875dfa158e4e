"""Long prompt lists: the index is what the list says, found again, and never mistaken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from synthgen.config import digest
from synthgen.prompts import PromptList, index, load_prompts, open_prompts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, of its own, that also keeps short lists; the process remembers none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "KEEP_FROM", 1)
    forget()
    return tmp_path / "cache" / "synthgen" / "prompts"


def forget() -> None:
    """As in a new process."""
    index._by_stamp.clear()
    index._by_content.clear()


def write(path: Path, num: int = 50, word: str = "caf\u00e9") -> Path:
    rows = [{"prompt": f"{word} {i}", "classes": ["b", "a"][: i % 3]} for i in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.utime(path, (1e9, 1e9))
    return path


def no_reading(*_: Any) -> Any:
    raise AssertionError("the list was read again")


def test_an_index_is_what_the_list_says(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl")
    for _ in range(2):  # read, then found
        found = open_prompts(str(path))
        assert isinstance(found, PromptList)
        assert list(found) == found[:] == load_prompts(path)
        assert found[-1] == load_prompts(path)[-1]
        assert found.class_names == ("a", "b")
        content = [[p.id, p.text, list(p.class_names)] for p in found]
        assert found.digest == digest({"prompts": content})
        with pytest.raises(IndexError):
            found[50]
        forget()
    assert len([*folder.iterdir()]) == 1


def test_a_list_is_read_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "p.jsonl")
    first = open_prompts(str(path))
    monkeypatch.setattr(index, "read_prompts", no_reading)
    assert open_prompts(str(path)) is first
    forget()
    assert list(open_prompts(str(path))) == list(first)
    path.rename(tmp_path / "other name.jsonl")  # its content decides
    assert list(open_prompts(str(tmp_path / "other name.jsonl"))) == list(first)
    monkeypatch.setattr(index, "_key", no_reading)  # no look at the content within a process
    assert list(open_prompts(str(tmp_path / "other name.jsonl"))) == list(first)


def test_another_list_of_the_same_size_and_time_is_another_list(
    folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "p.jsonl", word="cat")
    assert open_prompts(str(path))[0].text == "cat 0"
    forget()
    write(path, word="dog")
    assert open_prompts(str(path))[0].text == "dog 0"
    path.write_text(path.read_text().replace("dog", "cow"))  # in this process, a moment later
    assert open_prompts(str(path))[0].text == "cow 0"
    path.write_text(path.read_text().replace("cow", "pig"))
    assert open_prompts(str(path))[0].text == "pig 0"


def test_other_classes_and_other_forms_are_other_lists(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat and a dog\n")
    assert open_prompts(str(path), ["cat"])[0].class_names == ("cat",)
    assert open_prompts(str(path), ["dog", "cat"])[0].class_names == ("dog", "cat")
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    (tmp_path / "p.txt").write_text("a cat\n")
    assert len(open_prompts(str(tmp_path / "p.csv"))) == len(open_prompts(str(path))) == 1


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "text", "place", "header", "length"])
def test_a_damaged_index_is_made_again(folder: Path, tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "p.jsonl")
    expected = list(open_prompts(str(path)))
    (kept,) = folder.iterdir()
    data = bytearray(kept.read_bytes())
    header = data.rindex(b'{"digest"')
    at = {"text": 30, "place": header - 20, "header": header + 15, "length": len(data) - 8}
    if damage in at:
        data[at[damage]] ^= 1
    kept.write_bytes(data[: {"empty": 0, "cut": len(data) - 100}.get(damage)])
    if damage == "gone":
        kept.unlink()
    forget()
    assert list(open_prompts(str(path))) == expected
    forget()
    assert list(open_prompts(str(path))) == expected
    assert len([*folder.iterdir()]) == 1


def test_without_a_place_for_the_cache_the_list_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write(tmp_path / "p.jsonl")
    assert list(open_prompts(str(path))) == load_prompts(path)
    found = open_prompts(str(path))
    found.remember("a check")
    assert found.passed("a check")


def test_checks_are_remembered_and_old_lists_make_room(folder: Path, tmp_path: Path) -> None:
    first = open_prompts(str(write(tmp_path / "0.jsonl", 20)))
    first.remember("seen")
    forget()
    assert open_prompts(str(tmp_path / "0.jsonl")).passed("seen")
    assert not open_prompts(str(tmp_path / "0.jsonl")).passed("another")
    for i in range(index._KEPT_FILES):
        open_prompts(str(write(tmp_path / f"{i + 1}.jsonl", 21 + i)))
        for age, path in enumerate(sorted(folder.iterdir(), key=os.path.getmtime)):
            os.utime(path, (1e9 + age, 1e9 + age))
    assert len([*folder.iterdir()]) == index._KEPT_FILES  # the first, and its mark, are gone


def test_what_is_said_of_a_list_is_said_in_every_run(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("# old\na cat\n")
    for name in ("p.txt", "p.txt", "q.txt"):
        path = path.rename(tmp_path / name)
        with pytest.warns(UserWarning, match=f"comments, first at {path}:1"):
            open_prompts(str(path), ["cat"])
        forget()
