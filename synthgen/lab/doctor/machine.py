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
from synthgen.lab.bench.capture import peak_bytes, reset_peak
from synthgen.lab.doctor.findings import Outcome, Status, StepReport, reason
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


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to try.

    Args:
        name: For people, and for the steps that need it.
        run: Does it; what it finds wrong it says or raises.
        needs: Steps without whose results it makes no sense.
    """

    name: str
    run: Callable[[Examination], Outcome]
    needs: tuple[str, ...] = ()


def prepare(
    card: str,
    path: Path | None,
    config: Config,
    auditor: AuditorConfig | None,
    out: Path,
    max_batch: int,
) -> Examination:
    """Settle what can be settled before the model is loaded.

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
    if path is not None:
        if not path.is_dir():
            raise ValueError(f"--path must be a folder in diffusers' layout. Got {path}.")
        find_card(str(path.resolve()))
    if auditor is not None:
        _check_auditor(auditor)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder. Got the file {out}.")
    source = card if path is None else str(path.resolve())
    settings = config.model_copy(
        update={
            "model": config.model.model_copy(update={"card": source}),
            "capture": config.capture.model_copy(update={"memory_budget_mb": UNLIMITED_MB}),
        }
    )
    samples = tuple(sample for spec in plan(settings) for sample in spec.samples)
    out.mkdir(parents=True, exist_ok=True)
    return Examination(known, settings, auditor, out, max_batch, samples)


def _check_auditor(auditor: AuditorConfig) -> None:
    """Refuse an unknown auditor, and a checkpoint that is not there."""
    if auditor.name not in AUDITORS and ":" not in auditor.name:
        resolve(auditor.name, AUDITORS, "auditor")
    given = auditor.checkpoint
    if given is None and auditor.name == "sam":
        raise ValueError("--auditor sam needs weights. Got none; give --checkpoint FILE.")
    if given is None or Path(given).expanduser().exists() or auditor.revision is not None:
        return
    folder = Path(given).expanduser().parent
    near = sorted(p.name for p in folder.glob("*")) if folder.is_dir() else []
    raise ValueError(
        f"--checkpoint must be an existing file or folder. Got {given}."
        f"{near_miss(Path(given).name, near)}"
    )


def run_steps(
    examination: Examination,
    steps: Sequence[Step],
    show: Callable[[Sequence[StepReport]], object],
) -> list[StepReport]:
    """Run the steps in order.

    Args:
        examination: What they work on.
        steps: Which.
        show: Called with the reports so far, after every step.

    Returns:
        One report per step.
    """
    reports: list[StepReport] = []
    broken: set[str] = set()
    for number, step in enumerate(steps, 1):
        report("step", name=step.name, number=number, of=len(steps), state="begun")
        missing = [name for name in step.needs if name in broken]
        done = _not_run(step, missing) if missing else _run(step, examination, broken)
        if missing:
            broken.add(step.name)
        reports.append(done)
        show(reports)
        about = {"state": done.status, "text": done.outcome.text}
        report("step", name=step.name, seconds=round(done.seconds, 1), **about)
    return reports


def _not_run(step: Step, missing: Sequence[str]) -> StepReport:
    return StepReport(step.name, "not run", Outcome(f"needs {', '.join(missing)}", ok=False))


def _run(step: Step, examination: Examination, broken: set[str]) -> StepReport:
    """One step, timed, its memory watched; ``broken`` gets its name if it raises."""
    reset_peak(examination.on_gpu)
    started = time.perf_counter()
    try:
        outcome = step.run(examination)
    except Exception as error:  # whatever it is, the other steps go on
        broken.add(step.name)
        outcome = Outcome(reason(error), ok=False)
    seconds = time.perf_counter() - started
    status: Status = "ok" if outcome.ok else "failed"
    return StepReport(step.name, status, outcome, seconds, peak_bytes(examination.on_gpu))


def with_card(backbone: Backbone, card: Card) -> Backbone:
    """A backbone under the card that is examined: a local folder may hold any card's weights."""
    own = backbone.card
    if own.name != "local" or card.name == "local":
        return backbone
    return replace(
        backbone, card=card.model_copy(update={"sha256": {**card.sha256, **own.sha256}})
    )
