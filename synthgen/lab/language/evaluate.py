"""Classes by their names against annotated images: LS's methods in one table, image by image.

Images are resized as a whole for each model; what is compared is in `scores`. What several methods
need (GEM, the UNet's look, clusters) is made once per image and charged to each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, field_validator
from torch import Tensor

from synthgen.config import (
    CaptureConfig,
    GenerationConfig,
    LabelConfig,
    ModelConfig,
    SegmentationConfig,
)
from synthgen.config.settings import SEGMENT_SELF_MAP, Section
from synthgen.devices import pick_device
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.invert import invert_any
from synthgen.embedded.card import read_card
from synthgen.embedded.clip import Clip, clip_weights_dir
from synthgen.lab.language.gem import TEMPLATE, gem
from synthgen.lab.language.methods import (
    REST,
    TRUTH,
    Method,
    attention_to,
    class_prompts,
    classify,
    heat_rows,
    mean_self_map,
    read_method,
)
from synthgen.lab.language.scores import (
    PUBLISHED,
    SIZE,
    counts_of,
    language_table,
    resized,
    summarize,
)
from synthgen.lab.memory import peak_bytes, reset_peak
from synthgen.lab.segment.layouts import Annotated, Layout, Truth, merged, open_layout
from synthgen.lab.segment.rows import (
    bars,
    measure_images,
    publish_tables,
    read_annotated,
    seed_of,
)
from synthgen.prompts.mentions import spoken
from synthgen.segmentation.segment import segment_sample
from synthgen.storage.publish import Storage, open_storage
from synthgen.types import Failure, Prompt, Sample

SCENES_CLIP = "scenes-clip"


class LanguageSettings(Section):
    """What `evaluate_language` measures."""

    data: str = Field(
        "scenes",
        description="scenes, scenes-tuning, voc, context, ade, cityscapes, cityscapes-27, coco, "
        "cocostuff, cocostuff-171 (171 names, compared as 27 classes), or folder.",
    )
    root: Path | None = Field(None, description="Folder of the data set, as it was published.")
    split: str = "val"
    num: int = Field(200, ge=1, description="Images, the first so many.")
    methods: tuple[str, ...] = Field(
        (
            *("GEM", "AggGEM", "DiffSegClust", "SpecClust", "HeadClust", "GTClust", "AggSD"),
            *("GEMW", "AggGEMW", "DiffSegClustW", "SpecClustW", "HeadClustW", "GTClustW"),
        ),
        description="GEM, AggGEM, DiffSegClust, SpecClust, HeadClust, GTClust, AggSD; W: the "
        "image's classes are known; 'clusters:NAME' of a segmenter.",
    )
    clip: str = Field(SCENES_CLIP, description="scenes-clip, or the local folder of a CLIP.")
    template: str = Field(TEMPLATE, description="Text of a class for CLIP; {} is its name.")
    side: int | None = Field(
        None, ge=8, description="Pixels that CLIP sees; null: its card's, or twice those it knows."
    )
    blocks: int | None = Field(
        None, ge=1, description="GEM's, the last; null: its card's, or half of the tower."
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="Of GEM's softmax; null: the card's, or .1 with a background, .01 without.",
    )
    rest: float | None = Field(
        None, description="What GEM's background lacks of what no class has; null: the card's, .8."
    )
    background: tuple[str, ...] | None = Field(
        None,
        description="Texts that stand for GEM's background in place of rest; null: the card's.",
    )
    lead: float | None = Field(
        None, description="What their cosines are raised by; null: the card's, or 0."
    )
    opening: str = Field("a photo of ", description="Of the diffusion model's prompt ...")
    joint: str = Field(", ", description="... and what stands between its classes.")
    start: Literal["as-is", "middle"] = Field(
        "as-is",
        description="AggSD's background: the start-of-text map as it is (LS), or weighed against "
        "the middle of its extremes.",
    )
    timestep: int = Field(100, ge=0, le=999, description="Of the diffusion model's look.")
    model: ModelConfig = ModelConfig()
    capture: CaptureConfig = CaptureConfig()
    labeling: LabelConfig = LabelConfig(method="propagate", text="prompt")
    segmentation: SegmentationConfig = SegmentationConfig()

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            read_method(name)
        return methods

    @field_validator("template")
    @classmethod
    def _names(cls, template: str) -> str:
        if template.count("{}") != 1 or "{" in template.replace("{}", ""):
            raise ValueError(f"template must have {{}} once. Got {template!r:.60}.")
        return template

    def segmenter(self, method: str) -> SegmentationConfig:
        """How clusters are made: the paper's as in LS (20 clusters, borders as they come)."""
        own = self.segmentation.model_dump() | {"method": method}
        if method in SEGMENT_SELF_MAP:
            own |= {"refiner": "none", "clusters": own["clusters"] | {"ks": (20,)}}
        return SegmentationConfig.model_validate(own)


