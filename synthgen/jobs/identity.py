"""What a dataset is: everything that determines its bytes, and where it was made.

The digest covers settings, prompt *content*, the files of the model and our algorithms'
version; not paths, workers, progress, nor the number of samples. Library versions, device, dtype
and what the processor can do are recorded beside it: a change of those is warned about, or refused
with ``strict``. The number of threads is recorded too, and kept: sums depend on their split.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict

from synthgen import __version__
from synthgen.config import Config, ModelConfig, digest, parse
from synthgen.dataset.changes import changed_keys, list_keys
from synthgen.dataset.manifest import CONFIG, IDENTITY
from synthgen.jobs.plan import prompts_of
from synthgen.prompts import PromptList
from synthgen.storage.publish import Storage, dump_json, open_storage
from synthgen.storage.redaction import redact_tree
from synthgen.storage.untrusted import check_shape, one_line, parse_object

MAX_THREADS = 1024  # more is no processor of today, but a file that somebody changed
CARD_DEFAULTS = {
    *("height", "width", "num_inference_steps", "guidance_scale", "scheduler", "capture_layers")
}
PACKAGES = ("diffusers", "numpy", "pillow", "pycocotools", "torch", "transformers", "webdataset")

logger = logging.getLogger(__name__)


class _Identity(TypedDict):
    """What readers rely on; `identity_bytes` writes it."""

    digest: str
    content: dict[str, Any]
    environments: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What determines the bytes of a dataset; made once in a run and handed on.

    Args:
        content: What the digest covers.
        digest: Its sha256.
    """

    content: Mapping[str, Any]
    digest: str

    @classmethod
    def of(cls, config: Config, prompts: PromptList | None = None) -> Identity:
        """The identity of a configuration; hashes the model's files and loads no weights.

        Args:
            config: The configuration.
            prompts: Its prompts, where they are read already.
        """
        prompts = prompts_of(config) if prompts is None else prompts
        content = {
            "settings": config.digest_settings(),
            "prompts": {"num": len(prompts), "sha256": prompts.digest},
            **model_content(config.model),
        }
        if config.labeling.parts is not None:
            content["parts"] = parts_digest(config.labeling.parts)
        return cls(content, digest(content))

    def check(self, existing: Mapping[str, Any], root: str) -> None:
        """Refuse to go on with a dataset of another identity.

        Args:
            existing: Content of its identity.json.
            root: Its folder.

        Raises:
            ValueError: With the keys that differ.
        """
        check_drawn(existing, root)
        if self.digest != existing["digest"]:
            changed = changed_keys(existing["content"], redact_tree(self.content))
            raise ValueError(
                f"The configuration must be the one that {root} was begun with. Got a change of "
                f"{list_keys(changed) or 'hidden values'}. Undo it, or choose another output "
                f"folder."
            )


def parts_digest(folder: str) -> str:
    """The sha256 of the files in a folder of parts.

    Raises:
        ValueError: If it holds none.
    """
    storage = open_storage(folder)
    files = [storage.read(name) for name in ("parts.safetensors", "parts.json")]
    if None in files:
        raise ValueError(
            "labeling.parts must be a folder that 'synthgen oneshot fit' has written. Got "
            f"{one_line(folder, 80)}, which holds no parts."
        )
    return hashlib.sha256(b"".join(file for file in files if file is not None)).hexdigest()


def config_digest(config: Config) -> str:
    """The sha256 of what determines the bytes of a dataset; loads no weights."""
    return Identity.of(config).digest


def model_content(config: ModelConfig) -> dict[str, Any]:
    """What of a model determines the bytes: its weights, and the defaults of its card."""
    from synthgen.diffusion.backbones import load_backbone

    model = load_backbone(config, weights=False)
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

    model = load_backbone(config.model, weights=False)
    return {
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": dict(_versions()),
    }


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"synthgen": __version__, **versions}


def environments_with(
    config: Config, existing: Mapping[str, Any] | None, strict: bool
) -> list[dict[str, Any]]:
    """The environments that a dataset was made in, ours among them.

    Of a processor what determines the last bits of sums; threads are those of the beginning.

    Args:
        config: Its configuration.
        existing: Content of its identity.json, None where it begins.
        strict: Refuse another environment than the dataset's.

    Raises:
        ValueError: If that is so.
    """
    import torch

    threads = None if existing is None else _threads(existing)
    here = environment(config) | {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": threads or torch.get_num_threads(),
    }
    known: list[dict[str, Any]] = [] if existing is None else existing["environments"]
    if not known or here in known:
        return known or [here]
    changed = list_keys(changed_keys(known[-1], here))
    if strict:
        raise ValueError(
            f"With --strict, the environment must be the one that the dataset was begun with. "
            f"Got a change of {changed}. Restore it, or leave out --strict."
        )
    logger.warning("Continued in another environment: %s. Bytes may differ from it.", changed)
    return [*known, here]


def keep_threads(existing: Mapping[str, Any]) -> None:
    """Compute on as many threads as the dataset was begun with, in whatever process this is.

    On two threads instead of one, images of one seed differ in single values. Stays in force.
    """
    import torch

    threads = _threads(existing)
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _threads(existing: Mapping[str, Any]) -> int | None:
    """Threads that a dataset was begun with; None where it does not say."""
    found = existing["environments"][0].get("threads") if existing["environments"] else None
    return found if isinstance(found, int) and 0 < found <= MAX_THREADS else None


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


def plan_of(config: Config) -> tuple[Any, ...]:
    """What decides which samples there are, beside what decides their bytes."""
    return config.num, config.extended, config.balance


def check_plan(storage: Storage, config: Config) -> None:
    """Refuse to publish under a plan that another run has replaced since ours began.

    The plan is the committed intent, ``num``, ``extended`` and ``balance`` in config.yaml; it only
    ever grows, so a run that was stopped for a while and goes on with an older one can be told.

    Raises:
        RuntimeError: If there is another plan.
    """
    existing = read_config(storage)
    if plan_of(existing) != plan_of(config):
        raise RuntimeError(
            f"The plan of {storage.root} must stay the {config.planned} samples of this run. Got "
            f"{existing.planned}, which another run has planned since. Complete shards are kept; "
            f"run with that plan to finish it."
        )


def check_drawn(existing: Mapping[str, Any], root: str) -> None:
    """Refuse to draw for a merged dataset, which has no one model, prompts and plan.

    Raises:
        ValueError: With its sources.
    """
    merged = existing["content"].get("merged")
    if merged:
        names = ", ".join(one_line(source["name"], 80) for source in merged)
        raise ValueError(
            f"{root} was merged from {names} and nothing can be drawn for it again. Got such a "
            f"request; repeat or extend its sources, and merge them into another folder."
        )


def check_model(existing: Mapping[str, Any], config: Config, root: str) -> None:
    """Refuse to make samples again with a model that is not the dataset's; keep its threads.

    Raises:
        ValueError: With the keys that differ.
    """
    keep_threads(existing)
    check_drawn(existing, root)
    ours = redact_tree(model_content(config.model))
    changed = changed_keys({name: existing["content"].get(name) for name in ours}, ours)
    if changed:
        raise ValueError(
            f"The model must be the one of the dataset. Got a change of {list_keys(changed)}."
        )
