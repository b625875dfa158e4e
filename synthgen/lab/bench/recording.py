"""What the modules that measure embedded weights have in common: options, JSON, the card."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from synthgen.embedded.card import record_quality


def figures_parser(description: str, weights: Path) -> argparse.ArgumentParser:
    """Options of a measurement of the weights in a folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=weights)
    parser.add_argument("--record", action="store_true", help="write the figures into the card")
    return parser


def show_figures(args: argparse.Namespace, figures: Mapping[str, float]) -> None:
    """Print the figures as JSON, and write them into the card if asked to."""
    measured = {"num": args.num, **figures}
    print(json.dumps(measured))
    if args.record:
        record_quality(measured, args.weights)
