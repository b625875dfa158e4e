"""Backgrounds: sky over ground, water, night, brick wall, wooden floor.

Each painter returns the clean colors; texture and lighting are added by the renderer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from synthgen.embedded.vocabulary import BACKGROUNDS

Canvas = Float32[np.ndarray, "height width 3"]

SKY_TOP, SKY_LOW = (86, 140, 218), (176, 208, 240)
GROUND = {
    "grass": (78, 150, 70),
    "road": (104, 104, 110),
    "water": (52, 104, 190),
    "sand": (222, 194, 110),
    "snow": (228, 232, 240),
    "night": (40, 52, 50),
}


def _fill(size: int, color: tuple[int, int, int]) -> Canvas:
    return np.full((size, size, 3), color, dtype=np.float32)


def _gradient(size: int, top: tuple[int, int, int], low: tuple[int, int, int]) -> Canvas:
    weight = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    column = np.array(top, np.float32) * (1 - weight) + np.array(low, np.float32) * weight
    return np.broadcast_to(column, (size, size, 3)).copy()


def _paint(canvas: Canvas, alpha: Float32[np.ndarray, "height width"], color: object) -> None:
    canvas += alpha[..., None] * (np.asarray(color, np.float32) - canvas)


def _drawn(size: int, boxes: list[tuple[float, float, float, float]], round_: bool) -> np.ndarray:
    """Coverage of boxes (x0, y0, x1, y1) or of the ellipses in them."""
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    for box in boxes:
        (draw.ellipse if round_ else draw.rectangle)(box, fill=255)
    return np.asarray(mask, np.float32) / 255.0


def _clouds(canvas: Canvas, rng: np.random.Generator, low: float) -> None:
    size = canvas.shape[0]
    boxes = []
    for _ in range(rng.integers(1, 4)):
        x, y, w = rng.uniform(0, size), rng.uniform(4, max(6, low)), rng.uniform(12, 26)
        boxes += [
            (x - w, y - w / 3, x + w, y + w / 3),
            (x - w / 2, y - w / 2, x + w / 2, y + w / 4),
        ]
    _paint(canvas, _drawn(size, boxes, round_=True), (238, 240, 244))


def _open_air(name: str, size: int, rng: np.random.Generator) -> Canvas:
    """Sky down to a horizon, ground below it."""
    dark = name == "night"
    canvas = (
        _gradient(size, (18, 22, 52), (40, 44, 84)) if dark else _gradient(size, SKY_TOP, SKY_LOW)
    )
    horizon = int(size * rng.uniform(0.3, 0.6))
    if dark:
        stars = [(x, y, x + 1.5, y + 1.5) for x, y in rng.uniform(2, size - 4, (9, 2))]
        _paint(canvas, _drawn(size, stars, round_=False), (230, 226, 190))
    elif rng.random() < 0.4:
        _clouds(canvas, rng, horizon - 8.0)
    canvas[horizon:] = GROUND[name]
    rows = np.arange(size - horizon, dtype=np.float32)
    if name == "water":
        canvas[horizon:] += 16 * np.sin(rows * 2 * np.pi / rng.uniform(12, 18))[:, None, None]
    if name == "road":
        y = horizon + 0.55 * (size - horizon)
        dashes = [(x, y, x + 15, y + 4) for x in np.arange(rng.uniform(-20, 0), size, 30)]
        _paint(canvas, _drawn(size, dashes, round_=False), (232, 226, 206))
    return canvas


def _wall(size: int, rng: np.random.Generator) -> Canvas:
    canvas = _fill(size, (176, 78, 62))
    shift, row, brick = rng.uniform(0, 20), 12, 26
    lines = [(0.0, y, float(size), y + 1.5) for y in np.arange(shift % row, size, row)]
    for i, y in enumerate(np.arange(shift % row - row, size, row)):
        start = shift - brick + (i % 2) * brick / 2
        lines += [(x, y, x + 1.5, y + row) for x in np.arange(start, size, brick)]
    _paint(canvas, 0.7 * _drawn(size, lines, round_=False), (206, 178, 160))
    return canvas


def _floor(size: int, rng: np.random.Generator) -> Canvas:
    canvas = _fill(size, (186, 128, 70))
    plank = int(rng.integers(18, 26))
    for i, y in enumerate(range(-int(rng.integers(0, plank)), size, plank)):
        canvas[max(y, 0) : max(y + plank, 0)] += (-12, 0, 12)[i % 3]
        canvas[max(y, 0) : max(y + 2, 0)] -= 44
    return canvas


def paint_background(
    name: str, size: int, rng: np.random.Generator
) -> Float32[np.ndarray, "height width 3"]:
    """Colors of a background, 0-255.

    Args:
        name: A key of `vocabulary.BACKGROUNDS`.
        size: Side, in pixels.
        rng: Draws horizon, clouds, phases.

    Raises:
        ValueError: If `name` is unknown.
    """
    if name not in BACKGROUNDS:
        raise ValueError(f"background must be one of {sorted(BACKGROUNDS)}. Got {name!r}.")
    if name == "wall":
        return _wall(size, rng)
    if name == "floor":
        return _floor(size, rng)
    if name == "sky":
        canvas = _gradient(size, SKY_TOP, SKY_LOW)
        _clouds(canvas, rng, size - 8.0)
        return canvas
    return _open_air(name, size, rng)
