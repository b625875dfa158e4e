"""Send a finished dataset or export to another place; what is there already is not sent again.

A folder of a store of ``urls.SCHEMES``, or a dataset repository of the Hugging Face hub
(``hf://datasets/owner/name``). Files that say what is there (manifest.json, export.json) go last,
so a reader never finds one before what it lists.

Sizes and names do not tell equal files apart (a tar of another run may have the same size), and
remote hashes differ from store to store. So a plan, ``.synthgen/push.json``, goes first: name to
size and sha256. Before it is replaced, what the standing plan does not vouch for is removed;
hence a remote file that the plan names and that has its size is equal, and is skipped. One process
at a time pushes to a target (`synthgen.storage.claim`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.dataset.manifest import MANIFEST
from synthgen.progress import Progress, report
from synthgen.storage import urls
from synthgen.storage.claim import LookAgain, claimed
from synthgen.storage.publish import (
    Storage,
    dump_json,
    explain_disk_errors,
    open_storage,
    sha256_file,
)
from synthgen.storage.untrusted import one_line, quote

PLAN = ".synthgen/push.json"
LAST = (MANIFEST, "export.json")
HUB = "hf://datasets/"
Plan = Mapping[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did.

    Args:
        sent: Files sent.
        skipped: Files that were there.
        num_bytes: Bytes sent.
    """

    sent: int
    skipped: int
    num_bytes: int


def push(directory: str | Path, url: str, progress: Progress = report) -> PushReport:
    """Send a finished folder to ``url``, or finish a push that was cut off.

    Args:
        directory: A finished dataset or export on this machine.
        url: URL of a folder, or ``hf://datasets/owner/name``.
        progress: Told about every file; may raise, to stop.

    Raises:
        ValueError: In one line, if the URL's scheme is unknown or it holds credentials, the folder
            is not finished, or the target holds files of others.
        RuntimeError: In one line, if another process pushes there.
    """
    target = url.removeprefix(HUB) if url.startswith(HUB) else open_target(url)
    root = Path(directory)
    if not any((root / name).is_file() for name in LAST):
        raise ValueError(
            f"A finished dataset or export must be pushed. Got {str(root)!r} without "
            f"{' or '.join(LAST)}."
        )
    if isinstance(target, str):
        return _push_to_hub(root, target, progress)
    _look(target)
    with claimed(target, f"a push of {root.name}") as look_again:
        return _push_files(root, target, look_again, progress)


def open_target(url: str) -> Storage:
    """The storage behind an fsspec URL.

    Raises:
        ValueError: In one line that does not repeat the URL, for one without a scheme, one of
            another scheme than ``urls.SCHEMES``, a chain of them, or credentials in it.

    >>> open_target("hf://me/scenes")
    Traceback (most recent call last):
    ValueError: A target on the hub must be hf://datasets/owner/name. Got another; did you mean ...
    """
    scheme = urls.scheme_of(url)
    if scheme == "hf":
        named = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", url)
        hint = f"did you mean {HUB}{named[1]}?" if named else "check the URL."
        raise ValueError(f"A target on the hub must be {HUB}owner/name. Got another; {hint}")
    if scheme not in urls.SCHEMES or "://" not in url or "::" in url:
        raise ValueError(
            f"The target must be a URL such as file:///data/out, s3://bucket/out or "
            f"{HUB}owner/name. Got {'no scheme' if scheme is None else quote(scheme, 40)}."
        )
    return Storage(*urls.open_url(url))


def local_files(root: Path) -> list[str]:
    """Names of the files that are pushed: nothing hidden, those that tell of others last.

    Raises:
        ValueError: If a link, pipe or device stands among them.
    """
    if strangers := [name for name in open_storage(root).strangers() if not _is_hidden(name)]:
        raise ValueError(
            f"What is pushed must be plain files. Got {one_line(strangers[0])}, a link, pipe or "
            f"device; remove it."
        )
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    names = sorted(name for path in paths if not _is_hidden(name := path.as_posix()))
    return [name for name in names if name not in LAST] + [n for n in names if n in LAST]


def _is_hidden(name: str) -> bool:
    return any(part[0] == "." for part in name.split("/"))


