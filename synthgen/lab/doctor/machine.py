"""What a machine can do with a card: steps one after the other, none of which stops the next.

The page is written after every step, so that what was measured stands even where the system kills
a process that took too much memory. A step that raises is reported with its reason in one line;
steps that need what it would have made are reported as not run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from synthgen.config import AuditorConfig, Config
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.cards import Card, find_card, load_cards
from synthgen.jobs.plan import batches, plan
from synthgen.lab.doctor.install import Finding, reason
from synthgen.lab.memory import peak_bytes, reset_peak
from synthgen.progress import report
from synthgen.registry import AUDITORS, near_miss, resolve
from synthgen.types import PlannedSample, Sample, Segmentation

UNLIMITED_MB = 1e9
"""Captures are not refused here: how much fits is what is asked."""


@dataclass(slots=True)
class Examination:
    """What is examined, and what the steps leave for each other.

    Args:
        card: The card whose hashes and heads are expected.
        config: Model, prompts, settings.
        auditor: Who says what is in the images; None: nobody.
        out: Folder of the page.
        max_batch: Largest batch that is tried.
        samples: What is drawn.
        backbone: The model, once it is loaded.
        batch: Images per UNet call that images are drawn with.
        plain: Images drawn without capture; None in place of one that failed.
        captured: The same with capture.
        segmentations: Of ``captured``.
        seconds: By what was done with all images.
    """

    card: Card
    config: Config
    auditor: AuditorConfig | None
    out: Path
    max_batch: int
    samples: tuple[PlannedSample, ...]
    backbone: Backbone | None = None
    batch: int = 1
    plain: list[UInt8[np.ndarray, "_height _width 3"] | None] = field(default_factory=list)
    captured: list[Sample] = field(default_factory=list)
    segmentations: list[Segmentation] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def model(self) -> Backbone:
        """The loaded model."""
        assert self.backbone is not None, "steps that use the model need the step 'load'"
        return self.backbone

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a CUDA device."""
        return self.backbone is not None and self.backbone.device.type == "cuda"

    def batches(self) -> list[tuple[PlannedSample, ...]]:
        """The samples in the batches that they are drawn in."""
        return list(batches(self.samples, self.batch))


Step = tuple[str, Callable[[Examination], Finding], tuple[str, ...]]
"""Name, what is done, and the steps without whose results it makes no sense."""


def prepare(
    card: str,
    path: Path | None,
    config: Config,
    auditor: AuditorConfig | None,
    out: Path,
    max_batch: int,
) -> Examination:
    """Check what can be checked before the model is loaded.

    Args:
        card: Row of ``cards.yaml``, local folder, or hub id.
        path: Folder of the card's weights; None: where the card says.
        config: Prompts, number of images, settings; its card is replaced.
        auditor: Who looks at the images; None: nobody.
        out: Folder of the page; made if it is missing.
        max_batch: Largest batch that is tried.

    Raises:
        ValueError: In one line, for what the user must correct.
    """
    known = load_cards().get(card) or find_card(card)[0]
    source = card if path is None else str(path.resolve())
    if path is not None:
        if not path.is_dir():
            raise ValueError(f"--path must be a folder in diffusers' layout. Got {path}.")
        find_card(source)
    if auditor is not None:
        _check_auditor(auditor)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder. Got the file {out}.")
    model = config.model.model_copy(update={"card": source})
    capture = config.capture.model_copy(update={"memory_budget_mb": UNLIMITED_MB})
    config = config.model_copy(update={"model": model, "capture": capture})
    samples = tuple(sample for spec in plan(config) for sample in spec.samples)
    out.mkdir(parents=True, exist_ok=True)
    return Examination(known, config, auditor, out, max_batch, samples)


def _check_auditor(auditor: AuditorConfig) -> None:
    """Refuse an unknown auditor, and a checkpoint that is not there."""
    if auditor.name not in AUDITORS and ":" not in auditor.name:
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


def run_steps(
    examination: Examination,
    steps: Sequence[Step],
    show: Callable[[Sequence[Finding]], object],
) -> list[Finding]:
    """Run the steps in order.

    Args:
        examination: What they work on.
        steps: Which.
        show: Called with what was found so far, after every step.
    """
    done: list[Finding] = []
    broken: set[str] = set()
    for number, (name, run, needs) in enumerate(steps, 1):
        report("step", name=name, number=number, of=len(steps), state="begun")
        reset_peak(examination.on_gpu)
        started = time.perf_counter()
        try:
            missing = [need for need in needs if need in broken]
            found = (
                Finding(f"needs {', '.join(missing)}", "not run") if missing else run(examination)
            )
        except Exception as error:  # whatever it is, the other steps go on
            missing, found = [name], Finding(reason(error), "failed")
        if missing:
            broken.add(name)
        seconds, peak = time.perf_counter() - started, peak_bytes(examination.on_gpu)
        done.append(replace(found, name=name, seconds=seconds, peak_bytes=peak))
        show(done)
        about = {"state": found.status, "text": found.text}
        report("step", name=name, seconds=round(seconds, 1), **about)
    return done
