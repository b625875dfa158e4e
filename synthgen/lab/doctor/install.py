"""Is this installation healthy? Looks in seconds, loads no model, asks no network.

Versions are compared with what the package itself requires, so that the caps that keep a Prefect
server starting and its schedules firing are read from one place. Values of environment variables
are not shown, but for the address of the Prefect server, whose secrets are taken out.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

import yaml
from packaging.requirements import Requirement

from synthgen import __version__
from synthgen.embedded.card import SHIPPED, read_card, weights_dir
from synthgen.prompts.files import PACKAGED, load_prompts
from synthgen.storage.redaction import redact

EXTRAS = ("ray", "dask", "s3", "opencv")
"""Extras that are judged where they are installed; those for developers are not."""

BREAKS: Mapping[str, str] = {
    "fastapi": "no Prefect server starts",
    "prefect": "flows were run with 3.8 only",
    "segment-anything": "audits were run with 1.0 only",
    "sqlalchemy": "cron schedules never fire",
    "torch": "compiled operators of torchvision do not load",
}
"""Package to what goes wrong with other versions of it (comments of pyproject.toml)."""

WEIGHTS = ("weights", "weights_sam", "weights_m2f", "weights_clip", "weights_blip")
DATA = ("diffusion/cards.yaml", "auditing/auditors.yaml")
TEMPLATES = "report/templates"

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variables that stop telemetry; ``import synthgen.flows`` sets those that are not set."""

LEAST_FREE, SCANT_FREE = 1e9, 10e9
"""Bytes: a staged shard of 64 images at 512 px is some 20 MB, SD 2.1's weights are 5.2 GB."""

