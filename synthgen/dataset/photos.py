"""Photographs that users bring: where each is, what is known of it, the prompt it becomes.

    cat.jpg, photos/, "photos/**/*.jpg"    files, folders with all that is in them, patterns
    s3://bucket/photos                     the same in a store
    shard-000000.tar                       WebDataset; a caption in KEY.txt, classes in KEY.json
    instances.json                         COCO: its images, captions and annotated categories
    a folder of ``save_to_disk``           Hugging Face; needs the package datasets

A photo is named by where it is below what was given, and by the hash of its bytes: the list of
both is part of a dataset's identity, paths are not. What is named as no image is left out of
folders and said; what cannot be read stays in the list without a hash, and its sample fails.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from synthgen.dataset.photo_archives import in_tar, on_disk
from synthgen.prompts import PromptList, keep_prompts
from synthgen.prompts.coco import coco_images
from synthgen.prompts.entries import Entry, derive_id, image_entry
from synthgen.prompts.files import read_entries
from synthgen.prompts.mentions import mentioned_classes
from synthgen.prompts.notes import Notes
from synthgen.prompts.reading import MAX_BYTES as MAX_LIST
from synthgen.prompts.reading import decode, is_file, parse_json, read_source
from synthgen.storage.images import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES
from synthgen.storage.untrusted import one_line, printable, quote
from synthgen.storage.urls import StoreError, ask, open_url, read_url, scheme_of
from synthgen.types import Photo, Prompt

VERSION = 1
"""Raised whenever the same photos would become other prompts."""

Read = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Found:
    """A photo in a source.

    Args:
        name: Where it is below what was given.
        place: Where that is, for nobody but us.
        stamp: Changes when its file does.
        read: Its bytes; raises ValueError or OSError.
        entry: What the source says of it.
    """

    name: str
    place: str
    stamp: Any
    read: Read
    entry: Entry | None = None


class PhotoList:
    """The photos of sources, and the prompts that they become.

    Args:
        found: The photos by name.
        make_prompts: Hashes them; gives one prompt of each, in their order.
    """

    def __init__(self, found: Mapping[str, Found], make_prompts: Callable[[], PromptList]) -> None:
        self._found, self._make = found, make_prompts

    @functools.cached_property
    def prompts(self) -> PromptList:
        """One of each photo, in their order; all are read once, to hash them."""
        return self._make()

    def read(self, photo: Photo) -> bytes:
        """The bytes of a photo's file.

        Raises:
            ValueError: In one line, if it could not be read when the list was made.
            RuntimeError: If it is gone, or another one since.
            OSError: If a store cannot be reached.
        """
        found, name = self._found.get(photo.name), quote(photo.name)
        if found is None:
            raise RuntimeError(f"{name} must stay until its dataset is made. Got no such image.")
        if not photo.sha256:
            _bytes_of(found)
            raise ValueError("An image must be there when its dataset is begun. Got it later.")
        try:
            data = _bytes_of(found)
        except ValueError as error:
            raise RuntimeError(f"{name} must stay until its dataset is made. {error}") from None
        if hashlib.sha256(data).hexdigest() != photo.sha256:
            raise RuntimeError(
                f"{name} must stay what it was when its dataset was begun. Got other bytes; "
                f"restore it, or choose another output folder."
            )
        return data


def open_photos(
    sources: Sequence[str], captions: str | None = None, classes: Collection[str] | None = None
) -> PhotoList:
    """The photos of sources, in the order of the sources and by name within each.

    Args:
        sources: See the module.
        captions: A list with the image of each text (``image`` or ``file_name``), or COCO
            captions; it goes before what the sources say.
        classes: Names to look for: those that a caption mentions or the source gives, or all of
            them where there is neither. None: those that the sources give.

    Raises:
        ValueError: In one line, for a source that is none, or without an image.
        OSError: In one line, if a store cannot be reached.
    """
    notes, place = Notes(), (tuple(sources), captions, None if classes is None else (*classes,))
    found = _listed(sources, notes)
    texts = None if captions is None else _read_captions(captions, classes, notes)
    asked = [VERSION, list(classes) if classes is not None else None, captions is not None]
    hashed = hashlib.sha256(json.dumps(asked).encode())
    for one in found.values():
        said = one.entry and (one.entry.text, one.entry.class_names)
        hashed.update(repr((one.name, one.place, one.stamp, said)).encode("utf-8", "replace"))
    for entry in texts or ():
        hashed.update(repr((entry.image, entry.text, entry.class_names)).encode())

    def read(more: Notes) -> Iterator[Prompt]:
        more.include(notes)
        return _prompts(found, texts, classes, more)

    _opened.clear()
    _opened[place] = PhotoList(found, lambda: keep_prompts(hashed.hexdigest(), read))
    return _opened[place]


_opened: dict[Any, PhotoList] = {}


def opened_photos(
    sources: Sequence[str], captions: str | None = None, classes: Collection[str] | None = None
) -> PhotoList:
    """`open_photos`, as this process did last: when it is read, a photo's hash is checked."""
    place = (tuple(sources), captions, None if classes is None else (*classes,))
    found = _opened.get(place)
    return open_photos(*place) if found is None else found


