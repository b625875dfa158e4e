"""A dataset of as many shards as one likes: a drawn one, linked and listed again and again."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from ordered import ordered_config

from synthgen import jobs
from synthgen.config import Config
from synthgen.dataset.card import config_yaml
from synthgen.dataset.manifest import (
    build_manifest,
    marker_bytes,
    marker_name,
    metadata_name,
    publish_manifest,
    read_manifest,
    read_marker,
    tar_name,
)
from synthgen.storage.publish import open_storage
from synthgen.types import shard_name


def grow(folder: Path, num_shards: int) -> tuple[Config, Path]:
    """A finished dataset of one sample per shard, of which all but the first are its links."""
    small = ordered_config(folder, "num=1", "dataset.shard_size=1", "dataset.preview_every=0")
    out = folder / "out"
    jobs.generate(small, out)
    storage, first = open_storage(out), shard_name(0)
    marker, manifest = read_marker(storage, first), read_manifest(storage)
    assert marker is not None
    assert manifest is not None
    markers = [replace(marker, name=shard_name(index)) for index in range(num_shards)]
    source = first
    for index, item in enumerate(markers[1:]):
        renewed = index % 50_000 == 49_999  # a file has no more than 65,000 links
        put = shutil.copyfile if renewed else os.link
        put(out / tar_name(source), out / tar_name(item.name))
        put(out / metadata_name(source), out / metadata_name(item.name))
        source = item.name if renewed else source
        (out / marker_name(item.name)).write_bytes(marker_bytes(item))
    config = small.model_copy(update={"num": num_shards})
    storage.publish_bytes(config_yaml(config, manifest["config"]).encode(), "config.yaml")
    publish_manifest(
        storage,
        build_manifest(markers, manifest["config"], manifest["models"], manifest["times"]),
    )
    return config, out