def _push_files(
    root: Path, target: Storage, look_again: LookAgain, progress: Progress
) -> PushReport:
    names = local_files(root)
    plan = {name: _describe(root / name) for name in names}
    found, standing = _look(target)
    if standing != plan:
        _remove_unequal(target, found, standing or {}, plan)
        target.publish_bytes(dump_json({name: list(plan[name]) for name in plan}), PLAN)
    sent = num_bytes = 0
    for name in names:
        equal = target.size(name) == plan[name][0]
        if not equal:
            look_again()
            _send(root / name, target, name)
            sent, num_bytes = sent + 1, num_bytes + plan[name][0]
        progress("push", name=name, bytes=plan[name][0], reused=equal)
    target.sync()
    return PushReport(sent, len(names) - sent, num_bytes)


def _look(target: Storage) -> tuple[list[str], Plan | None]:
    """Files at the target and their plan.

    Raises:
        ValueError: If there are files and no plan.
    """
    found = _remote_files(target)
    standing = _read_plan(target, there=bool(found))
    if standing is None and found:
        raise ValueError(
            f"The target must be empty or a push of ours. Got {target.root} with {found[0]}."
        )
    return found, standing


def _remove_unequal(target: Storage, found: list[str], standing: Plan, plan: Plan) -> None:
    """Remove what the standing plan does not show to be equal, what tells of others first."""
    for name in sorted(found, key=lambda name: name not in LAST):
        if name in standing and standing[name] != plan.get(name):
            target.remove(name)
        elif name not in standing and name in plan:
            raise ValueError(
                f"The target must hold nothing but what was pushed. Got {target.path(name)}, "
                f"which was not; move it away."
            )


def _send(path: Path, target: Storage, name: str) -> None:
    with explain_disk_errors(target, path.stat().st_size, name):
        target.send(path, name)
    size = target.size(name)
    if size != path.stat().st_size:
        raise RuntimeError(
            f"{target.path(name)} must have {path.stat().st_size} bytes after it was sent. "
            f"Got {size}; run again."
        )


def _remote_files(target: Storage) -> list[str]:
    target.fs.invalidate_cache()
    prefix = target.root.lstrip("/") + "/"
    found = urls.ask(target.fs, target.root, lambda: target.fs.find(target.root))
    names = (str(path).lstrip("/").removeprefix(prefix) for path in found)
    return [name for name in names if not name.startswith(".synthgen/")]


def _describe(path: Path) -> tuple[int, str]:
    with path.open("rb") as stream:
        return path.stat().st_size, sha256_file(stream)


def _read_plan(target: Storage, there: bool) -> dict[str, tuple[int, str]] | None:
    """The standing plan; None where there is none or it was cut off while it was written."""
    try:
        tree = json.loads(target.read(PLAN, there) or b"")
        return {str(name): (int(entry[0]), str(entry[1])) for name, entry in tree.items()}
    except (ValueError, TypeError, AttributeError, IndexError):
        return None


def _push_to_hub(root: Path, repository: str, progress: Progress) -> PushReport:
    """The hub's client skips what is there and resumes; the last files are a commit of their own.

    Not run in our tests: it needs the hub. Its two calls are checked against a client that
    records them.
    """
    from huggingface_hub import HfApi

    return push_with_client(HfApi(), root, repository, progress)


def push_with_client(
    client: Any, root: Path, repository: str, progress: Progress = report
) -> PushReport:
    """Push to a dataset repository through a client of ``huggingface_hub``.

    Raises:
        ValueError: If the repository is not ``owner/name``; what may be a secret is not repeated.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        found = f"{HUB}{repository}" if re.fullmatch(r"[\w./-]{0,80}", repository) else "another"
        raise ValueError(f"The target must be {HUB}owner/name. Got {found}.")
    names = local_files(root)
    where = {"repo_id": repository, "repo_type": "dataset"}
    client.create_repo(exist_ok=True, **where)
    hidden = [".*", "**/.*", ".*/**"]
    client.upload_folder(folder_path=root, ignore_patterns=[*LAST, *hidden], **where)
    last = [name for name in names if name in LAST]
    client.upload_folder(
        folder_path=root,
        allow_patterns=last,
        commit_message="Say what is there",
        **where,
    )
    progress("push", name=repository, bytes=0, reused=False)
    return PushReport(len(names), 0, sum((root / name).stat().st_size for name in names))
