"""The configuration that the tests of runs and datasets share: 8 tiny images in 3 shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from synthgen.config import Config, load
from synthgen.dataset.manifest import publish_manifest, read_manifest
from synthgen.storage.publish import open_storage
from synthgen.storage.seal import sealed_json

PROMPTS = (
    {"id": "car", "prompt": "a photo of a red car", "classes": ["car"]},
    {"id": "dog", "prompt": "two dogs under a tree", "classes": ["dog", "tree"]},
    {"id": "sky", "prompt": "the sky", "classes": []},
)
OVERRIDES = (
    *("num=8", "seed=11", "dataset.shard_size=3", "dataset.preview_every=4"),
    *("generation.num_inference_steps=1", "generation.batch_size=2", "model.device=cpu"),
    *("generation.height=32", "generation.width=64", "generation.scheduler=ddim"),
    *("generation.guidance_scale=1.0", "segmentation.clusters.ks=[2,3]"),
    "segmentation.features.components=2",
)


def write_prompts(path: Path, prompts: tuple[dict[str, object], ...] = PROMPTS) -> Path:
    """A prompt file."""
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


def tiny_config(pipeline: Path, prompts: Path, *overrides: str) -> Config:
    """The configuration, with the tiny pipeline as its model."""
    paths = (f"model.card={pipeline}", f"prompts={prompts}")
    return load(overrides=[*OVERRIDES, *paths, *overrides])


def rewrite(path: Path, **changes: Any) -> None:
    """Other values in a small file of a dataset, with the seal of the new content."""
    tree = json.loads(path.read_text())
    tree.pop("seal", None)
    path.write_bytes(sealed_json({**tree, **changes}))


def vouch_again(out: Path) -> None:
    """Let the manifest vouch for the description as it stands there now."""
    manifest = read_manifest(open_storage(out))
    assert manifest is not None
    publish_manifest(open_storage(out), manifest)


def tree_hashes(root: Path) -> dict[str, str]:
    """Hash by name of every file whose bytes are promised: all but times and what is hidden.

    Of the manifests, all but ``times`` is hashed; markers and metadata hold wall times.
    """
    hashes = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or name.startswith((".synthgen/", "stats/", "metadata/")):
            continue
        content = path.read_bytes()
        if name == "manifest.json" or name.startswith("manifests/"):
            tree = json.loads(content)
            del tree["times"], tree["seal"]  # it covers the times
            content = json.dumps(tree).encode()
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes
