"""What a card does on this machine, step by step, as a page that can be sent away.

Images are drawn twice from the same seeds in the same batches: by diffusers' pipeline with
nothing of ours attached, and with capture. They must be equal, bit for bit. A step that fails
says why and the others go on, but those that need what it would have made. The page is written
after every step: what was measured stands even where the system kills a process for its memory.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from jaxtyping import UInt8
from PIL import Image

from synthgen import __version__
from synthgen.config import AuditorConfig, Config
from synthgen.dataset.contact_sheet import sheet
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.cards import Card, find_card, load_cards
from synthgen.diffusion.generate import decode_image, generate, resolve_settings, text_to_image
from synthgen.diffusion.selection import Layer, attention_layers
from synthgen.drawing import magnify, overlay
from synthgen.jobs.plan import batches, plan
from synthgen.lab.doctor.agreement import compare_with_auditor
from synthgen.lab.doctor.batch_sizes import largest_batch, record_one_step, texts_of
from synthgen.lab.doctor.install import (
    Finding,
    examine_installation,
    installed_version,
    reason,
    shareable,
)
from synthgen.lab.tables import escape, markdown_table
from synthgen.registry import AUDITORS, is_plug_in, near_miss, resolve
from synthgen.segmentation.masks import id_map
from synthgen.segmentation.segment import segment_sample
from synthgen.types import Failure, PlannedSample, Sample, Segmentation

PAGE = "doctor.md"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "segment-anything")
HEADS = {
    "scenes": {"down": 28, "mid": 8, "up": 42},
    "sd21-base": {"down": 70, "mid": 20, "up": 105},
    "sd21": {"down": 70, "mid": 20, "up": 105},
    "sd15": {"down": 48, "mid": 8, "up": 72},
}
"""Heads by card and part of the UNet (BL table 1: 195 of SD 2.1)."""
SHEET_SIDE, SHEET_ROWS = 256, 8  # pixels per tile: a picture that can be sent
UNLIMITED_MB = 1e9  # captures are not refused here: how much fits is what is asked

Tell = Callable[[Finding], object]
Pixels = UInt8[np.ndarray, "_height _width 3"]
Value = TypeVar("Value")


def prepare(
    card: str, path: Path | None, config: Config, auditor: AuditorConfig | None, out: Path
) -> tuple[Card, Config]:
    """The card that is expected, and the configuration that is examined.

    Args:
        card: Row of ``cards.yaml``, local folder, or hub id.
        path: Folder of the card's weights; None: where the card says.
        config: Prompts, number of images, settings; its card is replaced.
        auditor: Who looks at the images; None: nobody.
        out: Folder of the page.

    Raises:
        ValueError: In one line, for what the user must correct.
    """
    known = load_cards().get(card) or find_card(card)[0]
    if path is not None and not path.is_dir():
        raise ValueError(f"--path must be a folder in diffusers' layout. Got {path}.")
    source = card if path is None else str(path.resolve())
    find_card(source)
    if auditor is not None:
        _check_auditor(auditor)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder. Got the file {out}.")
    model = config.model.model_copy(update={"card": source})
    capture = config.capture.model_copy(update={"memory_budget_mb": UNLIMITED_MB})
    config = config.model_copy(update={"model": model, "capture": capture})
    plan(config)
    return known, config


def _check_auditor(auditor: AuditorConfig) -> None:
    """Refuse an unknown auditor, and a checkpoint that is not there."""
    if not is_plug_in(auditor.name):
        resolve(auditor.name, AUDITORS, "auditor")
    given = auditor.checkpoint
    if given is None and auditor.name == "sam":
        raise ValueError("The auditor sam needs weights. Got none; give --checkpoint FILE.")
    if given is None or Path(given).expanduser().exists() or auditor.revision is not None:
        return
    near = sorted(path.name for path in Path(given).expanduser().parent.glob("*"))
    raise ValueError(
        f"--checkpoint must be an existing file or folder. Got {given}."
        f"{near_miss(Path(given).name, near)}"
    )


def examine(
    card: Card,
    config: Config,
    auditor: AuditorConfig | None,
    out: Path,
    tell: Tell,
    max_batch: int = 64,
) -> list[Finding]:
    """Look at the installation, try everything, and write the page; returns all findings.

    Args:
        card: What is expected.
        config: Model, prompts, settings; see ``prepare``.
        auditor: Who says what is in the images; None: nobody.
        out: Folder of the page; made if it is missing.
        tell: Called with each finding.
        max_batch: Largest batch that is tried.
    """
    out.mkdir(parents=True, exist_ok=True)
    installation = examine_installation(out)
    found: list[Finding] = []
    facts = _facts(config, None)

    def step(name: str, do: Callable[[], tuple[Value, Finding]], *needs: object) -> Value | None:
        """What a step made; None where it failed, or a step failed that it needs."""
        started, made = time.perf_counter(), None
        try:
            finding = Finding("needs what failed before", "not run")
            if all(need is not None for need in needs):
                made, finding = do()
        except Exception as error:  # whatever it is, the other steps go on
            finding = Finding(reason(error), "failed")
        found.append(replace(finding, name=name, seconds=time.perf_counter() - started))
        (out / PAGE).write_text(_page(card, facts, installation, found), encoding="utf-8")
        tell(found[-1])
        return made

    samples = tuple(sample for spec in plan(config) for sample in spec.samples)
    model: Any = step("load", lambda: _load(card, config))
    if model is not None:
        facts = _facts(config, model)
    step("hashes", lambda: (True, check_hashes(model)), model)
    step("heads and grids", lambda: (True, count_heads(card, model, config, samples)), model)
    size = step("batch sizes", lambda: largest_batch(model, config, samples, max_batch), model)
    groups = list(batches(samples, min(size or 1, config.generation.batch_size)))
    plain = step("images", lambda: draw_plain(model, config, groups), model)
    captured: Any = step("capture", lambda: draw_captured(model, config, groups, plain), model)
    masks: Any = step("masks", lambda: segment_all(config, captured), captured)
    step("contact sheet", lambda: (True, draw_sheet(out, captured, masks)), masks)
    if auditor is not None:
        seen = (auditor, model, config, captured, masks)
        step("Top-n", lambda: (True, compare_with_auditor(*seen)), masks)
    return [*installation, *found]


def _load(card: Card, config: Config) -> tuple[Backbone, Finding]:
    """The model; a local folder may hold any card's weights, and stands for it then."""
    model = load_backbone(config.model)
    if model.card.name == "local" and card.name != "local":
        hashes = {**card.sha256, **model.card.sha256}
        model = replace(model, card=card.model_copy(update={"sha256": hashes}))
    dtype = str(model.dtype).removeprefix("torch.")
    return model, Finding(f"{model.card.name} on {model.device} in {dtype}")


