"""Core-seconds behind denoising, stage by stage, on one thread; see ``pipeline``."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from sklearn.datasets import load_sample_image

from synthgen.config import Config, load
from synthgen.dataset.metadata import Row
from synthgen.dataset.records import encode_record, sample_json
from synthgen.dataset.shards import sha256_of_members, whole_tar
from synthgen.dataset.verify_samples import verify_sample
from synthgen.jobs.shard import Staged, publish_shard
from synthgen.lab.bench.kmeans import made_blocks
from synthgen.labeling.label import label_sample
from synthgen.segmentation.features import feature_blocks
from synthgen.segmentation.kmeans import cluster
from synthgen.segmentation.masks import build_masks
from synthgen.segmentation.refine import refine_clusters
from synthgen.storage.publish import open_storage
from synthgen.types import (
    HeadFeatures,
    Heatmaps,
    Prompt,
    Record,
    Sample,
    Segmentation,
)

SIDE = 512
DIM = 64  # of a head of SD 2.1
CLASSES = ("house", "tree")
SETTINGS = ("labeling.method=clusters",)
T = TypeVar("T")


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
    assert not timed("verify", lambda: [*verify_sample(record.key, record.key, members, True)])
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
        hashes = {end["record"].key: sha256_of_members(end["members"]) for end in ends}
        staged = Staged(path, None, rows, hashes)
        storage = open_storage(Path(folder) / "out")
        publish_shard(storage, "train-000000", staged, facts, lambda: None)
        published = time.process_time()
    num = len(ends)
    return {"write": (written - begin) / num, "publish": (published - written) / num}
