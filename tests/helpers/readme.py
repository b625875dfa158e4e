"""Commands of the READMEs that need more than this machine's files: blocks marked ``sh``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
READMES = (ROOT / "flows/README.md", ROOT / "synthgen/dataset/README.md")


def readme_commands(word: str) -> list[list[str]]:
    """Arguments of the ``synthgen`` commands of the ``sh`` blocks in which a word occurs."""
    text = "\n".join(path.read_text() for path in READMES)
    found = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in found if word in block for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines]
