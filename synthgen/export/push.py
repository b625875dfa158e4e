"""Send a finished dataset or export to another place; what is there already is not sent again.

A folder of a store of ``urls.SCHEMES``, or a dataset repository of the Hugging Face hub
(``hf://datasets/owner/name``). Files that say what is there (manifest.json, export.json) go last,
so a reader never finds one before what it lists.

Sizes and names do not tell equal files apart (a tar of another run may have the same size), and
remote hashes differ from store to store. So a plan, ``.synthgen/push.json``, goes first: name to
size and sha256. Before it is replaced, what the existing plan does not vouch for is removed;
hence a remote file that the plan names and that has its size is equal, and is skipped. One process
at a time pushes to a target (`synthgen.storage.claim`).
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.dataset.manifest import MANIFEST
from synthgen.export.checksums import EXPORT, file_sizes
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
LAST = (MANIFEST, EXPORT)
HUB = "hf://datasets/"


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did: files sent, files that were there already, and bytes sent."""

    sent: int
    skipped: int
    num_bytes: int


def push(
    directory: str | Path, url: str, progress: Progress = report, client: Any = None
) -> PushReport:
    """Send a finished folder to ``url``, or finish a push that was cut off.

    Args:
        directory: A finished dataset or export on this machine.
        url: URL of a folder, or ``hf://datasets/owner/name``.
        progress: Told about every file; may raise, to stop.
        client: Client of the hub; None: ``huggingface_hub.HfApi()``.

    Raises:
        ValueError: In one line, if the URL's scheme is unknown or it holds credentials, the folder
            is not finished, or the target holds files of others.
        RuntimeError: In one line, if another process pushes there.
    """
    target = None if url.startswith(HUB) else _open_target(url)
    root = Path(directory)
    if not any((root / name).is_file() for name in LAST):
        raise ValueError(
            f"A finished dataset or export must be pushed. Got {str(root)!r} without "
            f"{' or '.join(LAST)}."
        )
    if target is None:
        return _push_to_hub(root, url.removeprefix(HUB), progress, client)
    _look(target)
    with claimed(target, f"a push of {root.name}") as look_again:
        return _push_files(root, target, look_again, progress)


def local_files(root: Path) -> list[str]:
    """Names of the files that are pushed: nothing hidden, those that tell of others last.

    Raises:
        ValueError: If a link, pipe or device is among them.
    """
    strangers = _shown(open_storage(root).strangers())
    if strangers:
        raise ValueError(
            f"What is pushed must be plain files. Got {one_line(strangers[0])}, a link, pipe or "
            f"device; remove it."
        )
    paths = (path for path in root.rglob("*") if path.is_file())
    names = sorted(_shown(path.relative_to(root).as_posix() for path in paths))
    return sorted(names, key=lambda name: name in LAST)  # stable


def _shown(names: Any) -> list[str]:
    """Names without the hidden ones."""
    return [name for name in names if not any(part[0] == "." for part in name.split("/"))]


def _open_target(url: str) -> Storage:
    """The storage behind a URL; messages do not repeat it, for it may hold credentials."""
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


def _push_files(
    root: Path, target: Storage, look_again: LookAgain, progress: Progress
) -> PushReport:
    names, plan = local_files(root), dict[str, list[Any]]()
    for name in names:
        with (root / name).open("rb") as stream:
            plan[name] = [(root / name).stat().st_size, sha256_file(stream)]
    found, existing = _look(target)
    if existing != plan:
        for name in sorted(found, key=lambda name: name not in LAST):  # what tells of others first
            if name in existing and existing[name] != plan.get(name):
                target.remove(name)
            elif name not in existing and name in plan:
                raise ValueError(
                    f"The target must hold nothing but what was pushed. Got {target.path(name)}, "
                    f"which was not; move it away."
                )
        target.publish_bytes(dump_json(plan), PLAN)
    sent = num_bytes = 0
    for name in names:
        size = plan[name][0]
        equal = target.size(name) == size
        if not equal:
            look_again()
            try:
                with explain_disk_errors(target, size, name):
                    target.send(root / name, name)
            except OSError:  # what did not arrive whole may have its size, which the plan trusts
                with suppress(OSError):
                    target.remove(name)
                raise
            sent, num_bytes = sent + 1, num_bytes + size
        progress("push", name=name, bytes=size, reused=equal)
    target.sync()
    return PushReport(sent, len(names) - sent, num_bytes)


def _look(target: Storage) -> tuple[list[str], dict[str, Any]]:
    """Files at the target and its plan, empty where there is none that is whole.

    Raises:
        ValueError: If there are files and no plan.
    """
    found = [name for name in file_sizes(target, links=True) if not name.startswith(".synthgen/")]
    try:
        plan = dict(json.loads(target.read(PLAN, there=bool(found)) or b""))
    except (ValueError, TypeError):
        plan = {}
    if found and not plan:
        raise ValueError(
            f"The target must be empty or a push of ours. Got {target.root} with {found[0]}."
        )
    return found, plan


def _push_to_hub(root: Path, repository: str, progress: Progress, client: Any) -> PushReport:
    """The hub's client skips what is there and resumes; the last files are a commit of their own.

    Not run in our tests: it needs the hub. Its calls are checked against a client that records
    them.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        found = f"{HUB}{repository}" if re.fullmatch(r"[\w./-]{0,80}", repository) else "another"
        raise ValueError(f"The target must be {HUB}owner/name. Got {found}.")
    names = local_files(root)
    if client is None:
        from huggingface_hub import HfApi

        client = HfApi()
    where = {"repo_id": repository, "repo_type": "dataset", "folder_path": root}
    client.create_repo(repo_id=repository, repo_type="dataset", exist_ok=True)
    client.upload_folder(ignore_patterns=[*LAST, ".*", "**/.*", ".*/**"], **where)
    last = [name for name in names if name in LAST]
    client.upload_folder(allow_patterns=last, commit_message="Say what is there", **where)
    progress("push", name=repository, bytes=0, reused=False)
    return PushReport(len(names), 0, sum((root / name).stat().st_size for name in names))