def _bytes_of(found: Found) -> bytes:
    """The bytes of a photo; a bad file is a ValueError, a bad store an OSError."""
    try:
        data = found.read()
    except StoreError:
        raise
    except OSError as error:
        raise ValueError(
            f"An image must be a readable file. Got: {one_line(error.strerror or error)}."
        ) from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"An image must have at most {MAX_BYTES:,} bytes. Got {len(data):,}.")
    return data


def _sha256(found: Found) -> str:
    try:
        return hashlib.sha256(_bytes_of(found)).hexdigest()
    except ValueError:
        return ""


def _prompts(
    found: Mapping[str, Found],
    texts: Sequence[Entry] | None,
    classes: Collection[str] | None,
    notes: Notes,
) -> Iterator[Prompt]:
    by_name = _matched(found, texts, notes)
    for name, one in found.items():
        said = one.entry or image_entry(name, "", None, name)
        entry = by_name.get(name, said)
        if texts is not None and not entry.text:
            notes.add("uncaptioned", repr(name))
        names = said.class_names if entry.class_names is None else entry.class_names
        if names is None:
            names = tuple(classes or ())
            names = mentioned_classes(entry.text, names) if entry.text else names
        elif classes is not None:
            names = tuple(each for each in names if each in classes)
        photo = Photo(name, _sha256(one))
        key = derive_id(photo.name, (photo.sha256,))
        yield Prompt(key, entry.text, tuple(dict.fromkeys(names)), photo)


def _matched(
    found: Mapping[str, Found], texts: Sequence[Entry] | None, notes: Notes
) -> dict[str, Entry]:
    """Entries by the photo they are about: by its whole name, or by the last part if it is one's.

    Raises:
        ValueError: For an entry without an image, or two of one image.
    """
    if texts is None:
        return {}
    last = Counter(PurePosixPath(name).name for name in found)
    whole = {PurePosixPath(name).name: name for name in found}
    stems = {PurePosixPath(name).stem: name for name in found}
    matched: dict[str, Entry] = {}
    for entry in texts:
        if not entry.image:
            raise ValueError(
                f"{entry.where}: a caption must name its image under 'image' or 'file_name'. Got "
                f"none."
            )
        name, short = entry.image, PurePosixPath(entry.image).name
        if name not in found:
            name = whole.get(short, stems.get(short, "")) if last[short] < 2 else ""
        if not name:
            notes.add("captions", entry.where, repr(entry.image))
        elif name not in matched:  # of several captions the first
            matched[name] = entry
    return matched


def _read_captions(source: str, classes: Collection[str] | None, notes: Notes) -> Sequence[Entry]:
    if PurePosixPath(source).suffix.lower() == ".json":
        shown = one_line(source)
        content = parse_json(decode(read_source(source, MAX_LIST), shown), shown)
        if isinstance(content, dict):
            return [entry for entry in coco_images(content, shown) if entry.text]
    return list(read_entries(source, classes, MAX_LIST, notes))


def _listed(sources: Sequence[str], notes: Notes) -> dict[str, Found]:
    """All photos by a name that is theirs alone and that can be written down."""
    single = [s for s in sources if scheme_of(s) is None and _kind(s) == "photo"]
    folders = {source: Path(source).absolute().parent for source in single}
    common = os.path.commonpath([*folders.values()]) if folders else ""
    found: dict[str, Found] = {}
    places = set[str]()
    for source in sources:
        label = ""
        if source in folders:
            label = os.path.relpath(folders[source], common)
        elif len(sources) > 1:
            label = PurePosixPath(*_fixed_parts(PurePosixPath(source).parts)).name
        for one in _find(source, notes):
            if one.place in places:
                continue
            places.add(one.place)
            plain = PurePosixPath(label, one.name).as_posix()
            plain = name = printable(plain).replace("\n", "\\n")
            copies = 1
            while name in found:
                copies += 1
                name = f"{plain} ({copies})"
            found[name] = replace(one, name=name)
    if not found:
        shown = ", ".join(one_line(source, 60) for source in sources[:3])
        raise ValueError(
            f"There must be at least one image to annotate. Got none in {shown}. "
            f"{' '.join(notes.sentences)}".strip()
        )
    return found


def _kind(source: str) -> str:
    """What a local source is: folder, tar, json, photo, or pattern."""
    path = Path(source)
    if not is_file(path):
        return "folder" if path.is_dir() else "pattern"
    return {".tar": "tar", ".json": "json"}.get(path.suffix.lower(), "photo")


