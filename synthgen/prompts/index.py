"""Prompt lists as a run uses them: read once, then by number, also a million of them.

A list becomes one canonical JSON text of all prompts, whose sha256 is what a dataset's identity
says of them, and the place of each prompt in it. A long list's text is kept in the user's cache
folder, by the hash of what it was read from: another run maps that file and parses the prompts
that it draws. Losing the cache costs time only; a file in it that is not what it says is made
again. Within a process a list is read again when size, time or number of its file changed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from jaxtyping import UInt64

from synthgen.prompts.files import PACKAGED, parts_of, read_prompts
from synthgen.prompts.notes import Notes, say
from synthgen.prompts.reading import MAX_BYTES, STDIN, is_file, read_source
from synthgen.storage.untrusted import one_line, parse_record
from synthgen.storage.urls import ask, open_url
from synthgen.types import Photo, Prompt

VERSION = 1
"""Raised whenever the same file would be read as other prompts."""

KEEP_FROM = 4 * 2**20
"""Bytes of prompts from which reading takes longer than a second, and is worth a file."""

_KEPT_FILES = 16
_KEPT_LISTS = 4
_YOUNG_SECONDS = 2.0  # a file that is changed again within a tick of its clock looks the same
Place = TypeVar("Place")

_NAME = "\0"
"""In notes, for the name of the list's file, which may be another one next time."""

_HEAD, _TAIL = b'{"prompts":[', b"]}"


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands behind text and places in a file of the cache."""

    digest: str
    places: str
    num: int
    size: int
    class_names: list[str]
    notes: list[str]


class PromptList(Sequence[Prompt]):
    """Prompts by number, parsed when they are asked for.

    Args:
        text: ``{"prompts":[[id, text, [class, ...]], ...]}``, canonical; of those of photos each
            goes on with the photo's name and hash.
        starts: Where each begins, and where one more would.
        header: What is known of all.
        file: Of the cache, None where the list is in memory alone.
    """

    def __init__(
        self,
        text: bytes | mmap.mmap,
        starts: UInt64[np.ndarray, " prompt"],
        header: _Header,
        file: Path | None = None,
    ) -> None:
        self._text, self._starts, self._header, self._file = text, starts, header, file
        self._known: set[str] = set()

    def __len__(self) -> int:
        return self._header.num

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        start, end = self._starts[chosen], self._starts[chosen + 1] - 1
        key, text, names, *photo = json.loads(self._text[start:end])
        return Prompt(key, text, tuple(names), Photo(*photo) if photo else None)

    @property
    def digest(self) -> str:
        """The sha256 of the content of all prompts, in their order."""
        return self._header.digest

    @property
    def class_names(self) -> tuple[str, ...]:
        """All their classes, sorted."""
        return tuple(self._header.class_names)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of the list."""
        return tuple(self._header.notes)

    def passed(self, check: str) -> bool:
        """Whether all prompts are known to pass a check."""
        return check in self._known or (self._file is not None and self._mark(check).exists())

    def remember(self, check: str) -> None:
        """Let later runs know that all prompts pass a check."""
        self._known.add(check)
        if self._file is not None:
            with suppress(OSError):
                self._mark(check).touch()

    def _mark(self, check: str) -> Path:
        assert self._file is not None
        hashed = hashlib.blake2b(check.encode(), digest_size=16).hexdigest()
        return self._file.with_suffix(f".{hashed}")


_lock = threading.Lock()
_by_stamp: dict[tuple[str, tuple[str, ...] | None, tuple[object, ...]], PromptList] = {}
_by_content: dict[str, PromptList] = {}


def open_prompts(source: str, classes: Collection[str] | None = None) -> PromptList:
    """The prompts of a source, as `load_prompts` reads them with ``classes`` as its class table.

    Raises:
        ValueError: In one line, for the first thing that is wrong with the list.
        OSError: In one line, if the store of a URL cannot be reached.
    """
    table = None if classes is None else tuple(classes)
    with _lock:
        stamp = _stamp(source)
        if stamp is not None and (source, table, stamp) in _by_stamp:
            return _by_stamp[source, table, stamp]
        key, name = _key(source, table, stamp), _first(source)

        def read(notes: Notes) -> Iterator[Prompt]:
            return read_prompts(source, table, MAX_BYTES, notes)

        found = _kept_or_read(key, read, name, KEEP_FROM)
        if stamp is not None:
            _put(_by_stamp, (source, table, stamp), found)
        return found


def keep_prompts(key: str, read: Callable[[Notes], Iterator[Prompt]]) -> PromptList:
    """The prompts that a function reads, or those that it read before, for which it said ``key``.

    Args:
        key: A hash of all that the prompts depend on.
        read: Reads them, which takes long.
    """
    with _lock:
        return _kept_or_read(key, read, "", 0)


def _kept_or_read(
    key: str, read: Callable[[Notes], Iterator[Prompt]], name: str, worth: int
) -> PromptList:
    found = _by_content.get(key)
    if found is None:
        found = _read_kept(key) or _read_anew(key, read, name, worth)
        say(note.replace(_NAME, name) for note in found.notes)
    _put(_by_content, key, found)
    return found


def _first(source: str) -> str:
    """The name that places in a list begin with."""
    return one_line((parts_of(source) or (f"{source}.jsonl",))[0])


