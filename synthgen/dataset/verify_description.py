"""What can be wrong with what a dataset says of itself: its description, and its manifests."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from synthgen.dataset.manifest import (
    CARD,
    CONFIG,
    MANIFEST,
    plans_more,
    totals,
    version_name,
    versions,
)
from synthgen.dataset.verify_samples import Problem
from synthgen.storage.publish import Storage
from synthgen.storage.seal import hash_file

_AGAIN = "run the command again that made the dataset"

logger = logging.getLogger(__name__)


def verify_description(
    storage: Storage, manifest: Mapping[str, Any], deep: bool
) -> Iterator[Problem]:
    """Every problem of the files that a manifest vouches for, and of its own sums.

    Args:
        storage: The dataset.
        manifest: The manifest that stands.
        deep: Also look at the card, which people may have edited.
    """
    if "files" not in manifest["times"]:
        logger.warning(
            "%s is of an older version, which has no hashes of the description, of earlier "
            "manifests, rows and previews: damage in them cannot be found.",
            MANIFEST,
        )
    if totals(manifest["shards"])["samples"] != manifest["totals"]["samples"]:
        yield Problem("wrong manifest", MANIFEST, "its totals are not those of its shards")
    for name, sha256 in manifest["times"].get("files", {}).items():
        if name == CONFIG and plans_more(storage, manifest):
            yield Problem("unfinished", name, f"plans more than the manifest lists; {_AGAIN}")
        elif (deep or name != CARD) and (found := hash_file(storage, name)) != sha256:
            yield from _wrong(name, found, f"restore it, or {_AGAIN}")
    known = manifest["times"].get("versions", {})
    for name, sha256 in known.items():
        if (found := hash_file(storage, name)) != sha256:
            yield from _wrong(name, found, "restore it; only readers of that version need it")
    for name in map(version_name, versions(storage) if known else ()):
        if name not in known:
            yield Problem("unfinished", name, f"the manifest does not know it; {_AGAIN}")


def _wrong(name: str, found: str | None, again: str) -> Iterator[Problem]:
    if found is None:
        yield Problem("missing file", name, f"the manifest has its hash; {again}")
    else:
        yield Problem(
            "wrong hash", name, f"sha256 {found[:12]}…, the manifest's is another; {again}"
        )