def _find(source: str, notes: Notes) -> Iterator[Found]:
    """The photos of a source.

    Raises:
        ValueError: If there is no such thing.
    """
    if scheme_of(source) is not None:
        yield from _find_in_store(source, notes)
        return
    path = Path(source)
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            for name, stamp, read in on_disk(path):
                yield Found(name, f"{path}/{name}", stamp, read)
            return
        yield from _in_folder(path, notes)
    elif is_file(path):
        yield from _of_file(path, path.name, notes)
    elif glob.has_magic(source):
        fixed = Path(*_fixed_parts(path.parts))
        pattern = str(Path(*path.parts[len(fixed.parts) :]))
        for match in sorted(fixed.glob(pattern)):
            if match.is_file() and _is_photo(match.name, notes):
                yield from _of_file(match, match.relative_to(fixed).as_posix(), notes)
    else:
        raise ValueError(
            f"An image source must be a file, a folder, a pattern or a URL that exists. Got "
            f"{quote(source)}."
        )


def _fixed_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The leading parts of a pattern that match only themselves; all of another path."""
    return tuple(itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _is_photo(name: str, notes: Notes, kinds: tuple[str, ...] = (".tar",)) -> bool:
    if PurePosixPath(name).suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES, *kinds):
        return True
    notes.add("others", repr(PurePosixPath(name).name[:80]))
    return False


def _in_folder(folder: Path, notes: Notes) -> Iterator[Found]:
    def refuse(error: OSError) -> None:
        raise ValueError(
            f"{one_line(error.filename)}: must be a readable folder. Got {error.strerror}."
        )

    names = []
    for place, folders, files in os.walk(folder, onerror=refuse):  # follows no links to folders
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(place, name) for name in files if not name.startswith(".")]
    for path in sorted(names):
        if path.is_file() and _is_photo(path.name, notes):
            yield from _of_file(path, path.relative_to(folder).as_posix(), notes)


def _of_file(path: Path, name: str, notes: Notes) -> Iterator[Found]:
    """A photo, or the photos that a tar or a COCO file holds or names."""
    state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
    suffix = path.suffix.lower()
    if suffix == ".tar":
        yield from _of_tar(lambda: path.open("rb"), str(path), name, stamp)
    elif suffix == ".json":
        yield from _of_coco(path)
    else:
        yield Found(name, str(path.absolute()), stamp, functools.partial(_read, path))


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def _of_tar(open_tar: Callable[[], Any], place: str, name: str, stamp: Any) -> Iterator[Found]:
    for inner, offset, read, text, names in in_tar(open_tar, one_line(place)):
        entry = None
        if text or names is not None:
            entry = image_entry(inner, text, names, f"{one_line(place)}: {one_line(inner, 80)}")
        yield Found(f"{name}/{inner}", f"{place}/{inner}", [stamp, offset], read, entry)


def _of_coco(path: Path) -> Iterator[Found]:
    """The images of a COCO file, which lie beside it, in ``images``, or as COCO has them."""
    shown = one_line(path)
    content = parse_json(decode(read_source(str(path), MAX_LIST), shown), shown)
    entries = list(coco_images(content, shown))
    split = path.stem.split("_")[-1]
    folders = [path.parent, path.parent / "images", path.parent.parent / split]
    folders += [path.parent.parent / "images", path.parent.parent / "images" / split]
    first = next((e.image for e in entries if _is_below(e.image)), "")
    folder = next((f for f in folders if first and (f / first).is_file()), folders[0])
    for entry in entries:
        own = folder / entry.image
        if not _is_below(entry.image):
            raise ValueError(
                f"{entry.where}: file_name must be a path below the file's folder. Got "
                f"{quote(entry.image)}."
            )
        state = own.stat() if own.is_file() else None
        stamp = state and [state.st_size, state.st_mtime_ns, state.st_ino]
        place = str(own.absolute())
        yield Found(entry.image, place, stamp, functools.partial(_read, own), entry)


def _is_below(name: str) -> bool:
    """Whether a name from a file leads to nowhere but below a folder."""
    parts = PurePosixPath(name)
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in name


def _find_in_store(url: str, notes: Notes) -> Iterator[Found]:
    fs, root = open_url(url)
    if glob.has_magic(root):
        known = ask(fs, url, lambda: fs.glob(root, detail=True))
        root = "/".join(_fixed_parts(tuple(root.split("/"))))
    else:
        known = ask(fs, url, lambda: fs.find(root, detail=True))
    if not known:
        raise ValueError(f"{one_line(url)}: must hold at least one image. Got nothing there.")
    for path in sorted(known):
        name = path.removeprefix(root).lstrip("/") or PurePosixPath(path).name
        hidden = any(part.startswith(".") for part in name.split("/"))
        if known[path].get("type") == "directory" or hidden or not _is_photo(name, notes):
            continue
        stamp = sorted((key, str(value)) for key, value in known[path].items())
        where = fs.unstrip_protocol(path)
        if name.lower().endswith(".tar"):
            yield from _of_tar(functools.partial(fs.open, path, "rb"), where, name, stamp)
        else:
            yield Found(name, where, stamp, functools.partial(read_url, where, MAX_BYTES))
