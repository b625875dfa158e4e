"""What masks, labels and tars cost beside the images, and whether the device ever waits for them.

(a) Core-seconds per image of 512 x 512 behind denoising, by stage, on one thread: features of
SD 2.1's size (105 heads of 64 numbers on grids of 16, 32 and 64), smooth and as rough as captured
ones, on photographs, with two classes. Process time, so that another load falls on nobody.

(b) A stand-in for the device sleeps t seconds per image and gives such features: its throughput
within the engine as a share of its throughput alone, in a long shard (what is left to be finished
when the last batch is drawn is told apart, as ``tail``). Wall time, which needs cores that are
free; so the same is simulated from (a) for any number of workers.

(c) The embedded model: images per second of the engine, with masks and labels, as a share of
diffusers drawing the same prompts in the same batches, one after the other in the same process.
"""

from __future__ import annotations

import functools
import heapq
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DDIMScheduler
from jaxtyping import UInt8
from PIL import Image
from sklearn.datasets import load_sample_image

from synthgen.config import Config, GenerationConfig, ModelConfig, load
from synthgen.dataset.metadata import Row
from synthgen.dataset.records import encode_record, sample_json
from synthgen.dataset.shards import whole_tar
from synthgen.devices import one_thread
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.cards import Card
from synthgen.diffusion.generate import load_model
from synthgen.jobs.batch import Recipe, draft
from synthgen.jobs.plan import samples_in_flight
from synthgen.jobs.shard import Staged, publish_shard
from synthgen.lab.bench.kmeans import ROUGH, SMOOTH, made_blocks
from synthgen.labeling.label import label_sample
from synthgen.segmentation.features import feature_blocks
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.refine import refine_clusters
from synthgen.storage.publish import open_storage
from synthgen.types import (
    Failure,
    HeadFeatures,
    Heatmaps,
    PlannedSample,
    Prompt,
    Record,
    Sample,
    Segmentation,
)

SIDE = 512
DIM = 64  # of a head of SD 2.1
CLASSES = ("house", "tree")
SETTINGS = ("labeling.method=clusters", "labeling.refiner=pamr")
T = TypeVar("T")


SECONDS = (0.2, 0.5, 1.0, 3.0)
"""Of the stand-in, per image: an H100 draws one of 512 x 512 in 0.3 to 0.5 s."""
BATCH = 4
_standin = {"seconds": 0.0}


def bench_pipeline(quick: bool = False) -> dict[str, Any]:
    """Core-seconds by stage, and shares of throughput with real and simulated workers.

    Args:
        quick: One image of each kind, few batches; for a check that the bench runs.
    """
    num = 1 if quick else 3
    kinds = {"smooth": SMOOTH, "rough": ROUGH}
    with one_thread():
        stages = {
            name: stage_seconds([made_sample(kind, seed) for seed in range(num)])
            for name, kind in kinds.items()
        }
    cost = stages["rough"]["core_seconds"]
    simulated = {
        str(t): {str(w): simulated_share(t, cost, w) for w in (1, 2, 4, 8, 16)} for t in SECONDS
    }
    standin = {
        str(t): {str(w): standin_share(t, w, 8 if quick else 24) for w in (1, 2)}
        for t in (SECONDS[:1] if quick else SECONDS)
    }
    return {
        "stages": stages,
        "share": {str(t): cost / t for t in SECONDS},  # behind denoising / denoising
        "simulated": simulated,
        "standin": standin,
        "embedded": None if quick else embedded_share(),
    }


def simulated_share(
    seconds: float, core_seconds: float, workers: int, batch: int = BATCH, num: int = 400
) -> float:
    """Throughput of a device that shares nothing with its workers, over that of the device alone.

    Args:
        seconds: In which the device draws an image.
        core_seconds: In which a worker finishes one.
        workers: Workers, each with a core of its own.
        batch: Images drawn together.
        num: Images.

    >>> simulated_share(1.0, 0.5, 1), simulated_share(0.5, 1.0, 1) < 0.6
    (1.0, True)
    """
    room = samples_in_flight(workers, batch) - batch
    free, waiting, clock = [0.0] * workers, deque[list[float]](), 0.0
    for _ in range(num // batch):
        while sum(map(len, waiting)) > room:
            clock = max(clock, *waiting.popleft())
        clock += seconds * batch
        waiting.append([])
        for _ in range(batch):
            end = max(free[0], clock) + core_seconds
            heapq.heapreplace(free, end)
            waiting[-1].append(end)
    return num * seconds / clock


def standin_share(seconds: float, workers: int, num: int) -> dict[str, float]:
    """The stand-in's throughput in the engine over its own, and seconds behind the last batch."""
    _standin["seconds"] = seconds
    settings = (*SETTINGS, f"generation.workers={workers}", f"generation.batch_size={BATCH}")
    config = load(overrides=[*settings, f"model.card={__name__}:load_standin"])
    recipe = Recipe(config, "0" * 64, BATCH, {name: i for i, name in enumerate(CLASSES, 1)})
    prompt = Prompt("0", "a house behind a tree", CLASSES)
    planned = [PlannedSample(f"{index:010d}", prompt, 0, index) for index in range(num)]
    _drawn(0)  # made before the clock starts
    times: list[float] = []

    def draw(*arguments: Any) -> Any:
        times.append(time.perf_counter())
        samples = draw_standin(*arguments)
        times.append(time.perf_counter())
        return samples

    vars(recipe)["model"] = replace(recipe.model, draw=draw)
    with tempfile.TemporaryDirectory() as folder:
        draft(recipe, planned, Path(folder), lambda *_, **__: None)
        end = time.perf_counter()
    row = {"share": num * seconds / (times[-1] - times[0]), "tail": end - times[-1]}
    print(f"{seconds} s per image, {workers} workers: {row}", file=sys.stderr, flush=True)
    return row


def load_standin(_config: ModelConfig) -> Backbone:
    """The stand-in, as a configuration names it."""
    return Backbone(
        pipeline=SimpleNamespace(scheduler=DDIMScheduler()),
        card=Card(name="stand-in", height=SIDE, width=SIDE, num_inference_steps=1),
        identity={"id": "stand-in", "revision": None, "sha256": {}},
        device=torch.device("cpu"),
        dtype=torch.float32,
        draw=draw_standin,
    )


def draw_standin(
    prompts: Sequence[Prompt], seeds: Sequence[int], _generation: GenerationConfig
) -> list[Sample | Failure]:
    """Full-size samples, after a sleep."""
    time.sleep(_standin["seconds"] * len(prompts))
    made = [_drawn(seed % 2) for seed in seeds]
    return [
        replace(s, prompt=p, features=HeadFeatures(s.features.values, s.features.grids))
        for s, p in zip(made, prompts, strict=True)
    ]


@functools.cache
def _drawn(seed: int) -> Sample:
    return made_sample(ROUGH, seed)


def embedded_share(num: int = 8) -> float:
    """Throughput of the engine over that of diffusers alone, median of three pairs."""
    config = load(overrides=[*SETTINGS, f"generation.batch_size={BATCH}"])
    recipe = Recipe(config, "0" * 64, BATCH, {"car": 1})
    prompt = Prompt("0", "a photo of a red car", ("car",))
    planned = [PlannedSample(f"{index:010d}", prompt, 0, index) for index in range(num)]
    steps, pipeline = recipe.model.card.num_inference_steps, load_model()
    pipeline.set_progress_bar_config(disable=True)
    shares = []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(num // BATCH):
            pipeline([prompt.text] * BATCH, num_inference_steps=steps)
        alone = time.perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            draft(recipe, planned, Path(folder), lambda *_, **__: None)
            shares.append(alone / (time.perf_counter() - begin))
    return median(shares)


def made_sample(roughness: Sequence[tuple[int, float]], seed: int = 0) -> Sample:
    """A photograph with random head outputs and heatmaps of SD 2.1's size."""
    generator = torch.Generator().manual_seed(seed)
    values, grids = {}, {}
    for block in made_blocks(roughness, seed):
        height, width, num = block.shape
        axes = torch.linalg.qr(torch.randn(num // 8, DIM, 8, generator=generator))[0]
        heads = torch.unflatten(block.flatten(0, 1), 1, (-1, 8)).movedim(1, 0) @ axes.mT
        name = f"up.{height}"
        values[name] = heads + 0.01 * torch.randn(heads.shape, generator=generator)
        grids[name] = (height, width)
    coarse = torch.rand(1, len(CLASSES) + 1, 6, 6, generator=generator)
    maps = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")[0].clamp(min=0)
    return Sample(
        prompt=Prompt(str(seed), "a house behind a tree", CLASSES),
        seed=seed,
        image=photograph(seed),
        features=HeadFeatures(values, grids),
        heatmaps=Heatmaps(CLASSES, maps[1:], maps[0] + 0.1),
    )


def photograph(seed: int) -> UInt8[np.ndarray, "512 512 3"]:
    """One of scikit-learn's two photographs, cut to a square."""
    picture = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[seed % 2]))
    side = min(picture.size)
    return np.asarray(picture.resize((SIDE, SIDE), box=(0, 0, side, side)))


def stage_seconds(samples: Sequence[Sample]) -> dict[str, Any]:
    """Median core-seconds per image of each stage, and their sum."""
    config = load(overrides=list(SETTINGS))
    rows = [_stages(sample, config, index) for index, sample in enumerate(samples)]
    ends = [end for _, end in rows]
    stages = {name: median(row[name] for row, _ in rows) for name in rows[0][0]}
    stages |= _publication(ends)
    result = {
        "core_seconds": sum(stages.values()),
        **stages,
        "iterations": {
            str(k): median(end["iterations"][i] for end in ends)
            for i, k in enumerate(config.segmentation.clusters.ks)
        },
        "num_masks": median(end["masks"] for end in ends),
    }
    print(result, file=sys.stderr, flush=True)
    return result


def _stages(sample: Sample, config: Config, index: int) -> tuple[dict[str, float], dict[str, Any]]:
    segmenting, size = config.segmentation, (SIDE, SIDE)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        begin = time.process_time()
        result = work()
        seconds[name] = time.process_time() - begin
        return result

    blocks = timed("pca", lambda: feature_blocks(sample.features, segmenting.features))
    found = timed("kmeans", lambda: cluster(blocks, size, segmenting.clusters.ks))
    labels = timed("refine", lambda: refine_clusters(found.labels, found.ks, sample.image))
    masks = timed("masks", lambda: build_masks(labels, found.ks))
    segmentation = Segmentation.of(masks, found.ks, labels)
    label_map = timed(
        "label",
        lambda: label_sample(
            segmentation, sample.heatmaps, sample.self_map, config.labeling, sample.image
        ),
    )
    ids = {name: number for number, name in enumerate(CLASSES, start=1)}
    origin = {"seed": sample.seed, "image_index": 0}
    record = Record(f"{index:010d}", sample.image, sample.prompt, masks, origin, label_map, ids)

    info = timed("describe", lambda: sample_json(record))
    members = timed("encode", lambda: encode_record(record, "jpg", info))
    return seconds, {
        "record": record,
        "members": members,
        "masks": len(masks),
        "iterations": found.iterations,
    }


def _publication(ends: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Core-seconds per image to write, verify and publish a shard."""
    rows = [
        Row(
            key=end["record"].key,
            status="ok",
            reason="",
            message="",
            prompt_id=end["record"].prompt.id,
            prompt=end["record"].prompt.text,
            classes=CLASSES,
            image_index=0,
            seed=end["record"].provenance["seed"],
            batch=0,
            num_segments=end["masks"],
        )
        for end in ends
    ]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        path = Path(folder) / "shard.tar"
        with whole_tar(path) as tar:
            for end in ends:
                tar.write(end["record"].key, end["members"])
        written = time.process_time()
        facts = {"config": "", "batch_size": 1, "seconds": {}, "environment": {}}
        staged = Staged(path, None, rows)
        storage = open_storage(Path(folder) / "out")
        publish_shard(storage, "train-000000", staged, facts, lambda: None)
        published = time.process_time()
    num = len(ends)
    return {"write": (written - begin) / num, "publish": (published - written) / num}
