"""What a run will make and take, before it does: shards, bytes, seconds, and on what basis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthgen.config import Config
from synthgen.dataset.manifest import read_markers
from synthgen.dataset.publish import open_storage
from synthgen.diffusion.cards import find_card
from synthgen.run.plan import plan

BYTES_PER_PIXEL = {"jpg": 0.9, "png": 2.2, "webp": 1.6}
BYTES_PER_MASKS = 24_000
FALLBACK_SIDE = 512  # of a card that leaves the size to the model's own configuration
SCENES_SECONDS = 1.5


def bytes_per_sample(config: Config) -> int:
    """About how many bytes of tar a sample takes."""
    card, _ = find_card(config.model.card)
    height = config.generation.height or card.height or FALLBACK_SIDE
    width = config.generation.width or card.width or FALLBACK_SIDE
    return int(height * width * BYTES_PER_PIXEL[config.dataset.image_format]) + BYTES_PER_MASKS


def estimate(config: Config, out: str | Path | None = None) -> dict[str, Any]:
    """Shards, samples, bytes and seconds of a run.

    Args:
        config: The dataset's configuration.
        out: A dataset that was begun; its complete shards are then the basis.

    Returns:
        ``shards``, ``samples``, ``bytes``, ``seconds`` (None where there is no basis) and
        ``basis``.
    """
    specs = plan(config)
    counts = {"shards": len(specs), "samples": config.num}
    markers = [m for m in read_markers(open_storage(out)) if m.planned] if out else []
    if markers:
        planned = sum(marker.planned for marker in markers)
        seconds = sum(sum(marker.seconds.values()) for marker in markers) / planned
        num_bytes = sum(marker.bytes for marker in markers) / planned
        basis = f"the {planned} samples that are already made there"
        return counts | _scaled(config.num, num_bytes, seconds, basis)
    known = config.model.card == "scenes"
    return counts | _scaled(
        config.num,
        bytes_per_sample(config),
        SCENES_SECONDS if known else None,
        "the embedded model on two CPU cores, default settings"
        if known
        else "no time is known for this model before its first shard",
    )


def _scaled(num: int, num_bytes: float, seconds: float | None, basis: str) -> dict[str, Any]:
    return {
        "bytes": int(num * num_bytes),
        "seconds": None if seconds is None else round(num * seconds, 1),
        "basis": basis,
    }
