"""What a dataset is: everything that determines its bytes, and where it was made.

The digest covers settings, prompt *content*, the files of the model and our algorithms'
version; not paths, workers, progress, nor the number of samples. Library versions, device, dtype
and what the processor can do are recorded beside it: a change of those is warned about, or refused
with ``strict``. The number of threads is recorded too, and kept: sums depend on their split.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from synthgen import __version__
from synthgen.config import Config, ModelConfig, digest, parse
from synthgen.dataset.changes import changed_keys, list_keys
from synthgen.dataset.manifest import CONFIG, IDENTITY
from synthgen.jobs.plan import prompts_of
from synthgen.storage.publish import Storage, dump_json
from synthgen.storage.redaction import redact_tree
from synthgen.storage.untrusted import check_shape, one_line, parse_object

MAX_THREADS = 1024  # more is no processor of today, but a file that somebody changed
CARD_DEFAULTS = {
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "capture_layers",
}


class _Identity(TypedDict):
    """What readers rely on; `identity_bytes` writes it."""

    digest: str
    content: dict[str, Any]
    environments: list[dict[str, Any]]


PACKAGES = ("diffusers", "numpy", "pillow", "pycocotools", "torch", "transformers", "webdataset")


def config_digest(config: Config) -> str:
    """The sha256 of what determines the bytes of a dataset; loads the model to hash it."""
    return digest(identity_content(config))


def identity_content(config: Config) -> dict[str, Any]:
    """What the digest is computed over."""
    prompts = prompts_of(config)
    return {
        "settings": config.digest_settings(),
        "prompts": {"num": len(prompts), "sha256": prompts.digest},
        **model_content(config.model),
    }


def model_content(config: ModelConfig) -> dict[str, Any]:
    """What of a model determines the bytes: its weights, and the defaults of its card."""
    from synthgen.diffusion.backbones import load_backbone

    model = load_backbone(config)
    scheduler = {k: v for k, v in model.pipeline.scheduler.config.items() if k[0] != "_"}
    content = {
        "model": dict(model.identity),
        "card": model.card.model_dump(mode="json", include=CARD_DEFAULTS),
        "scheduler": {"class": type(model.pipeline.scheduler).__name__, **scheduler},
    }
    return dict(json.loads(json.dumps(content)))


def environment(config: Config) -> dict[str, Any]:
    """Versions, device and dtype: equal bytes are promised for equal ones only."""
    from synthgen.diffusion.backbones import load_backbone

    model = load_backbone(config.model)
    return {
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": dict(_versions()),
    }


def machine(standing: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of a processor determines the last bits of sums; threads are those of the beginning.

    Args:
        standing: Identity of the dataset, None where it begins.
    """
    import torch

    threads = None if standing is None else _threads(standing)
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": threads or torch.get_num_threads(),
    }


def keep_threads(standing: Mapping[str, Any]) -> None:
    """Compute on as many threads as the dataset was begun with, in whatever process this is.

    On two threads instead of one, images of one seed differ in single values. Stays in force.
    """
    import torch

    threads = _threads(standing)
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _threads(standing: Mapping[str, Any]) -> int | None:
    """Threads that a dataset was begun with; None where it does not say."""
    found = standing["environments"][0].get("threads") if standing["environments"] else None
    return found if isinstance(found, int) and 0 < found <= MAX_THREADS else None


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"synthgen": __version__, **versions}


def identity_bytes(content: Mapping[str, Any], environments: Sequence[Mapping[str, Any]]) -> bytes:
    """The content of identity.json, secrets taken out."""
    tree = {
        "digest": digest(content),
        "content": redact_tree(content),
        "environments": list(environments),
    }
    return dump_json(tree, allow_nan=True)  # schedulers have settings of -inf


def read_identity(storage: Storage, there: bool = False) -> dict[str, Any] | None:
    """The identity of the dataset in a folder, None where there is no dataset.

    Args:
        storage: The folder.
        there: Something is in it, see `Storage.read`.

    Raises:
        ValueError: If it cannot be read.
    """
    raw = storage.read(IDENTITY, there)
    if raw is None:
        return None
    try:
        tree = parse_object(raw)
        check_shape(_Identity, tree)
        return tree
    except ValueError as error:
        raise ValueError(f"{IDENTITY} must be readable. Got {error}.") from None


def read_config(storage: Storage) -> Config:
    """The configuration that a dataset was made with.

    Raises:
        ValueError: If the folder holds no dataset.
    """
    raw = storage.read(CONFIG)
    if raw is None or read_identity(storage) is None:
        raise ValueError(f"{storage.root} must be a dataset. Got no {CONFIG} or {IDENTITY} there.")
    try:
        return parse(raw)
    except ValueError as error:
        raise ValueError(f"{storage.root}/{CONFIG} must be one of ours. Got: {error}") from None


def check_plan(storage: Storage, config: Config) -> None:
    """Refuse to publish under a plan that another run has replaced since ours began.

    The plan is the committed intent, ``num`` and ``extended`` in config.yaml; it only ever grows,
    so a run that was stopped for a while and goes on with an older one can be told from others.

    Raises:
        RuntimeError: If another plan stands.
    """
    standing = read_config(storage)
    if (standing.num, standing.extended) != (config.num, config.extended):
        raise RuntimeError(
            f"The plan of {storage.root} must stay the {config.planned} samples of this run. Got "
            f"{standing.planned}, which another run has planned since. Complete shards are kept; "
            f"run with that plan to finish it."
        )


def check_same(standing: Mapping[str, Any], config: Config, root: str) -> str:
    """The digest, if the dataset in a folder is that of the configuration.

    Raises:
        ValueError: If it is another one; the keys that differ are named.
    """
    check_drawn(standing, root)
    content = identity_content(config)
    ours = digest(content)
    if ours == standing["digest"]:
        return ours
    changed = changed_keys(standing["content"], redact_tree(content))
    raise ValueError(
        f"The configuration must be the one that {root} was begun with. Got a change of "
        f"{list_keys(changed) or 'hidden values'}. Undo it, or choose another output folder."
    )


def check_drawn(standing: Mapping[str, Any], root: str) -> None:
    """Refuse to draw for a merged dataset, which has no one model, prompts and plan.

    Raises:
        ValueError: With its sources.
    """
    merged = standing["content"].get("merged")
    if merged:
        names = ", ".join(one_line(source["name"], 80) for source in merged)
        raise ValueError(
            f"{root} was merged from {names} and nothing can be drawn for it again. Got such a "
            f"request; repeat or extend its sources, and merge them into another folder."
        )
