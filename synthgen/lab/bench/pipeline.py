"""What masks, labels and tars cost beside the images, and whether the device ever waits for them.

(a) Core-seconds per image of 512 x 512 behind denoising, by stage, on one thread: features of
SD 2.1's size (105 heads of 64 numbers on grids of 16, 32 and 64), smooth and as rough as captured
ones, on photographs, with two classes. Process time, so that another load falls on nobody.

(b) A stand-in for the device sleeps t seconds per image and gives such features: its throughput
within the engine as a share of its throughput alone, in a long shard (what is left to be finished
when the last batch is drawn is told apart, as ``tail``). Wall time, which needs cores that are
free; so the same is simulated from (a) for any number of workers. Then short shards from end to
end, masks alone, with their publication: one after the other, and two in flight, where the next is
drawn while the one before is finished.

(c) The embedded model: images per second of the engine, with masks and labels, as a share of
diffusers drawing the same prompts in the same batches, one after the other in the same process.

(d) The same on a GPU, if there is one, with a model of SD 2.1's size and random weights.
"""

from __future__ import annotations

import functools
import heapq
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from synthgen.config import GenerationConfig, ModelConfig, load
from synthgen.devices import one_thread
from synthgen.diffusion.backbones import Backbone, load_backbone
from synthgen.diffusion.cards import Card
from synthgen.diffusion.generate import with_scheduler
from synthgen.diffusion.schedulers import make_scheduler
from synthgen.jobs.batch import Recipe, draft
from synthgen.jobs.generate import GenerateJob
from synthgen.jobs.plan import samples_in_flight
from synthgen.lab.bench.capture import SD21_UNET
from synthgen.lab.bench.fake_model import load_fake
from synthgen.lab.bench.kmeans import ROUGH, SMOOTH
from synthgen.lab.bench.stages import CLASSES, SETTINGS, SIDE, made_sample, stage_seconds
from synthgen.types import (
    Failure,
    HeadFeatures,
    PlannedSample,
    Prompt,
    Sample,
)

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
        "shards": {str(n): shards_share(1.0, n, 2 if quick else 4) for n in (1, 2)},
        "embedded": None if quick else throughput(load_backbone(ModelConfig()), 16),
        "gpu": throughput(full_size(), 32, 8) if torch.cuda.is_available() else "not measured",
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


def shards_share(seconds: float, in_flight: int, num: int, size: int = 16) -> float:
    """The stand-in's throughput over ``num`` shards of ``size`` samples, over its own."""
    with tempfile.TemporaryDirectory() as folder:
        _standin["seconds"] = 0.0
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("a house behind a tree\n")
        settings = [f"num={num * size}", f"dataset.shard_size={size}", f"prompts={prompts}"]
        settings += [f"model.card={__name__}:load_standin", f"generation.batch_size={BATCH}"]
        settings += ["generation.workers=1", "dataset.preview_every=0"]
        job = GenerateJob(load(overrides=settings), Path(folder) / "out")
        job.begin()
        _drawn(0), _drawn(1)
        _standin["seconds"] = seconds
        begin = time.perf_counter()
        with ThreadPoolExecutor(in_flight) as pool:
            list(pool.map(job.run_shard, job.missing()))
        share = num * size * seconds / (time.perf_counter() - begin)
    print(f"{num} shards, {in_flight} in flight: {share:.3f}", file=sys.stderr, flush=True)
    return share


def load_standin(config: ModelConfig) -> Backbone:
    """The stand-in, as a configuration names it: the fake model, which draws full-size samples."""
    card = Card(name="stand-in", height=SIDE, width=SIDE, num_inference_steps=1)
    return replace(load_fake(config), card=card, draw=draw_standin)


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


def full_size(unet: Mapping[str, Any] = SD21_UNET, width: int = 128, layers: int = 23) -> Backbone:
    """A model of SD 2.1's architecture with random weights, on the GPU if there is one.

    Args:
        unet: Architecture of the UNet.
        width: Channels of the VAE's first block.
        layers: Of the text encoder.
    """
    embedded = load_backbone(ModelConfig(device="cpu"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    text = unet["cross_attention_dim"]
    torch.manual_seed(0)
    with device:
        networks = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(width, 2 * width, 4 * width, 4 * width),
                layers_per_block=2,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(embedded.pipeline.tokenizer),
                    hidden_size=text,
                    intermediate_size=4 * text,
                    num_hidden_layers=layers,
                    num_attention_heads=max(1, text // 64),
                )
            ),
        }
    pipeline = StableDiffusionPipeline(
        **{name: network.to(dtype).eval() for name, network in networks.items()},
        tokenizer=embedded.pipeline.tokenizer,
        scheduler=embedded.pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    card = Card(name="full size", num_inference_steps=50, guidance_scale=7.5)
    identity: dict[str, Any] = {"id": "random", "revision": None, "sha256": {}}
    return Backbone(pipeline, card, identity, device, dtype)


def throughput(
    model: Backbone, num: int, batch_size: int = BATCH, runs: int = 3
) -> dict[str, float]:
    """The engine, with masks, labels and files, against diffusers alone; medians over runs.

    Args:
        model: Draws.
        num: Images of each run; whole batches.
        batch_size: Images drawn together.
        runs: Pairs, one after the other.

    Returns:
        ``share``: throughput over that of diffusers alone; ``drawing``: part of the time in which
        the model draws; ``images_per_hour`` of both.
    """
    config = load(overrides=[*SETTINGS, f"generation.batch_size={batch_size}"])
    recipe = Recipe(config, "0" * 64, batch_size, {"car": 1})
    vars(recipe)["model"] = model
    prompt = Prompt("0", "a photo of a red car", ("car",))
    planned = [PlannedSample(f"{index:010d}", prompt, 0, index) for index in range(num)]
    steps = {"num_inference_steps": model.card.num_inference_steps}
    scheduler = make_scheduler(model, model.card.scheduler)
    plain = with_scheduler(model, StableDiffusionPipeline, scheduler)
    plain([prompt.text] * batch_size, **{**steps, "num_inference_steps": 2})  # the first allocates
    rows = []
    for _ in range(runs):
        begin = time.perf_counter()
        for _ in range(num // batch_size):
            plain([prompt.text] * batch_size, guidance_scale=model.card.guidance_scale, **steps)
        alone = time.perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            _, seconds = draft(recipe, planned, Path(folder), lambda *_, **__: None)
            ours = time.perf_counter() - begin
        rows.append((alone / ours, seconds["generate"] / ours, num / ours, num / alone))
        print(
            f"{model.card.name}: {alone:.2f} s alone, {ours:.2f} s in the engine", file=sys.stderr
        )
    share, drawing, rate, alone_rate = (median(column) for column in zip(*rows, strict=True))
    return {
        "share": share,
        "drawing": drawing,
        "images_per_hour": 3600 * rate,
        "images_per_hour_alone": 3600 * alone_rate,
    }
