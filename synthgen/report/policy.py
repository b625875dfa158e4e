"""What a report may do in a browser: run our own script, show pictures that are part of it.

Nothing else: no network, no other script, no form.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

SCRIPT, STYLE = "explorer.js", "style.css"


def asset(name: str) -> str:
    """The text of one of our own files for the page."""
    return files("synthgen.report").joinpath("assets", name).read_text(encoding="utf-8")


def content_security_policy() -> str:
    """The policy of a page that loads nothing: our script and style by hash, pictures as data.

    >>> content_security_policy().split(";")[0]
    "default-src 'none'"
    """
    script, style = (
        base64.b64encode(hashlib.sha256(asset(name).encode("utf-8")).digest()).decode("ascii")
        for name in (SCRIPT, STYLE)
    )
    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{script}'; "
        f"style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    )