def _put(memory: dict[Place, PromptList], place: Place, found: PromptList) -> None:
    """Remember a list; the one that came first makes room."""
    memory[place] = found
    for oldest in list(memory)[:-_KEPT_LISTS]:
        del memory[oldest]


def _stamp(source: str) -> tuple[object, ...] | None:
    """What changes when a source does; None where only its content can tell."""
    if source == STDIN:
        return ()
    if "://" in source:
        fs, path = open_url(source)
        with suppress(FileNotFoundError):
            return (ask(fs, source, lambda: fs.ukey(path), there=True),)
        return None
    found: list[object] = []
    try:
        for part in parts_of(source):
            state = Path(part).stat()
            if not time.time() - state.st_mtime > _YOUNG_SECONDS:
                return None
            found += [str(Path(part).resolve()), state.st_size, state.st_mtime_ns, state.st_ino]
    except OSError:
        return None  # reading it says why
    return tuple(found)


def _key(source: str, table: tuple[str, ...] | None, stamp: tuple[object, ...] | None) -> str:
    """Name of what a list becomes: a hash of its content, its form, and the classes looked for."""
    hashed = hashlib.sha256(json.dumps([VERSION, table]).encode())
    if source in PACKAGED or "://" in source:
        hashed.update(repr((source, stamp)).encode())
        return hashed.hexdigest()
    for part in parts_of(source):
        hashed.update(repr(("part", "".join(Path(part).suffixes[-2:]))).encode())
        if part == STDIN:
            hashed.update(read_source(STDIN, MAX_BYTES))
        elif is_file(path := Path(part)) and path.stat().st_size <= MAX_BYTES:
            with suppress(OSError), path.open("rb") as stream:  # reading it says what is wrong
                hashed.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            hashed.update(repr(part).encode())
    return hashed.hexdigest()


def _collect(
    prompts: Iterator[Prompt],
) -> tuple[bytes, UInt64[np.ndarray, " prompt"], str, list[str]]:
    """The canonical text of prompts, their places in it, its sha256, and all their classes."""
    text, starts, names = bytearray(_HEAD), array("Q"), set[str]()
    for prompt in prompts:
        starts.append(len(text))
        row: list[Any] = [prompt.id, prompt.text, list(prompt.class_names)]
        row += [] if prompt.photo is None else [prompt.photo.name, prompt.photo.sha256]
        text += json.dumps(row, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b","
        names.update(prompt.class_names)
    if starts:
        del text[-1:]
    starts.append(len(text) + 1)
    text += _TAIL
    content = bytes(text)
    places = np.frombuffer(starts.tobytes(), dtype=np.uint64)
    return content, places, hashlib.sha256(content).hexdigest(), sorted(names)


def _read_anew(
    key: str, read: Callable[[Notes], Iterator[Prompt]], name: str, worth: int
) -> PromptList:
    notes = Notes()
    text, starts, digest, names = _collect(read(notes))
    places = hashlib.sha256(starts.tobytes()).hexdigest()
    said = [note.replace(name, _NAME) if name else note for note in notes.sentences]
    header = _Header(digest, places, len(starts) - 1, len(text), names, said)
    if len(text) >= worth:
        with suppress(OSError, RuntimeError):  # no home, a full disk: read again next time
            _keep(key, text, starts.tobytes(), json.dumps(asdict(header)).encode())
            return _read_kept(key) or PromptList(text, starts, header)
    return PromptList(text, starts, header)


def cache_folder() -> Path:
    """Where long lists are kept: ``$XDG_CACHE_HOME/synthgen/prompts``, or below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthgen/prompts"


def _keep(key: str, *parts: bytes) -> None:
    """Write a file of the cache whole; the oldest ones make room."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=folder, prefix="new-")
    try:
        with os.fdopen(handle, "wb") as stream:
            for part in (*parts, len(parts[-1]).to_bytes(8, "little")):
                stream.write(part)
        Path(name).replace(folder / f"{key}.index")
    except BaseException:
        Path(name).unlink()
        raise
    kept = sorted(folder.glob("*.index"), key=lambda path: path.stat().st_mtime)
    for old in kept[:-_KEPT_FILES]:
        for path in folder.glob(f"{old.stem}.*"):
            path.unlink(missing_ok=True)


def _read_kept(key: str) -> PromptList | None:
    """The list in a file of the cache; None where there is none, or it is not what it says."""
    try:
        path = cache_folder() / f"{key}.index"
        with path.open("rb") as stream:
            whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(whole[-8:], "little")
        header = parse_record(_Header, whole[max(0, len(whole) - 8 - length) : -8])
        end = header.size + 8 * (header.num + 1)
        if len(whole) != end + length + 8:
            return None
        starts = np.frombuffer(whole[header.size : end], dtype=np.uint64)
        with memoryview(whole) as view, view[: header.size] as text:
            digest = hashlib.sha256(text).hexdigest()
        if (digest, hashlib.sha256(starts.tobytes()).hexdigest()) != (
            header.digest,
            header.places,
        ):
            return None
        os.utime(path)
        return PromptList(whole, starts, header, path)
    except (OSError, RuntimeError, ValueError, OverflowError):
        return None