MAX_REASON = 300
Status = Literal["ok", "note", "failed", "not run"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, of an installation or by a step of an examination.

    Args:
        text: In one line, secrets taken out.
        status: note: works, but should be known; failed: breaks something, or is not as it
            should be.
        table: Header and rows of the figures behind it.
        note: Said below the table.
        picture: Name of a picture beside the page.
        name: Of what was looked at; its caller gives it, with the time that it took.
        seconds: Wall time.
    """

    text: str
    status: Status = "ok"
    table: tuple[tuple[str, ...], ...] = ()
    note: str = ""
    picture: str = ""
    name: str = ""
    seconds: float = 0.0


def reason(error: BaseException) -> str:
    """An exception as one line that may be sent away: no secrets, no home folder, not endless.

    >>> reason(ValueError("no good:\\n  password=abc"))
    'no good: password=***'
    >>> reason(MemoryError())
    'MemoryError'
    """
    return shareable(" ".join(str(error).split()) or type(error).__name__)


def shareable(text: str) -> str:
    """A line without secrets and without the name of the home folder, cut to a length."""
    home = str(Path.home())
    return redact(text.replace(home, "~") if len(home) > 1 else text)[:MAX_REASON]


def examine_installation(folder: Path) -> list[Finding]:
    """Everything that can be said without running a model.

    Args:
        folder: Where datasets would be written.
    """
    places = {"the output folder": folder, "the temporary one": Path(tempfile.gettempdir())}
    checks: Mapping[str, Callable[[], Finding]] = {
        "versions": check_versions,
        "torch": check_torch,
        "Prefect": check_prefect,
        "embedded weights": check_weights,
        "package data": check_data,
        "disk": lambda: check_disk(places),
        "offline": lambda: check_environment(os.environ),
    }
    findings = []
    for name, check in checks.items():
        try:
            found = check()
        except Exception as error:  # an installation breaks in any way it likes
            found = Finding(f"{type(error).__name__}: {reason(error)}", "failed")
        findings.append(replace(found, name=name))
    return findings


def check_versions() -> Finding:
    """Installed versions against what ``synthgen`` and ``torchvision`` require."""
    pinned = [text for text in metadata.requires("torchvision") or () if text.startswith("torch")]
    needed = [*(metadata.requires("synthgen") or ()), *pinned]
    if problems := list(unmet(needed, installed_version)):
        return Finding("; ".join(problems), "failed")
    return Finding(
        f"synthgen {__version__}, Python {platform.python_version()}; all within bounds"
    )


def installed_version(package: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def unmet(requirements: Iterable[str], version: Callable[[str], str | None]) -> Iterator[str]:
    """What of a package's requirements does not hold, each with what goes wrong.

    Args:
        requirements: As the metadata of the package lists them.
        version: The installed version of a package, None without.

    >>> list(unmet(["fastapi<0.151", "numpy>=2"], {"fastapi": "0.163", "numpy": "2.4"}.get))
    ['fastapi must be <0.151, got 0.163: no Prefect server starts']
    """
    for text in requirements:
        needed = Requirement(text)
        extra = needed.marker is not None and not needed.marker.evaluate({"extra": ""})
        if extra and not any(needed.marker.evaluate({"extra": e}) for e in EXTRAS):  # type: ignore[union-attr]
            continue
        found = version(needed.name)
        if found is None and not extra:
            yield f"{needed.name} must be installed, got none"
        elif found is not None and not needed.specifier.contains(found, prereleases=True):
            broken = BREAKS.get(needed.name.lower())
            wish = f"{needed.name} must be {needed.specifier}, got {found}"
            yield f"{wish}: {broken}" if broken else wish


def check_torch() -> Finding:
    """Torch, the CUDA it was built for, and the devices it can use."""
    import torch

    devices = ["mps"] if torch.backends.mps.is_available() else []
    if torch.cuda.is_available():
        found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        devices = [f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in found]
    present = Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    return torch_finding(torch.__version__, torch.version.cuda, devices, present)


def torch_finding(
    version: str, built_for: str | None, devices: list[str], present: bool
) -> Finding:
    """What torch can use of a machine.

    Args:
        version: Of torch.
        built_for: CUDA version it was built for; None: without CUDA.
        devices: GPUs that it can use.
        present: Whether the machine has a GPU of NVIDIA's.

    >>> torch_finding("2.15.0", "13.0", [], present=True).status
    'failed'
    """
    about = f"{version}, {f'CUDA {built_for}' if built_for else 'no CUDA'}"
    if devices:
        return Finding(f"{about}; {', '.join(devices)}")
    if present:
        text = f"{about}: a GPU is there and cannot be used; compare nvidia-smi's CUDA"
        return Finding(text, "failed")
    return Finding(f"{about}; no GPU, {os.cpu_count()} CPU cores")


def check_prefect() -> Finding:
    """Whether the orchestrator imports, and where its server is."""
    importlib.import_module("synthgen.flows")  # switches its telemetry off
    version = importlib.import_module("prefect").__version__
    url = os.environ.get("PREFECT_API_URL")
    server = shareable(f"server at {url}") if url else "a server of its own for each run"
    return Finding(f"{version}; {server}")


def check_weights(names: Iterable[str] = WEIGHTS, parent: Path = SHIPPED.parent) -> Finding:
    """Every file of the embedded models against its sha256."""
    files = sum(len(read_card(weights_dir(parent / name))["sha256"]) for name in names)
    return Finding(f"{files} files have their sha256")


def check_data() -> Finding:
    """The files beside the code: cards, prompts, templates of the report."""
    package = resources.files("synthgen")
    for name in DATA:
        if not yaml.safe_load((package / name).read_text(encoding="utf-8")):
            raise ValueError(f"{name} must not be empty. Got an empty file; reinstall synthgen.")
    templates = [item.name for item in (package / TEMPLATES).iterdir() if ".j2" in item.name]
    if not templates:
        raise ValueError(f"{TEMPLATES} must hold templates. Got none; reinstall synthgen.")
    prompts = ", ".join(f"{len(load_prompts(name)):,} prompts in {name}" for name in PACKAGED)
    return Finding(f"{len(DATA)} tables, {len(templates)} templates, {prompts}")


def check_disk(places: Mapping[str, Path]) -> Finding:
    """Free space where datasets are written and where shards are staged; name to folder."""
    free = {name: shutil.disk_usage(folder).free for name, folder in places.items()}
    shown = ", ".join(f"{size / 1e9:.1f} GB free in {name}" for name, size in free.items())
    least = min(free.values())
    if least < LEAST_FREE:
        return Finding(f"{shown}; at least {LEAST_FREE / 1e9:.0f} GB is needed", "failed")
    return Finding(shown, "ok" if least >= SCANT_FREE else "note")


def check_environment(environment: Mapping[str, str]) -> Finding:
    """Whether weights may be fetched and telemetry is off; names of variables, no values.

    >>> check_environment({"HF_HUB_OFFLINE": "1", **QUIET}).text
    'the hub is not asked (HF_HUB_OFFLINE); telemetry is off'
    """
    set_to = [name for name in OFFLINE if _is_on(environment.get(name, ""))]
    hub = f"the hub is not asked ({', '.join(set_to)})" if set_to else "weights may be fetched"
    loud = [
        name for name, off in QUIET.items() if _is_on(environment.get(name, off)) != _is_on(off)
    ]
    if loud:
        return Finding(f"{hub}; telemetry is on by {', '.join(loud)}", "note")
    return Finding(f"{hub}; telemetry is off")


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on")