def evaluate_language(out: Path, settings: LanguageSettings) -> dict[str, Any]:
    """Measure what is missing in a folder, and write rows.parquet, language.md and language.png.

    Returns:
        ``settings``; per method the means of `SCORES` and IoU ``per_class``; ``failed`` images
        with their reasons; ``published`` mIoU of the data set.

    Raises:
        ValueError: In one line, for data, names or a CLIP that are not there or not right.
    """
    if settings.clip == SCENES_CLIP:
        fitting: dict[str, Any] = read_card(clip_weights_dir()).get("gem", {})
        unset = {key for key in fitting if getattr(settings, key) is None}
        if settings.rest is not None:
            unset -= {"background", "lead"}
        chosen = settings.model_dump() | {key: fitting[key] for key in unset}
        settings = LanguageSettings.model_validate(chosen)
    layout = open_layout(settings.data, settings.root, settings.split, settings.num)
    numbers = [number for number in sorted(layout.names) if number not in layout.background]
    if len(numbers) < 2:
        raise ValueError(
            f"data must name its classes. Got {len(numbers)} names of {settings.data}; put "
            "objectInfo150.txt (ade) or classes.json (folder) into its folder."
        )
    storage = open_storage(out)
    known = settings.model_dump(mode="json", exclude={"num", "root", "methods"})
    known |= {"names": [layout.names[number] for number in numbers]}
    keys = {name: name for name in settings.methods}
    begin = partial(_Bench, settings, layout, numbers)
    rows = measure_images(storage, layout, known, keys, lambda: begin().measure, 1)
    return _write(storage, settings, layout, numbers, rows)


@dataclass(slots=True)
class _Stage:
    """What one step of an image took, and what it gave."""

    value: Any
    seconds: float
    megabytes: float


