"""Scenes with ground truth from a seed: image, semantic, instance and part map, caption.

Objects are laid out so that each stays at least `MIN_VISIBLE` visible, then painted back to front
with antialiased coverage; a pixel belongs to the frontmost part that covers more than half of it.
Only coverage is supersampled; patterns are antialiased analytically and noise comes from a bank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from synthgen.embedded.vocabulary import (
    ACCENTS,
    BACKGROUNDS,
    CLASS_PARTS,
    CLASSES,
    COLORS,
    IMAGE_SIZE,
    PARTS,
    PATTERNS,
    SIMILAR_COLORS,
)
from synthgen.lab.world.backgrounds import paint_background
from synthgen.lab.world.captions import CaptionMeaning, ObjectPhrase, compose_caption
from synthgen.lab.world.patterns import pattern_weights, texture_bank
from synthgen.lab.world.shapes import SHAPES, Part, Polygon

SUPERSAMPLING = 2
MIN_VISIBLE = 0.55
"""Smallest visible share of an object, by area."""

RADIUS = {1: (32.0, 50.0), 2: (22.0, 33.0), 3: (18.0, 26.0), 4: (16.0, 22.0)}
"""Number of objects -> range of their radius, in pixels."""

OBJECT_COUNTS = {1: 0.3, 2: 0.35, 3: 0.25, 4: 0.1}
"""Number of objects -> share of the scenes, where the caller does not fix it."""

SHARED_COLOR = 0.5
"""Share of two-colored objects whose second color is the background's."""

Plane = Float32[np.ndarray, "height width"]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene.

    Args:
        instance: Its value in the instance map, from 1, back to front.
        class_name: One of `CLASSES`.
        colors: One or two keys of `COLORS`.
        pattern: A key of `PATTERNS`.
        parts: Names of the parts that are visible.
    """

    instance: int
    class_name: str
    colors: tuple[str, ...]
    pattern: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """An image with everything that is known about it.

    Args:
        seed: What it was rendered from.
        image: sRGB, 0-255.
        semantic: 0 background, otherwise 1 + index in `CLASSES`.
        instance: 0 background, otherwise the object's number.
        part: 0 background, otherwise 1 + index in `PARTS`.
        caption: One sentence that names every object and the background.
        background: A key of `BACKGROUNDS`.
        objects: Back to front.
    """

    seed: int
    image: UInt8[np.ndarray, "height width 3"]
    semantic: UInt8[np.ndarray, "height width"]
    instance: UInt8[np.ndarray, "height width"]
    part: UInt8[np.ndarray, "height width"]
    caption: str
    background: str
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where an object stands: center and radius in pixels, rotation in radians, mirroring."""

    x: float
    y: float
    radius: float
    angle: float
    mirror: bool
    vertical: bool

    def place(self, polygon: Polygon) -> list[tuple[float, float]]:
        """Corners in supersampled pixels."""
        sign = -1.0 if self.mirror else 1.0
        cos, sin = math.cos(self.angle) * self.radius, math.sin(self.angle) * self.radius
        px, py = sign * polygon[:, 0], polygon[:, 1]
        x, y = self.x + px * cos - py * sin, self.y + px * sin + py * cos
        return list(zip((x * SUPERSAMPLING).tolist(), (y * SUPERSAMPLING).tolist(), strict=True))

    def local(self, xs: Plane, ys: Plane) -> tuple[Plane, Plane]:
        """Object coordinates of pixels, in pixels."""
        dx, dy = xs - np.float32(self.x), ys - np.float32(self.y)
        cos, sin = np.float32(math.cos(self.angle)), np.float32(math.sin(self.angle))
        return dx * cos + dy * sin, dy * cos - dx * sin


Arranged = tuple[list[ObjectPhrase], list[Pose]]
"""Objects and where they stand, back to front."""


