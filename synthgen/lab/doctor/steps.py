"""The steps that load a card, count its heads, draw, compare and segment.

Images are drawn twice from the same seeds in the same batches: by diffusers' pipeline with
nothing of ours attached, and with capture. They must be equal, bit for bit.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from synthgen.dataset.contact_sheet import sheet
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.generate import (
    decode_image,
    generate,
    settle,
    text_to_image,
)
from synthgen.diffusion.selection import Layer, attention_layers
from synthgen.drawing import magnify, overlay
from synthgen.lab.doctor.findings import Outcome, Table
from synthgen.lab.doctor.machine import Examination, with_card
from synthgen.lab.doctor.probe import record_one_step, texts_of
from synthgen.progress import report
from synthgen.segmentation.masks import id_map
from synthgen.segmentation.segment import segment
from synthgen.types import Failure, Sample, Segmentation

EXPECTED: Mapping[str, Mapping[str, Mapping[int, int]]] = {
    "scenes": {
        "down": {32: 4, 16: 8, 8: 16},
        "mid": {4: 8},
        "up": {32: 6, 16: 12, 8: 24},
    },
    "sd21-base": {
        "down": {64: 10, 32: 20, 16: 40},
        "mid": {8: 20},
        "up": {64: 15, 32: 30, 16: 60},
    },
    "sd21": {
        "down": {96: 10, 48: 20, 24: 40},
        "mid": {12: 20},
        "up": {96: 15, 48: 30, 24: 60},
    },
    "sd15": {
        "down": {64: 16, 32: 16, 16: 16},
        "mid": {8: 8},
        "up": {64: 24, 32: 24, 16: 24},
    },
}
"""Heads by card, part of the UNet and shorter side of the grid, at the native size (BL: 195)."""

SHEET_SIDE, SHEET_ROWS = 256, 8  # pixels per tile: a picture that can be sent


def load(examination: Examination) -> Outcome:
    """Load the weights; hub weights are checked against the card before they are read."""
    found = load_backbone(examination.config.model)
    examination.backbone = with_card(found, examination.card)
    dtype = str(found.dtype).removeprefix("torch.")
    return Outcome(f"{examination.model.card.name} on {found.device} in {dtype}")


def check_hashes(examination: Examination) -> Outcome:
    """The sha256 of every weight file against the first digits that the card names."""
    found = examination.model.identity["sha256"]
    expected = examination.model.card.sha256
    weights = {n: digits for n, digits in expected.items() if n.endswith(".safetensors")}
    others = [n for n in weights if not str(found.get(n, "")).startswith(weights[n])]
    wrong = [n for n in others if n in found or "/" in n]
    rows = tuple(
        (name, str(sha), _verdict(weights.get(name), str(sha))) for name, sha in found.items()
    )
    table = Table(("file", "sha256", "card"), rows)
    if wrong:
        first = wrong[0]
        text = f"{first} must have sha256 {weights[first]}…, got {str(found.get(first))[:12]}…"
        return Outcome(f"{len(wrong)} of {len(weights)} files differ: {text}", False, table)
    if not weights:
        return Outcome(
            f"{len(found)} files hashed; the card names nothing to compare", True, table
        )
    return Outcome(f"{len(found)} files, as the card says", True, table)


def _verdict(expected: str | None, found: str) -> str:
    if expected is None:
        return "–"
    return "equal" if found.startswith(expected) else f"differs ({expected}…)"


def count_heads(examination: Examination) -> Outcome:
    """Heads and grids of one real capture of every layer, against what the card must give."""
    backbone = examination.model
    recording = record_one_step(examination, examination.samples[:1], "all")[0]
    (features,) = recording.features()
    settings = settle(backbone, examination.config.generation)
    size = (settings.height, settings.width)
    layers = attention_layers(backbone.pipeline.unet, backbone.latent_size(*size))
    counted = heads_by_grid(layers)
    expected = EXPECTED.get(examination.card.name) if size == backbone.native_size else None
    finite = all(bool(torch.isfinite(value).all()) for value in features.values.values())
    same = all(
        features.values[x.name].shape[0] == x.heads and features.grids[x.name] == x.grid
        for x in layers
    )
    total = sum(layer.heads for layer in layers)
    parts = ", ".join(f"{sum(g.values())} {part}" for part, g in counted.items())
    text = f"{total} heads ({parts}) in {len(layers)} layers; {features.num_bytes / 1e6:.1f} MB"
    table = Table(("part", "grid", "layers", "heads", "features per head"), _head_rows(layers))
    if expected is not None and counted != expected:
        wanted = sum(sum(grids.values()) for grids in expected.values())
        return Outcome(f"{text}; {wanted} on the card's grids must be there", False, table)
    if not (finite and same):
        return Outcome(f"{text}; captures must be finite and of every layer", False, table)
    return Outcome(f"{text}{', as expected' if expected else ''}", True, table)


def heads_by_grid(layers: Sequence[Layer]) -> dict[str, dict[int, int]]:
    """Part of the UNet (down, mid, up) to shorter side of the grid to number of heads.

    >>> layers = [Layer("up_blocks.1.attn1", 5, 64, (8, 8)), Layer("mid_block.a", 2, 4, (4, 6))]
    >>> heads_by_grid(layers)
    {'up': {8: 5}, 'mid': {4: 2}}
    """
    counted: dict[str, dict[int, int]] = {}
    for layer in layers:
        grids = counted.setdefault(layer.name.split("_")[0], {})
        grids[min(layer.grid)] = grids.get(min(layer.grid), 0) + layer.heads
    return counted


def _head_rows(layers: Sequence[Layer]) -> tuple[tuple[str, ...], ...]:
    groups: dict[tuple[str, tuple[int, int]], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.name.split("_")[0], layer.grid].append(layer)
    return tuple(
        (
            part,
            f"{grid[0]} × {grid[1]}",
            str(len(found)),
            str(sum(layer.heads for layer in found)),
            ", ".join(sorted({str(layer.dim) for layer in found})),
        )
        for (part, grid), found in groups.items()
    )


def draw_plain(examination: Examination) -> Outcome:
    """All images by diffusers' pipeline alone."""
    backbone, config = examination.model, examination.config
    settings = settle(backbone, config.generation)
    started = time.perf_counter()
    examination.plain.clear()
    for batch in examination.batches():
        texts, seeds = texts_of(examination, batch), [sample.seed for sample in batch]
        with backbone.lock, torch.no_grad():
            run = text_to_image(
                backbone, texts, seeds, settings, config.generation.negative_prompt
            )
            latents = run.run()
            examination.plain += [decode_image(backbone, row) for row in latents.chunk(len(batch))]
        report("samples", count=len(batch))
    examination.seconds["drawn"] = time.perf_counter() - started
    failed = sum(image is None for image in examination.plain)
    if failed:
        return Outcome(f"{failed} of {len(examination.plain)} images are not finite", ok=False)
    return Outcome(
        f"{_rate(examination, 'drawn')} without capture, batches of {examination.batch}"
    )