def check_hashes(model: Backbone) -> Finding:
    """The sha256 of every weight file against the first digits that the card names."""
    found = {name: str(sha) for name, sha in model.identity["sha256"].items()}
    known = {n: digits for n, digits in model.card.sha256.items() if n.endswith(".safetensors")}
    differ = [name for name in known if not found.get(name, "").startswith(known[name])]
    rows = [("file", "sha256", "card")]
    for name, sha in found.items():
        verdict = f"differs ({known[name]}…)" if name in differ else "equal"
        rows.append((name, sha, verdict if name in known else "–"))
    wrong = [name for name in differ if name in found or "/" in name]
    if wrong:
        first = wrong[0]
        text = f"{first} must have sha256 {known[first]}…, got {str(found.get(first))[:12]}…"
        text = f"{len(wrong)} of {len(known)} files differ: {text}"
        return Finding(text, "failed", tuple(rows))
    said = "as the card says" if known else "hashed; the card names nothing to compare"
    return Finding(f"{len(found)} files, {said}", table=tuple(rows))


def count_heads(
    card: Card, model: Backbone, config: Config, samples: Sequence[PlannedSample]
) -> Finding:
    """Heads and grids of one real capture of every layer, against what the card must give."""
    (features,) = record_one_step(model, config, samples[:1], "all")[0].features()
    settings = resolve_settings(model, config.generation)
    size = (settings.height, settings.width)
    layers = attention_layers(model.pipeline.unet, model.latent_size(*size))
    groups: dict[tuple[str, str], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.name.split("_")[0], "{} × {}".format(*layer.grid)].append(layer)
    heads: Counter[str] = Counter()
    rows = [("part", "grid", "layers", "heads", "features per head")]
    for (part, grid), own in groups.items():
        count, dims = sum(layer.heads for layer in own), {str(layer.dim) for layer in own}
        heads[part] += count
        rows.append((part, grid, str(len(own)), str(count), ", ".join(sorted(dims))))
    parts = ", ".join(f"{count} {part}" for part, count in heads.items())
    text = f"{heads.total()} heads ({parts}) in {len(layers)} layers"
    text += f"; {features.num_bytes / 1e6:.1f} MB"
    expected = HEADS.get(card.name) if size == model.native_size else None
    sound = all(bool(value.isfinite().all()) for value in features.values.values()) and all(
        features.values[x.name].shape[0] == x.heads and features.grids[x.name] == x.grid
        for x in layers
    )
    if expected is not None and heads != expected:
        text += f"; {sum(expected.values())} must be there"
    elif not sound:
        text += "; captures must be finite and of every layer"
    else:
        return Finding(f"{text}{', as expected' if expected else ''}", table=tuple(rows))
    return Finding(text, "failed", tuple(rows))


