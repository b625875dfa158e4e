"""Lines of Python per folder, against the bars of the project.

python tests/helpers/count_lines.py
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
BARS = {"product": 19_000, "synthgen/lab": 8_500, "synthgen/flows": 1_100, "tests": 18_000}


def lines(folder: Path) -> int:
    """Lines of all Python files below a folder."""
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))


if __name__ == "__main__":
    counted = {name: lines(ROOT / name) for name in BARS if name != "product"}
    package = lines(ROOT / "synthgen")
    counted["product"] = package - counted["synthgen/lab"] - counted["synthgen/flows"]
    for name, bar in BARS.items():
        print(f"{name:<16}{counted[name]:>8,} of {bar:,}")
    for folder in sorted(path for path in (ROOT / "synthgen").iterdir() if path.is_dir()):
        print(f"  {folder.name:<14}{lines(folder):>8,}")