def draw_captured(examination: Examination) -> Outcome:
    """The same images with capture, compared with those drawn without."""
    config = examination.config
    started = time.perf_counter()
    results: list[Sample | Failure] = []
    for batch in examination.batches():
        prompts, seeds = [sample.prompt for sample in batch], [sample.seed for sample in batch]
        results += generate(examination.model, prompts, seeds, config.generation, config.capture)
        report("samples", count=len(batch))
    examination.seconds["captured"] = time.perf_counter() - started
    examination.captured = [result for result in results if isinstance(result, Sample)]
    for result in results:
        if isinstance(result, Failure) and not examination.captured:
            raise RuntimeError(f"no image could be used: {result.reason}, {result.message}")
    rate = _rate(examination, "captured")
    if not examination.plain:
        return Outcome(f"{rate} with capture; nothing to compare with", ok=False)
    pairs = zip(examination.plain, results, strict=True)
    equal = sum(_is_equal(image, result) for image, result in pairs)
    text = f"{equal} of {len(results)} images bit-identical with and without capture; {rate}"
    return Outcome(text, equal == len(results))


def _is_equal(
    image: UInt8[np.ndarray, "_height _width 3"] | None, result: Sample | Failure
) -> bool:
    """Whether both ways gave one image, or none in the same way."""
    if isinstance(result, Failure):
        return image is None or bool(image.min() == image.max())
    return image is not None and bool(np.array_equal(image, result.image))


def segment_all(examination: Examination) -> Outcome:
    """Masks of every image; images per second with and without."""
    started = time.perf_counter()
    examination.segmentations.clear()
    for sample in examination.captured:
        examination.segmentations.append(segment(sample, examination.config.segmentation))
        report("samples", count=1)
    examination.seconds["masks"] = time.perf_counter() - started
    seconds, num = examination.seconds, len(examination.samples)
    stages = {
        "drawn by diffusers alone": seconds.get("drawn"),
        "drawn with capture": seconds["captured"],
        "with capture and masks": seconds["captured"] + seconds["masks"],
    }
    rows = tuple(
        (name, f"{spent / num:.2f}", f"{num / spent:.3f}")
        for name, spent in stages.items()
        if spent
    )
    counts = [len(found.mask_set) for found in examination.segmentations]
    rate = num / (seconds["captured"] + seconds["masks"])
    text = f"{rate:.3f} images/s with masks, {np.mean(counts):.0f} masks per image"
    return Outcome(text, True, Table(("images", "seconds per image", "images/s"), rows))


def draw_sheet(examination: Examination) -> Outcome:
    """The contact sheet: image, clusters at each k, hierarchy."""
    pairs = list(zip(examination.captured, examination.segmentations, strict=True))[:SHEET_ROWS]
    rows = [(sample.prompt.text[:120], "", _tiles(sample, found)) for sample, found in pairs]
    header = ["image", *(f"k = {k}" for k in pairs[0][1].ks), "merged hierarchy"]
    path = examination.out / "contact-sheet.png"
    sheet(rows, header).save(path)
    text = f"{path.name}, {len(rows)} images"
    return Outcome(text, picture=path.name)


def _tiles(sample: Sample, found: Segmentation) -> list[UInt8[np.ndarray, "_height _width 3"]]:
    full = [
        magnify(sample.image),
        *(overlay(sample.image, labels) for labels in found.labels),
        overlay(sample.image, id_map(found.mask_set)),
    ]
    scale = SHEET_SIDE / min(full[0].shape[:2])
    size = (round(full[0].shape[1] * scale), round(full[0].shape[0] * scale))
    return [np.array(Image.fromarray(tile).resize(size, Image.Resampling.BOX)) for tile in full]


def _rate(examination: Examination, name: str) -> str:
    return f"{len(examination.samples) / examination.seconds[name]:.3f} images/s"
