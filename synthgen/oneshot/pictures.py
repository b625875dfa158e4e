"""Pictures of parts: examples, what is found in images, the map of each class, the losses."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from synthgen.drawing import BACKGROUND, IGNORE, class_colors, magnify, png, tint_classes

Pixels = UInt8[np.ndarray, "_height _width 3"]
Labels = UInt8[np.ndarray, "_height _width"]
Maps = Float[np.ndarray, "_cls _height _width"]

_MOST_MAPS = 8
"""Class maps that are drawn beside an image; 76 would be too small to see."""


def draw_parts(
    names: Sequence[str],
    rows: Sequence[tuple[str, Pixels, Labels, Maps | None]],
) -> bytes:
    """A PNG with a row for each image: pixels, classes, maps of the first classes.

    Args:
        names: Of the parts.
        rows: Title, image, classes and class maps of each; maps share one scale per row.
    """
    num_maps = min(_MOST_MAPS, 1 + len(names)) if any(row[3] is not None for row in rows) else 0
    columns = 2 + num_maps
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for own, (title, pixels, semantic, maps) in zip(axes, rows, strict=True):
        for each in own:
            each.set_axis_off()
        own[0].imshow(magnify(pixels), interpolation="nearest")
        own[0].set_title(title, fontsize=7)
        own[1].imshow(tint_classes(pixels, semantic), interpolation="nearest")
        if maps is None:
            continue
        for place, name in enumerate(("background", *names)[:num_maps]):
            own[2 + place].imshow(maps[place], vmin=0, vmax=max(1e-9, float(maps.max())))
            own[2 + place].set_title(name[:24], fontsize=7)
    colors = class_colors()
    legend = [(number, name) for number, name in enumerate(names, start=1)]
    handles = [Patch(color=tuple(colors[number]), label=name) for number, name in legend]
    if any((row[2] == IGNORE).any() for row in rows):
        handles.append(Patch(color=tuple(colors[IGNORE]), label="not annotated"))
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=7, frameon=False)
    return png(figure)


def draw_losses(losses: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of the terms of eq. 8 over the epochs and, where it was measured, the validation."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    labels = {"ce": "cross entropy (eq. 4)", "mse": "WAS (eq. 7)", "ldm": "denoising"}
    for name, label in {"loss": "loss (eq. 8)", **labels}.items():
        axes.plot(range(1, 1 + len(losses)), [row[name] for row in losses], label=label, lw=1)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    seen = [(i, row["validation"]) for i, row in enumerate(losses, 1) if "validation" in row]
    if seen:
        other = axes.twinx()
        other.plot(*zip(*seen, strict=True), "k.-", lw=1, label="validation mIoU")
        other.set_ylim(0, 1)
        other.legend(loc="lower left", fontsize=7, frameon=False)
    axes.legend(loc="upper right", fontsize=7, frameon=False)
    return png(figure)


def color_png(semantic: Labels) -> bytes:
    """Classes as a palette PNG in the colors of every picture here; `legend_of` names them."""
    image = Image.fromarray(semantic)
    colors = (class_colors() * 255).round().astype(np.uint8)
    colors[BACKGROUND] = 0
    image.putpalette(colors.tobytes())
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def legend_of(names: Sequence[str]) -> dict[str, str]:
    """The colors of `color_png` by name, as ``--classes`` reads them."""
    colors = (class_colors() * 255).round().astype(int).tolist()
    colors[BACKGROUND] = [0, 0, 0]
    every = {"background": BACKGROUND, **{n: i for i, n in enumerate(names, 1)}, "ignore": IGNORE}
    return {name: "#" + "".join(f"{c:02x}" for c in colors[i]) for name, i in every.items()}