def draw_plain(
    model: Backbone, config: Config, groups: Sequence[Sequence[PlannedSample]]
) -> tuple[list[Pixels | None], Finding]:
    """All images by diffusers' pipeline alone; None in place of one that is not finite."""
    settings = resolve_settings(model, config.generation)
    images: list[Pixels | None] = []
    started = time.perf_counter()
    for batch in groups:
        texts, seeds = texts_of(config, batch), [sample.seed for sample in batch]
        with model.lock, torch.no_grad():
            run = text_to_image(model, texts, seeds, settings, config.generation.negative_prompt)
            images += [decode_image(model, row) for row in run.run().chunk(len(batch))]
    rate = _rate(len(images), started)
    if failed := sum(image is None for image in images):
        return images, Finding(f"{failed} of {len(images)} images are not finite", "failed")
    return images, Finding(f"{rate} without capture, batches of {len(groups[0])}")


def draw_captured(
    model: Backbone,
    config: Config,
    groups: Sequence[Sequence[PlannedSample]],
    plain: Sequence[Pixels | None] | None,
) -> tuple[list[Sample], Finding]:
    """The same images with capture, compared with those drawn without."""
    results: list[Sample | Failure] = []
    started = time.perf_counter()
    for batch in groups:
        prompts, seeds = [sample.prompt for sample in batch], [sample.seed for sample in batch]
        results += generate(model, prompts, seeds, config.generation, config.capture)
    rate = _rate(len(results), started)
    captured = [result for result in results if isinstance(result, Sample)]
    if not captured:
        first = next(result for result in results if isinstance(result, Failure))
        raise RuntimeError(f"no image could be used: {first.reason}, {first.message}")
    if plain is None:
        return captured, Finding(f"{rate} with capture; nothing to compare with", "failed")
    equal = sum(map(_is_equal, plain, results))
    text = f"{equal} of {len(results)} images bit-identical with and without capture; {rate}"
    return captured, Finding(text, "ok" if equal == len(results) else "failed")


def _is_equal(image: Pixels | None, result: Sample | Failure) -> bool:
    """Whether both ways gave one image, or none in the same way."""
    if isinstance(result, Failure):
        return image is None or bool(image.min() == image.max())
    return image is not None and bool(np.array_equal(image, result.image))


def segment_all(config: Config, captured: Sequence[Sample]) -> tuple[list[Segmentation], Finding]:
    """Masks of every image."""
    started = time.perf_counter()
    found = [segment_sample(sample, config.segmentation) for sample in captured]
    rate = _rate(len(found), started)
    count = np.mean([len(segmentation.mask_set) for segmentation in found])
    return found, Finding(f"{rate} for the masks alone, {count:.0f} masks per image")


