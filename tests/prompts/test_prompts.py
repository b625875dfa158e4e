"""Prompt files: every format, every refusal with its place, ids."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import synthgen
from synthgen.prompts import load_prompts, reading
from synthgen.types import Prompt

SHARED = Path(synthgen.__file__).parents[2] / "shared" / "data"
PUBLISHED = SHARED / "prompts" / "voc_sample.json"

needs_published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="needs ../shared/data/prompts/voc_sample.json"
)

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file; strings are written as they are."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(text: str = "a red ball", classes: Any = (), **fields: Any) -> dict[str, Any]:
    return {"prompt": text, "classes": list(classes), **fields}


def refusal(source: str | Path, **settings: Any) -> str:
    """The message that a source is refused with; always one line."""
    with pytest.raises(ValueError) as caught:
        load_prompts(source, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- formats -----------------------------------------------------------------------------------


def test_jsonl_keeps_ids_order_and_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", row("a b", ["car", "bus"], id="x"), row("c", id=7))
    assert load_prompts(path) == [Prompt("x", "a b", ("car", "bus")), Prompt("7", "c", ())]
    assert load_prompts(str(path)) == load_prompts(path)


def test_empty_lines_and_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa red ball\r\n\r\n   \na café\u00e9\n".encode())
    assert [p.text for p in load_prompts(path)] == ["a red ball", "a caféé"]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    for separator in ("\x0c", "\x85", "\u2028", "\r"):
        path.write_text(f"a ball\na{separator}ball\n", encoding="utf-8", newline="")
        assert f"{path}:2: prompt must have no control characters" in refusal(path)


def test_plain_lines_get_the_classes_that_they_mention(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a woman on a couch\na carpet\n")
    assert [p.class_names for p in load_prompts(path)] == [(), ()]
    assert [p.class_names for p in load_prompts(path, VOC)] == [("person", "sofa"), ()]


TABLES = {
    "list.csv": 'Prompts,Category\nA red dog.,Colors\n"A pile, the ""lowest"" blue.",Count\n',
    "semicolon.csv": 'id;prompt;note\n1;A red dog.;\n2;"A pile, the ""lowest"" blue.";x\n',
    "list.tsv": 'Prompt\tCategory\r\nA red dog.\t\r\n\r\nA pile, the "lowest" blue.\tx\r\n',
    "quoted.tsv": '\ufeffcaption\n"A red dog."\n"A pile, the ""lowest"" blue."\n',
    "lines.csv": 'text\nA red dog.\n"A pile,\n  the ""lowest"" blue."\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_by_column(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(TABLES[name], encoding="utf-8", newline="")
    with pytest.warns(UserWarning, match="2 prompt.*have no classes"):
        prompts = load_prompts(path)
    assert [p.text for p in prompts] == ["A red dog.", 'A pile, the "lowest" blue.']


def test_tables_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    for text, problem in (
        ("Category,Note\nx,y\n", "p.csv:1: must have the key 'prompt'. Got 'category', 'note'."),
        ('prompt\n"a "red" ball"\n', "p.csv:2: must be comma-separated cells"),
        ("prompt,id\na ball, red,3\n", "p.csv:2: must have 2 cells, as the header has. Got 3"),
        ("prompt\n\n\n", "at least one prompt"),
        ("prompt,classes\na,[1\n", "p.csv:2: classes must be a JSON list"),
        ("prompt,id\n,3\n", "p.csv:2: prompt must not be empty"),
    ):
        path.write_text(text)
        assert problem in refusal(path)
    path = tmp_path / "p.txt"
    path.write_text("Prompts,Category\nA red dog.,Colors\n")
    assert "header of a table; rename the file to .csv" in refusal(path)


@pytest.mark.parametrize("cell", ["cat|dog", "cat; dog", '"cat, dog"', '"[""cat"", ""dog""]"'])
def test_a_cell_names_classes(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"prompt,classes\na cat,{cell}\na road,\n")
    assert [p.class_names for p in load_prompts(path)] == [("cat", "dog"), ()]


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    columns = {"seed": [1, 2], "prompt": ["a red ball", "a cat"], "classes": [["ball"], []]}
    pq.write_table(pa.table(columns), path, row_group_size=1)
    assert [(p.text, p.class_names) for p in load_prompts(path)] == [
        ("a red ball", ("ball",)),
        ("a cat", ()),
    ]
    pq.write_table(pa.table({"prompt": [None, "a"]}), path)
    assert "row 1: prompt must be a string. Got null." in refusal(path)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * 10**6])
    pq.write_table(pa.table({"prompt": texts}), path)
    assert path.stat().st_size < 10**6  # but 5 GB of texts
    assert "at most 2000 characters" in refusal(path)
    path.write_bytes(b"PAR1 and no more")
    assert "must be a parquet file" in refusal(path)


def test_the_list_that_dataset_diffusion_publishes(tmp_path: Path) -> None:
    path = tmp_path / "voc.json"
    rows = [
        {"filename": "0.jpg", "caption": "a dog; dog car", "class_prompt": "dog car"},
        {"filename": "1.jpg", "caption": "tv", "class_prompt": "tv monitor dining table person"},
        {"filename": "2.jpg", "caption": "a lava lamp", "class_prompt": "lava lamp"},
    ]
    path.write_text(json.dumps(rows))
    names = [p.class_names for p in load_prompts(path)]
    assert names == [("dog", "car"), ("tv monitor", "dining table", "person"), ("lava", "lamp")]
    path.write_text(json.dumps(rows[2:]))
    assert [p.class_names for p in load_prompts(path, ["lava lamp"])] == [("lava lamp",)]


@pytest.mark.parametrize("key", ["prompt", "text", "caption"])
def test_lines_without_classes_are_for_masks_and_said_once(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "p.jsonl", *({key: f"a dog {i}", "file_name": i} for i in range(3)))
    with pytest.warns(UserWarning, match="have no classes") as caught:
        prompts = load_prompts(path)
    assert [p.class_names for p in prompts] == [()] * 3
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1
    assert said[0].startswith(f"3 prompt(s) have no classes, first at {path}:1: masks only.")
    assert [p.class_names for p in load_prompts(path, VOC)] == [("dog",)] * 3


def test_comment_lines_are_skipped_and_said_once(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("# night scenes\na red ball\n  # more\n")
    with pytest.warns(UserWarning, match=r"2 line.*'#'.*p.txt:1"):
        assert [p.text for p in load_prompts(path, VOC)] == ["a red ball"]


def test_a_class_called_background_is_what_no_class_names(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", row(classes=["Background", "ball", "ignore"]))
    with pytest.warns(UserWarning, match="name a class 'Background'.*id 0"):
        assert load_prompts(path)[0].class_names == ("ball",)


@pytest.mark.parametrize(
    "text", ["a (blue:1.3) sky", "((masterpiece)), a sky", "a sky BREAK a cat", "<lora:x:0.8> sky"]
)
def test_marks_of_web_uis_are_warned_about(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "p.jsonl", row("a smile :) (blue) [x]"), row(text))
    with pytest.warns(UserWarning, match=r"1 prompt.*marks of a web UI.*:2; .*drawn as letters"):
        assert load_prompts(path)[1].text == text


def test_packed_lists(tmp_path: Path) -> None:
    for name, text in (("p.jsonl", '{"prompt": "a cat", "classes": []}\n'), *TABLES.items()):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        assert load_prompts(tmp_path / f"{name}.gz", VOC)
    path = tmp_path / "p.txt.gz"
    path.write_bytes(gzip.compress(b"a cat\n") + gzip.compress(b"a dog\n"))
    assert [p.text for p in load_prompts(path, VOC)] == ["a cat", "a dog"]
    path.write_bytes(gzip.compress(b"a cat\n" * 10**6))
    assert "at most 1,000,000 bytes unpacked" in refusal(path, max_bytes=10**6)
    path.write_bytes(gzip.compress(b"a cat\n")[:-9])
    assert "must be whole gzip data" in refusal(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "text",
    ["a cat\n", '{"prompt": "a cat"}\n', '[{"text": "a cat"}]', "id,prompt\n1,a cat\n"],
)
def test_standard_input_of_every_form(text: str, packed: bool) -> None:
    data = gzip.compress(text.encode()) if packed else text.encode()
    read_once = io.TextIOWrapper(io.BytesIO(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", read_once)
        reading._standard_input.cache_clear()
        try:
            assert [p.text for p in load_prompts("-", ())] == ["a cat"]
            assert [p.text for p in load_prompts("-", ())] == ["a cat"]  # what was read is kept
        finally:
            reading._standard_input.cache_clear()


@needs_published
def test_published_list_loads_with_its_duplicate_texts() -> None:
    with pytest.warns(UserWarning, match="53 prompt.* more than once"):
        prompts = load_prompts(PUBLISHED, VOC)
    published = json.loads(PUBLISHED.read_text())
    assert [p.id for p in prompts] == [str(p["id"]) for p in published]
    assert len({p.text for p in prompts}) == 759 < len(prompts) == 1000
    assert [set(p.class_names) for p in prompts] == [set(p["classes"]) for p in published]


def coco_pair(folder: Path) -> tuple[Path, Path]:
    captions, instances = folder / "captions.json", folder / "instances.json"
    rows = [
        {"id": 11, "image_id": 1, "caption": "A dog \n on a  couch. "},
        {"id": 12, "image_id": 1, "caption": "A couch"},
        {"id": 13, "image_id": 2, "caption": "An empty road"},
    ]
    captions.write_text(json.dumps({"annotations": rows}))
    categories = [{"id": 63, "name": "couch"}, {"id": 18, "name": "dog"}]
    boxes = [{"image_id": 1, "category_id": c} for c in (63, 18, 63)]
    instances.write_text(json.dumps({"categories": categories, "annotations": boxes}))
    return captions, instances


def test_coco_pairs_are_named_together(tmp_path: Path) -> None:
    captions, instances = coco_pair(tmp_path)
    assert load_prompts(f"{captions}+{instances}") == [
        Prompt("coco-1-11", "A dog on a couch.", ("dog", "couch")),
        Prompt("coco-1-12", "A couch", ("dog", "couch")),
        Prompt("coco-2-13", "An empty road", ()),
    ]


def test_coco_problems_are_named(tmp_path: Path) -> None:
    captions, instances = coco_pair(tmp_path)
    assert "name the pair" in refusal(captions)
    assert "categories" in refusal(f"{captions}+{captions}")
    assert "caption" in refusal(f"{instances}+{instances}")
    assert "couch" in refusal(f"{captions}+{instances}", class_table=["dog", "coach"])
    missing = json.loads(instances.read_text()) | {"categories": []}
    instances.write_text(json.dumps(missing))
    assert "annotation 1: category_id" in refusal(f"{captions}+{instances}")
    captions.write_text(json.dumps({"annotations": []}))
    instances.write_text(json.dumps({"annotations": [], "categories": []}))
    assert "at least one caption" in refusal(f"{captions}+{instances}")


# --- ids ---------------------------------------------------------------------------------------


def test_inserting_a_line_changes_no_other_derived_id(tmp_path: Path) -> None:
    rows = [row(f"a ball {i}", ["ball"]) for i in range(20)]
    before = {p.text: p.id for p in load_prompts(write(tmp_path / "a.jsonl", *rows))}
    rows.insert(3, row("a new cup", ["cup"]))
    after = {p.text: p.id for p in load_prompts(write(tmp_path / "b.jsonl", *rows))}
    assert after.pop("a new cup")
    assert after == before
    assert len(set(before.values())) == 20


def test_derived_ids_depend_on_text_and_classes_and_count_copies(tmp_path: Path) -> None:
    rows = [row("x", ["a"]), row("x", ["b"]), row("x", ["a"]), row("x", ["a"]), row("x a")]
    first, other, second, third, joined = (
        p.id for p in load_prompts(write(tmp_path / "p.jsonl", *rows))
    )
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert len({first, other, joined}) == 3


def test_an_id_used_twice_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", row("a", id="x"), "", row("b", id="y"), row("c", id="x"))
    message = refusal(path)
    assert f"{path}:4" in message
    assert f"{path}:1" in message
    assert "'x'" in message


def test_the_same_id_as_number_and_as_text_is_one_id(tmp_path: Path) -> None:
    assert "unique" in refusal(write(tmp_path / "p.jsonl", row("a", id=1), row("b", id="1")))


def test_the_same_text_twice_is_two_prompts(tmp_path: Path) -> None:
    prompts = load_prompts(write(tmp_path / "p.jsonl", row(id="1"), row(id="2")))
    assert [p.id for p in prompts] == ["1", "2"]


# --- refused entries ---------------------------------------------------------------------------

BAD_ENTRIES = {
    "no prompt": ({"classes": []}, "must have the key 'prompt'. Got 'classes'."),
    "misspelled key": ({"promt": "a", "classes": []}, "Did you mean 'prompt'?"),
    "no classes": ({"prompt": "a", "class": []}, "Did you mean 'classes'?"),
    "both keys": ({"prompt": "a", "prompt_sd": "b", "classes": []}, "Got both."),
    "no object": ([1, 2], "must be an object"),
    "number as text": (row() | {"prompt": 3}, "prompt must be a string. Got 3."),
    "string as classes": (row() | {"classes": "car"}, 'must be a list of names. Got "car".'),
    "number as class": (row(classes=["car", 4]), "a class name must be a string. Got 4."),
    "boolean id": (row(id=True), "id must be a string or an integer. Got true."),
    "empty id": (row(id=" "), "id must not be empty"),
    "empty text": (row("  "), "prompt must not be empty"),
    "empty class": (row(classes=[""]), "a class name must not be empty"),
    "escape character": (row("a \x1b[31mball"), "Got U+001B at character 3."),
    "line break": (row("a\nball"), "Got U+000A at character 2."),
    "right-to-left override": (row("a \u202eball"), "U+202E"),
    "zero width": (row(classes=["c\u200bar"]), "a class name must have no control characters"),
    "surrogate": ('{"prompt": "a \\ud800", "classes": []}', "U+D800"),
    "null in id": (row(id="a\0"), "id must have no control characters"),
    "special token": (row("a cat <|endoftext|> dog"), "no special token"),
    "long text": (row("a " * 1000 + "b"), "at most 2000 characters. Got 2001."),
    "long class": (row(classes=["c" * 201]), "at most 200 characters"),
    "many classes": (row(classes=[f"c{i}" for i in range(255)]), "at most 254"),
    "cut JSON": ('{"prompt": "a ball', "must be JSON"),
    "no JSON": ("a red ball", "must be JSON"),
    "deep JSON": ("[" * 100_000, "must be plain JSON"),
    "huge number": (f'{{"id": {"9" * 5000}}}', "must be plain JSON"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_bad_entries_are_refused_with_their_line(tmp_path: Path, name: str) -> None:
    bad, problem = BAD_ENTRIES[name]
    path = write(tmp_path / "p.jsonl", row("fine"), "", bad)
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert problem in message
    assert len(message) < 400


def test_list_entries_are_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([row("a"), {"prompt_sd": 1, "classes": []}]))
    assert f"{path}: entry 2: prompt must be a string" in refusal(path)
    path.write_text('[\n{"prompt_sd": "a",\n "classes": [}\n]')
    assert f"{path}:3: must be JSON" in refusal(path)
    path.write_text('{"prompts": []}')
    assert "must be a list" in refusal(path)


def test_unknown_classes_get_a_near_miss_hint(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", row("a", ["car"]), row("b", ["buss"]))
    assert "'buss'. Did you mean 'bus'?" in refusal(path, class_table=VOC)
    assert len(load_prompts(path)) == 2


def test_repeated_classes_are_kept_once_with_one_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", row("a", ["car", "bus", "car"]), row("b", ["cat", "cat"]))
    with pytest.warns(UserWarning, match=r"2 prompt.* first 'car' at .*:1") as caught:
        prompts = load_prompts(path)
    assert len(caught) == 1
    assert [p.class_names for p in prompts] == [("car", "bus"), ("cat",)]


# --- refused files -----------------------------------------------------------------------------


def test_files_that_are_no_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a", "classes": []}\n{"prompt": "caf\xe9"}\n')
    assert f"{path}:2: must be UTF-8. Got byte 0xE9" in refusal(path)
    path.write_text("\n \n")
    assert "at least one prompt" in refusal(path)
    for suffix in ("json", "txt"):
        (tmp_path / f"empty.{suffix}").touch()
        assert "at least one prompt" in refusal(tmp_path / f"empty.{suffix}")
    assert "existing file" in refusal(tmp_path / "none.jsonl")
    assert "Did you mean 'scenes'?" in refusal("scense")
    assert ".parquet or .txt" in refusal(write(tmp_path / "p.xml", "a"))
    (tmp_path / "folder.txt").mkdir()
    assert "existing file" in refusal(tmp_path / "folder.txt")


def test_size_is_bounded_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: takes no space, but a terabyte to read
    assert "must have at most 536,870,912 bytes. Got 1,000,000,000,000" in refusal(path)
    path.write_text("a ball\n")
    assert refusal(path, max_bytes=6)
    assert load_prompts(path, max_bytes=7)
