"""The steps of an examination: load a card, count its heads, draw, compare, segment, judge.

Images are drawn twice from the same seeds in the same batches: by diffusers' pipeline with
nothing of ours attached, and with capture. They must be equal, bit for bit.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from synthgen.dataset.contact_sheet import sheet
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.generate import (
    decode_image,
    generate,
    resolve_settings,
    text_to_image,
)
from synthgen.diffusion.selection import Layer, attention_layers
from synthgen.drawing import magnify, overlay
from synthgen.lab.doctor.agreement import compare_with_auditor
from synthgen.lab.doctor.install import Finding, examine_installation
from synthgen.lab.doctor.machine import Examination, Step, run_steps
from synthgen.lab.doctor.page import write_page
from synthgen.lab.doctor.probe import probe_batches, record_one_step, texts_of
from synthgen.progress import report
from synthgen.segmentation.masks import id_map
from synthgen.segmentation.segment import segment_sample
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


def examine(examination: Examination) -> tuple[list[Finding], list[Finding], Path]:
    """Look at the installation, run every step, write the page.

    Returns:
        What was found of the installation and by the steps, and the page.
    """
    steps = STEPS if examination.auditor is not None else STEPS[:-1]
    installation = examine_installation(examination.out)

    def show(done: Sequence[Finding]) -> Path:
        return write_page(examination, installation, done, len(steps))

    done = run_steps(examination, steps, show)
    return installation, done, show(done)


def load(examination: Examination) -> Finding:
    """Load the weights; hub weights are checked against the card before they are read.

    A local folder may hold any card's weights: they stand under the card that is examined.
    """
    found, card = load_backbone(examination.config.model), examination.card
    if found.card.name == "local" and card.name != "local":
        hashes = {**card.sha256, **found.card.sha256}
        found = replace(found, card=card.model_copy(update={"sha256": hashes}))
    examination.backbone = found
    dtype = str(found.dtype).removeprefix("torch.")
    return Finding(f"{found.card.name} on {found.device} in {dtype}")


def check_hashes(examination: Examination) -> Finding:
    """The sha256 of every weight file against the first digits that the card names."""
    found = {name: str(sha) for name, sha in examination.model.identity["sha256"].items()}
    weights = {
        name: digits
        for name, digits in examination.model.card.sha256.items()
        if name.endswith(".safetensors")
    }
    differ = [name for name in weights if not found.get(name, "").startswith(weights[name])]
    wrong = [name for name in differ if name in found or "/" in name]
    rows = [("file", "sha256", "card")]
    for name, sha in found.items():
        verdict = f"differs ({weights[name]}…)" if name in differ else "equal"
        rows.append((name, sha, verdict if name in weights else "–"))
    if wrong:
        first = wrong[0]
        text = f"{first} must have sha256 {weights[first]}…, got {str(found.get(first))[:12]}…"
        text = f"{len(wrong)} of {len(weights)} files differ: {text}"
        return Finding(text, "failed", tuple(rows))
    text = (
        f"{len(found)} files, as the card says"
        if weights
        else f"{len(found)} files hashed; the card names nothing to compare"
    )
    return Finding(text, table=tuple(rows))


def count_heads(examination: Examination) -> Finding:
    """Heads and grids of one real capture of every layer, against what the card must give."""
    backbone = examination.model
    recording = record_one_step(examination, examination.samples[:1], "all")[0]
    (features,) = recording.features()
    settings = resolve_settings(backbone, examination.config.generation)
    size = (settings.height, settings.width)
    layers = attention_layers(backbone.pipeline.unet, backbone.latent_size(*size))
    groups: dict[tuple[str, tuple[int, int]], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.name.split("_")[0], layer.grid].append(layer)
    counted: dict[str, dict[int, int]] = defaultdict(dict)
    rows = [("part", "grid", "layers", "heads", "features per head")]
    for (part, grid), own in groups.items():
        counted[part][min(grid)] = heads = sum(layer.heads for layer in own)
        dims = ", ".join(sorted({str(layer.dim) for layer in own}))
        rows.append((part, f"{grid[0]} × {grid[1]}", str(len(own)), str(heads), dims))
    parts = ", ".join(f"{sum(grids.values())} {part}" for part, grids in counted.items())
    text = (
        f"{sum(layer.heads for layer in layers)} heads ({parts}) in {len(layers)} layers; "
        f"{features.num_bytes / 1e6:.1f} MB"
    )
    expected = EXPECTED.get(examination.card.name) if size == backbone.native_size else None
    sound = all(bool(value.isfinite().all()) for value in features.values.values()) and all(
        features.values[x.name].shape[0] == x.heads and features.grids[x.name] == x.grid
        for x in layers
    )
    if expected is not None and counted != expected:
        wanted = sum(sum(grids.values()) for grids in expected.values())
        text = f"{text}; {wanted} on the card's grids must be there"
    elif not sound:
        text = f"{text}; captures must be finite and of every layer"
    else:
        return Finding(f"{text}{', as expected' if expected else ''}", table=tuple(rows))
    return Finding(text, "failed", tuple(rows))


def draw_plain(examination: Examination) -> Finding:
    """All images by diffusers' pipeline alone."""
    backbone, generation = examination.model, examination.config.generation
    settings = resolve_settings(backbone, generation)
    started = time.perf_counter()
    examination.plain.clear()
    for batch in examination.batches():
        texts, seeds = texts_of(examination, batch), [sample.seed for sample in batch]
        with backbone.lock, torch.no_grad():
            run = text_to_image(backbone, texts, seeds, settings, generation.negative_prompt)
            latents = run.run().chunk(len(batch))
            examination.plain += [decode_image(backbone, row) for row in latents]
        report("samples", count=len(batch))
    examination.seconds["drawn"] = time.perf_counter() - started
    failed = sum(image is None for image in examination.plain)
    if failed:
        return Finding(f"{failed} of {len(examination.plain)} images are not finite", "failed")
    rate = _rate(examination, "drawn")
    return Finding(f"{rate} without capture, batches of {examination.batch}")


