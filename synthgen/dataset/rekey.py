"""A sample under another key: what of its members changes when datasets become one.

Images, masks and prompts stay as they are, byte for byte. The json bears the new key, and a
semantic map the ids of the new classes.json.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from synthgen.dataset.records import decode_image, dump_sample, encode_image, id_table
from synthgen.storage.untrusted import parse_object


def rekey(
    members: Mapping[str, bytes], key: str, ids: UInt8[np.ndarray, " old_id"] | None
) -> dict[str, bytes]:
    """Tar members of a sample under another key, by suffix.

    Args:
        ids: New class id of each old one; None leaves the semantic map as it is.

    Raises:
        ValueError: If its json or its semantic map cannot be read.

    >>> rekey({"json": b'{"key": "0000000003", "width": 8}', "txt": b"a car"}, "0000070000", None)
    {'json': b'{"key": "0000070000", "width": 8}', 'txt': b'a car'}
    """
    changed = dict(members)
    if "json" in members:
        info = parse_object(members["json"])
        changed["json"] = dump_sample({**info, "key": key})
    if "sem.png" in members and ids is not None:
        changed["sem.png"] = encode_image(ids[decode_image(members["sem.png"], "L")], "png")
    return changed


def translate_ids(
    old: Mapping[str, int], new: Mapping[str, int]
) -> UInt8[np.ndarray, " old_id"] | None:
    """New id of each old class id, of a table that knows every name; None where none changes.

    >>> translate_ids({"cat": 1}, {"cat": 1, "dog": 2}) is None
    True
    """
    return None if all(new[name] == index for name, index in old.items()) else id_table(old, new)