@dataclass(frozen=True, slots=True)
class Change:
    """How a scene differs from the one of its seed.

    Args:
        arrange: Makes other objects and poses of those that were drawn.
        min_visible: Smallest visible share of an object.
        camouflaged: Objects' own colors are the background's, of half a scene to the side.
    """

    arrange: Callable[[list[ObjectPhrase], list[Pose]], Arranged] | None = None
    min_visible: float = MIN_VISIBLE
    camouflaged: bool = False


def _coverage(part: Part, pose: Pose, size: int) -> tuple[Plane, tuple[slice, slice]]:
    """Covered share of each pixel within the part's bounding box, and that box."""
    mask = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for polygon in part.polygons:
        draw.polygon(pose.place(polygon), fill=255)
    for polygon in part.holes:
        draw.polygon(pose.place(polygon), fill=0)
    mask = mask.reduce(SUPERSAMPLING)
    x0, y0, x1, y1 = mask.getbbox() or (0, 0, 1, 1)
    window = (slice(y0, y1), slice(x0, x1))
    return np.asarray(mask.crop((x0, y0, x1, y1)), np.float32) / 255.0, window


def _draw_count(rng: np.random.Generator) -> int:
    return int(rng.choice(list(OBJECT_COUNTS), p=list(OBJECT_COUNTS.values())))


def _draw_phrase(rng: np.random.Generator, background: str) -> ObjectPhrase:
    """Class, colors and pattern; a solid object never has the background's color."""
    pattern = str(rng.choice(list(PATTERNS), p=list(PATTERNS.values())))
    shared = BACKGROUNDS[background].palette
    names = [name for name in COLORS if name != shared]
    first = str(rng.choice(names))
    others = [name for name in COLORS if name != first and {name, first} not in SIMILAR_COLORS]
    second = str(rng.choice(others))
    if rng.random() < SHARED_COLOR and shared in others:
        second = shared
    colors = (first,) if pattern == "solid" else (first, second)
    return ObjectPhrase(str(rng.choice(CLASSES)), colors, pattern)


def _draw_poses(rng: np.random.Generator, count: int, size: int) -> list[Pose]:
    """Poses whose discs overlap by at most a third of the smaller radius."""
    poses: list[Pose] = []
    low, high = (r * size / IMAGE_SIZE for r in RADIUS[count])
    while len(poses) < count:
        for _ in range(40):
            radius = rng.uniform(low, high)
            inset = 0.92 * radius
            x, y = rng.uniform(inset, size - inset, 2)
            gaps = [math.hypot(x - p.x, y - p.y) - 0.86 * (radius + p.radius) for p in poses]
            if all(gap > 0 for gap in gaps):
                break
        turn, flip, up = rng.uniform(-0.2, 0.2), rng.random() < 0.5, rng.random() < 0.5
        poses.append(Pose(float(x), float(y), float(radius), float(turn), bool(flip), bool(up)))
    return sorted(poses, key=lambda pose: pose.y)