def draw_captured(examination: Examination) -> Finding:
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
    if not examination.captured:
        first = next(result for result in results if isinstance(result, Failure))
        raise RuntimeError(f"no image could be used: {first.reason}, {first.message}")
    rate = _rate(examination, "captured")
    if not examination.plain:
        return Finding(f"{rate} with capture; nothing to compare with", "failed")
    pairs = zip(examination.plain, results, strict=True)
    equal = sum(_is_equal(image, result) for image, result in pairs)
    text = f"{equal} of {len(results)} images bit-identical with and without capture; {rate}"
    return Finding(text, "ok" if equal == len(results) else "failed")


def _is_equal(
    image: UInt8[np.ndarray, "_height _width 3"] | None, result: Sample | Failure
) -> bool:
    """Whether both ways gave one image, or none in the same way."""
    if isinstance(result, Failure):
        return image is None or bool(image.min() == image.max())
    return image is not None and bool(np.array_equal(image, result.image))


def segment_all(examination: Examination) -> Finding:
    """Masks of every image; images per second with and without."""
    started = time.perf_counter()
    examination.segmentations.clear()
    for sample in examination.captured:
        examination.segmentations.append(segment_sample(sample, examination.config.segmentation))
        report("samples", count=1)
    seconds, num = examination.seconds, len(examination.samples)
    seconds["masks"] = seconds["captured"] + time.perf_counter() - started
    stages = {
        "drawn by diffusers alone": seconds.get("drawn"),
        "drawn with capture": seconds["captured"],
        "with capture and masks": seconds["masks"],
    }
    rows = [("images", "seconds per image", "images/s")]
    rows += [(name, f"{s / num:.2f}", f"{num / s:.3f}") for name, s in stages.items() if s]
    counts = [len(found.mask_set) for found in examination.segmentations]
    text = f"{_rate(examination, 'masks')} with masks, {np.mean(counts):.0f} masks per image"
    return Finding(text, table=tuple(rows))


def draw_sheet(examination: Examination) -> Finding:
    """The contact sheet: image, clusters at each k, hierarchy."""
    pairs = list(zip(examination.captured, examination.segmentations, strict=True))[:SHEET_ROWS]
    rows = [(sample.prompt.text[:120], "", _tiles(sample, found)) for sample, found in pairs]
    header = ["image", *(f"k = {k}" for k in pairs[0][1].ks), "merged hierarchy"]
    path = examination.out / "contact-sheet.png"
    sheet(rows, header).save(path)
    return Finding(f"{path.name}, {len(rows)} images", picture=path.name)


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


STEPS: tuple[Step, ...] = (
    ("load", load, ()),
    ("hashes", check_hashes, ("load",)),
    ("heads and grids", count_heads, ("load",)),
    ("batch sizes", probe_batches, ("load",)),
    ("images", draw_plain, ("load",)),
    ("capture", draw_captured, ("load",)),
    ("masks", segment_all, ("capture",)),
    ("contact sheet", draw_sheet, ("masks",)),
    ("Top-n", compare_with_auditor, ("masks",)),  # where there is an auditor
)