@dataclass(slots=True)
class _Bench:
    """The models, loaded; `measure` is what a batch's rows are."""

    settings: LanguageSettings
    layout: Layout
    numbers: Sequence[int]
    clip: Clip = field(init=False)
    texts: Float[Tensor, "cls dim"] = field(init=False)
    backbone: Backbone | None = field(init=False)

    def __post_init__(self) -> None:
        s = self.settings
        folder = clip_weights_dir() if s.clip == SCENES_CLIP else Path(s.clip).expanduser()
        self.clip = Clip(folder, pick_device(s.model.device, "model.device"))
        names = [self.layout.names[number] for number in self.numbers]
        self.texts = self.clip.texts([s.template.format(spoken(name)) for name in names])
        if self.layout.background and s.background:
            self.texts = torch.cat([self.texts, self.clip.texts(s.background)])
        alone = {("gem", ""), ("gem", TRUTH)}
        every = {(one.scores, one.joined) for one in map(read_method, s.methods)}
        self.backbone = None if every <= alone else load_backbone(s.model)

    def measure(self, batch: Sequence[Annotated], wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of images; one that cannot be read or seen says why."""
        rows = []
        for one in batch:
            try:
                image, truth = read_annotated(one)
                found = self._methods(one, image, truth, wanted)
                rows.append({"image": one.name, "methods": found})
            except ValueError as error:
                rows.append({"image": one.name, "failed": str(error)})
        return rows

    def _methods(
        self,
        one: Annotated,
        image: UInt8[np.ndarray, "height width 3"],
        truth: Truth,
        wanted: Sequence[str],
    ) -> dict[str, Any]:
        """Scores of methods on one image."""
        target = resized(truth.semantic, SIZE)
        shown_rows = sorted(set(np.unique(target).tolist()) & set(self.numbers))
        present = [self.numbers.index(number) for number in shown_rows]
        stages: dict[str, _Stage] = {}

        def once(key: str, make: Callable[[], Any]) -> _Stage:
            if key not in stages:
                before, clock = reset_peak(), time.process_time()
                value = make()
                seconds = time.process_time() - clock
                stages[key] = _Stage(value, seconds, max(0, peak_bytes() - before) / 1e6)
            return stages[key]

        found = {}
        for name in wanted:
            method = read_method(name)
            used = [once(method.scores, partial(self._scores, method, one, image, present))]
            if method.joined not in ("", TRUTH) and method.scores == "gem":
                look = once("look", partial(self._look, one, image, "", ()))
                used.append(look)
                if method.joined != "self":
                    make = partial(self._clusters, look.value, method.joined)
                    used.append(once(method.joined, make))
            given = [stage.value for stage in used]
            done = _Stage(None, 0.0, 0.0)
            clock = time.process_time()
            done.value = self._predict(method, given, target, present)
            done.seconds = time.process_time() - clock
            used.append(done)
            known, said = (merged(own, self.layout.groups) for own in (target, done.value))
            found[name] = {
                "counts": counts_of(known, said),
                "seconds": sum(stage.seconds for stage in used),
                "megabytes": max(stage.megabytes for stage in used),
            }
        return found

    def _scores(
        self,
        method: Method,
        one: Annotated,
        image: UInt8[np.ndarray, "height width 3"],
        present: Sequence[int],
    ) -> Any:
        """GEM's cosines; or the diffusion model's samples of prompts that name what is there."""
        s = self.settings
        if method.scores == "gem":
            return gem(self.clip, image, self.texts, side=s.side, blocks=s.blocks)
        assert self.backbone is not None
        names = [self.layout.names[self.numbers[index]] for index in present]
        tokenizer = self.backbone.pipeline.tokenizer
        prompts = class_prompts(tokenizer, names, s.opening, s.joint)
        return [self._look(one, image, text, own) for text, own in prompts]

    def _look(
        self,
        one: Annotated,
        image: UInt8[np.ndarray, "height width 3"],
        text: str,
        classes: tuple[str, ...],
    ) -> Sample:
        """What the diffusion model's UNet makes of the image.

        Raises:
            ValueError: If it makes nothing of it.
        """
        s = self.settings
        assert self.backbone is not None
        made = invert_any(
            self.backbone,
            [image],
            [Prompt(one.name, text, classes)],
            [seed_of(one)],
            GenerationConfig(),
            s.capture,
            timestep=s.timestep,
            labeling=s.labeling if classes else None,
            self_map=True,
        )[0]
        if isinstance(made, Failure):
            raise ValueError(f"{made.reason}: {made.message}")
        return made

    def _clusters(self, sample: Sample, method: str) -> tuple[np.ndarray, tuple[int, ...]]:
        """Label maps of a segmenter at the size of the comparison, and their numbers."""
        found = segment_sample(sample, self.settings.segmenter(method))
        return np.stack([resized(own, SIZE) for own in found.labels]), found.ks

    def _predict(
        self,
        method: Method,
        given: Sequence[Any],
        target: Int[np.ndarray, "height width"],
        present: Sequence[int],
    ) -> Int[np.ndarray, "height width"]:
        """Class of each pixel, by the data set's numbers."""
        s, background = self.settings, bool(self.layout.background)
        chosen: list[int] = list(present) if method.known else list(range(len(self.numbers)))
        if not chosen:  # nothing is there to be named
            return np.full(SIZE, min(self.layout.background, default=-1), dtype=np.int64)
        middle = False
        if method.scores == "gem":
            temperature = s.temperature or (0.1 if background else 0.01)
            lacking = REST if s.rest is None else s.rest
            similarity, places = given[0][: len(self.numbers)], given[0][len(self.numbers) :]
            texts = places + (s.lead or 0.0) if len(places) else None
            rows = attention_to(similarity, temperature, background, lacking, texts)
            kept = [index + background for index in chosen]
            rows = rows[[0, *kept] if background else kept]
        else:
            rows = heat_rows([sample.heatmaps for sample in given[0]], background)
            middle = background and s.start == "middle"
        more: dict[str, Any] = {"middle": middle}
        if method.joined == "self":
            looks = given[0] if method.scores == "sd" else [given[1]]
            more["self_map"] = mean_self_map([sample.self_map for sample in looks])
        elif method.joined == TRUTH:
            more |= {"labels": target[None], "ks": (1,)}
        elif method.joined:
            labels, ks = given[2]
            more |= {"labels": labels, "ks": ks}
        numbers = np.array([self.numbers[index] for index in chosen])
        if background:
            numbers = np.concatenate([[min(self.layout.background)], numbers])
        predicted: Int[np.ndarray, "height width"] = numbers[classify(rows, SIZE, **more)]
        return predicted


def _write(
    storage: Storage,
    settings: LanguageSettings,
    layout: Layout,
    numbers: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    good = [row["methods"] for row in rows if "methods" in row]
    if not good:
        raise ValueError(f"An image must be readable. Got {len(rows)}, first {rows[0]['failed']}")
    background = sorted(layout.background)
    compared = layout.group_names or {number: layout.names[number] for number in numbers}
    names = {str(number): name for number, name in compared.items()}
    result: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "num": len(good),
        "table": {
            name: summarize([methods[name] for methods in good], sorted(compared), background)
            for name in settings.methods
        },
        "failed": {row["image"]: row["failed"] for row in rows if "failed" in row},
        "published": PUBLISHED.get((settings.data, settings.split), {}),
        "names": names | {str(number): "background" for number in background},
    }
    flat = [
        {
            "image": row["image"],
            "method": name,
            "class": int(cls),
            **dict(zip(("right", "predicted", "true"), counts, strict=True)),
        }
        for row in rows
        for name, scores in row.get("methods", {}).items()
        for cls, counts in scores["counts"].items()
    ]
    axis = f"{settings.data}, {len(good)} images"
    figure = bars(result["table"], {"miou": "mIoU", "precision": "AP of image classes"}, axis)
    publish_tables(storage, "language", result, language_table(result), figure, flat)
    return result