class _Painter:
    """The canvas and ground-truth maps of one scene while it is painted."""

    def __init__(
        self,
        canvas: Float32[np.ndarray, "height width 3"],
        rng: np.random.Generator,
        camouflaged: bool,
    ):
        size = canvas.shape[0]
        self.canvas = canvas
        self.own_colors = np.roll(canvas, size // 2, axis=1) if camouflaged else None
        self.semantic, self.instance, self.part = np.zeros((3, size, size), np.uint8)
        self.ys, self.xs = np.mgrid[0:size, 0:size].astype(np.float32)
        self.light = float(rng.uniform(-math.pi, 0))
        self.bank = texture_bank(size)
        self.rng = rng

    def add_object(self, item: ObjectPhrase, pose: Pose, instance: int) -> int:
        """Paint one object over what is there; returns its area in pixels."""
        grain = self.bank[self.rng.integers(len(self.bank))]
        area = np.zeros(self.semantic.shape, bool)
        for part in SHAPES[item.class_name]:
            alpha, window = _coverage(part, pose, self.semantic.shape[0])
            color = self._paint(part, item, pose, window)
            color += 4.0 * grain[window][..., None]
            self.canvas[window] += alpha[..., None] * (color - self.canvas[window])
            inside = alpha > 0.5
            self.semantic[window][inside] = CLASSES.index(item.class_name) + 1
            self.instance[window][inside] = instance
            self.part[window][inside] = PARTS.index((item.class_name, part.name)) + 1
            area[window] |= inside
        return int(area.sum())

    def _paint(
        self, part: Part, item: ObjectPhrase, pose: Pose, window: tuple[slice, slice]
    ) -> Float32[np.ndarray, "height width 3"]:
        """Lit color of a part at each pixel of its box."""
        xs, ys = self.xs[window], self.ys[window]
        u, v = pose.local(xs, ys)
        if part.paint == "main" and self.own_colors is not None:
            color = self.own_colors[window]
        elif part.paint == "main":
            first, second = (
                np.array(COLORS[c], np.float32) for c in (item.colors[0], item.colors[-1])
            )
            weight = pattern_weights(item.pattern, u, v, pose.radius, pose.vertical)
            color = first + weight[..., None] * (second - first)
        else:
            color = np.broadcast_to(np.array(ACCENTS[part.paint], np.float32), (*u.shape, 3))
        toward = (xs - pose.x) * math.cos(self.light) + (ys - pose.y) * math.sin(self.light)
        lit: Plane = color * (1.0 + 0.16 * toward / pose.radius)[..., None]
        return lit.astype(np.float32)


def render(
    seed: int,
    num_objects: int | None = None,
    size: int = IMAGE_SIZE,
    change: Change | None = None,
) -> Scene:
    """Scene of a seed: the same seed and arguments give the same bytes.

    Args:
        seed: Take it from `TRAIN_SEEDS`, `TUNING_SEEDS` or `VALIDATION_SEEDS`.
        num_objects: 1 to 4, or None to draw it.
        size: Side, in pixels.
        change: Of the scene that the seed makes; None: that one.

    Raises:
        ValueError: If `num_objects` is not 1 to 4.
    """
    if num_objects is not None and num_objects not in RADIUS:
        raise ValueError(f"num_objects must be 1 to {max(RADIUS)} or None. Got {num_objects}.")
    rng = np.random.default_rng(seed)
    count = num_objects or _draw_count(rng)
    while True:
        scene = _attempt(seed, rng, count, size, change or Change())
        if scene is not None:
            return scene


def _attempt(
    seed: int, rng: np.random.Generator, count: int, size: int, change: Change
) -> Scene | None:
    """One layout, or None where an object is hidden too far."""
    background = str(rng.choice(list(BACKGROUNDS)))
    canvas = paint_background(background, size, rng)
    canvas += 5.0 * texture_bank(size)[rng.integers(len(texture_bank(size)))][..., None]
    painter = _Painter(canvas, rng, change.camouflaged)
    items = [_draw_phrase(rng, background) for _ in range(count)]
    poses = _draw_poses(rng, count, size)
    if change.arrange is not None:
        items, poses = change.arrange(items, poses)
    areas = [painter.add_object(items[i], poses[i], i + 1) for i in range(len(items))]
    visible = np.bincount(painter.instance.ravel(), minlength=len(items) + 1)[1:]
    if any(seen < change.min_visible * area for seen, area in zip(visible, areas, strict=True)):
        return None
    exposure = rng.uniform(0.88, 1.06)
    image = np.clip(painter.canvas * exposure + 0.5, 0, 255).astype(np.uint8)
    return Scene(
        seed,
        image,
        painter.semantic,
        painter.instance,
        painter.part,
        compose_caption(CaptionMeaning(tuple(items), background), rng),
        background,
        tuple(_describe(painter, item, i + 1) for i, item in enumerate(items)),
    )


def _describe(painter: _Painter, item: ObjectPhrase, instance: int) -> SceneObject:
    seen = set(np.unique(painter.part[painter.instance == instance]).tolist())
    parts = tuple(
        part
        for part in CLASS_PARTS[item.class_name]
        if PARTS.index((item.class_name, part)) + 1 in seen
    )
    return SceneObject(instance, item.class_name, item.colors, item.pattern, parts)