def draw_sheet(out: Path, captured: Sequence[Sample], found: Sequence[Segmentation]) -> Finding:
    """The contact sheet: image, clusters at each k, hierarchy."""
    rows = [
        (sample.prompt.text[:120], "", _tiles(sample, segmentation))
        for sample, segmentation in zip(captured[:SHEET_ROWS], found, strict=False)
    ]
    header = ["image", *(f"k = {k}" for k in found[0].ks), "merged hierarchy"]
    path = out / "contact-sheet.png"
    sheet(rows, header).save(path)
    return Finding(f"{path.name}, {len(rows)} images", picture=path.name)


def _tiles(sample: Sample, found: Segmentation) -> list[Pixels]:
    full = [
        magnify(sample.image),
        *(overlay(sample.image, labels) for labels in found.labels),
        overlay(sample.image, id_map(found.mask_set)),
    ]
    scale = SHEET_SIDE / min(full[0].shape[:2])
    size = (round(full[0].shape[1] * scale), round(full[0].shape[0] * scale))
    return [np.array(Image.fromarray(tile).resize(size, Image.Resampling.BOX)) for tile in full]


def _rate(num: int, started: float) -> str:
    return f"{num / (time.perf_counter() - started):.3f} images/s"


# --- the page ---------------------------------------------------------------------------------


def _page(
    card: Card,
    facts: dict[str, str],
    installation: Sequence[Finding],
    found: Sequence[Finding],
) -> str:
    """What was found so far, in Markdown: no secrets; paths only in errors."""
    bad = sum(f.status != "ok" for f in found) + sum(f.status == "failed" for f in installation)
    steps = [(f.name, f.status, f.text, f"{f.seconds:.1f}") for f in found]
    parts = [
        f"# synthgen doctor: {card.name}",
        f"{bad} of the lines below need attention." if bad else "All is well.",
        "\n".join(f"- {name}: {escape(shareable(value))}" for name, value in facts.items()),
        "## Steps",
        _table([("step", "", "result", "seconds"), *steps]),
    ]
    for finding in found:
        shown = [f"![{finding.text}]({finding.picture})"] if finding.picture else []
        shown += [_table(finding.table)] if finding.table else []
        shown += [finding.note] if finding.note else []
        parts += [f"## {finding.name}", *shown] if shown else []
    parts += ["## Installation"]
    parts += [_table([("", "", ""), *((f.name, f.status, f.text) for f in installation)])]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *others = ([escape(cell) for cell in row] for row in rows)
    return markdown_table(header, others)


def _facts(config: Config, model: Backbone | None) -> dict[str, str]:
    """What must be known to read the figures; no name of the machine."""
    free = psutil.virtual_memory().available / 1e9
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    machine += f", {free:.0f} GB of memory free"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        machine += f"; {gpu.name}, {gpu.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"
    versions = ", ".join(f"{name} {installed_version(name)}" for name in PACKAGES)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "synthgen": f"{__version__} on Python {platform.python_version()}; {versions}",
        "machine": machine,
    }
    if model is None:
        return facts
    settings = resolve_settings(model, config.generation)
    scheduler = settings.scheduler or type(model.pipeline.scheduler).__name__
    ks = ", ".join(map(str, config.segmentation.clusters.ks))
    layers = config.capture.layers or model.card.capture_layers
    return facts | {
        "model": f"{model.card.name}, {model.identity['revision'] or 'no revision'}, "
        f"{model.device}, {str(model.dtype).removeprefix('torch.')}",
        "images": f"{config.planned} from prompts {Path(config.prompts).name!r}, "
        f"{settings.height} × {settings.width} px, {settings.num_inference_steps} steps, "
        f"guidance {settings.guidance_scale:g}, scheduler {scheduler}",
        "masks": f"layers {layers if isinstance(layers, str) else ', '.join(layers)}, "
        f"{config.segmentation.features.components} components, k = {ks}",
    }
