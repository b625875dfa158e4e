"""Recipe of scenes-sam: promptable segmentation on rendered scenes.

Loss of SAM (Kirillov et al. 2023, appendix A): 20 focal + dice per mask, squared error of the
predicted IoU. SAM trains the best of three outputs because SA-1B knows one mask per prompt; a
rendered point has three, so outputs 1 to 3 always answer part, object and group: three times
the signal, and no output lies idle. Boxes train the single output 0. For speed on a CPU, some
ten prompts share one pass of the encoder, and a linear head on its embedding, thrown away later,
names the part of each pixel and points to its object's center.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import Sam
from torch import Tensor, nn

from synthgen.embedded.sam import (
    DECODER_DIM,
    build_scenes_sam,
    decode_prompts,
    embed_boxes,
    embed_points,
    encode_images,
    freeze_untrained,
    load_folder,
)
from synthgen.embedded.vocabulary import PARTS
from synthgen.lab.train import checkpoint
from synthgen.lab.train.loop import WARM_UP, Progress, run_steps, set_learning_rate
from synthgen.lab.train.sam_data import NUM_BOXES, NUM_POINTS, PromptBatch, draw_batch
from synthgen.lab.world.parallel import GradientWorkers
from synthgen.lab.world.truth_corpus import TruthCorpus

FOCAL_WEIGHT = 20.0
"""Focal to dice loss, 20:1 (Kirillov et al. 2023, section 3)."""

FOCAL_GAMMA = 2.0
BOX_WEIGHT, AUXILIARY_WEIGHT = 0.5, 0.5
_SUBPIXELS = 4


@dataclass(frozen=True, slots=True)
class SamSettings:
    """How scenes-sam is trained: see `LdmSettings` for the meaning of the fields."""

    steps: int
    batch: int = 8
    lr: float = 1e-3
    decay_share: float = 0.4
    weight_decay: float = 0.02
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    warm_up: int = WARM_UP
    ema_decay: float = 0.998
    workers: int = 1
    save_every_s: float = 180.0

    def __post_init__(self) -> None:
        if self.batch % self.workers:
            raise ValueError(
                f"batch must be a multiple of workers, which share it. Got {self.batch} and "
                f"{self.workers}."
            )


class SamTrainee(nn.Module):
    """The model with the auxiliary head that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.sam: Sam = build_scenes_sam()
        freeze_untrained(self.sam)
        channels = (len(PARTS) + 1 + 2) * _SUBPIXELS**2
        self.auxiliary = nn.Conv2d(DECODER_DIM, channels, 1)

    def describe(
        self, embeddings: Float[Tensor, "image dim grid grid"]
    ) -> tuple[Float[Tensor, "image part low low"], Float[Tensor, "image 2 low low"]]:
        """Logits of the parts, and offsets to the object's center."""
        dense = F.pixel_shuffle(self.auxiliary(embeddings).float(), _SUBPIXELS)
        return dense[:, :-2], dense[:, -2:]


def enlarge_phase(
    logits: Float[Tensor, "mask 1 low low"], phase_yx: Int[Tensor, "mask 2"]
) -> Float[Tensor, "mask 1 low low"]:
    """Every second pixel of the logits enlarged twofold, from the given first row and column.

    Bilinear interpolation to twice the size puts a pixel a quarter of the way to one neighbor,
    the one before for even rows and columns, the one after for odd ones.
    """
    for axis in (2, 3):
        size = logits.shape[axis]
        at = torch.arange(size, device=logits.device)
        before = logits.index_select(axis, (at - 1).clamp(min=0))
        after = logits.index_select(axis, (at + 1).clamp(max=size - 1))
        odd = (phase_yx[:, axis - 2] > 0)[:, None, None, None]
        logits = 0.75 * logits + 0.25 * torch.where(odd, after, before)
    return logits


def mask_loss(
    logits: Float[Tensor, "mask pixel"], truth: Bool[Tensor, "mask pixel"]
) -> Float[Tensor, " mask"]:
    """20 focal + dice loss of each mask.

    Focal: mean of ``(1 - p_t)^2 * -log(p_t)`` (Lin et al. 2017, eq. 4), p_t the probability of
    what is true; without its class weight, which would shrink the masks. Dice: ``1 - 2 |PT| /
    (|P| + |T|)`` with 1 added above and below (Milletari et al. 2016).
    """
    wanted = truth.to(logits.dtype)
    toward = logits * (2.0 * wanted - 1.0)
    focal = (torch.sigmoid(-toward).pow(FOCAL_GAMMA) * F.softplus(-toward)).mean(1)
    probability = torch.sigmoid(logits)
    overlap = (probability * wanted).sum(1)
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum(1) + wanted.sum(1) + 1.0)
    return FOCAL_WEIGHT * focal + dice


@torch.no_grad()
def mask_iou(
    logits: Float[Tensor, "mask pixel"], truth: Bool[Tensor, "mask pixel"]
) -> Float[Tensor, " mask"]:
    """IoU of the thresholded masks; 1 where both are empty."""
    found = logits > 0
    union = (found | truth).sum(1)
    return torch.where(union > 0, (found & truth).sum(1) / union.clamp(min=1), 1.0)


def promptable_loss(
    trainee: SamTrainee, batch: PromptBatch, bf16: bool = False
) -> Float[Tensor, ""]:
    """Loss of a batch: masks of points and boxes, predicted IoU, auxiliary head."""
    sam, device = trainee.sam, batch.images.device
    points = embed_points(sam, batch.points_xy.flatten(0, 1))
    boxes = embed_boxes(sam, batch.boxes_xyxy.flatten(0, 1))
    images = torch.arange(len(batch.images), device=device)
    owner = torch.cat([images.repeat_interleave(NUM_POINTS), images.repeat_interleave(NUM_BOXES)])
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        embeddings = encode_images(sam, batch.images)
        logits, predicted = decode_prompts(sam, embeddings, torch.cat([points, boxes]), owner)
        parts, offsets = trainee.describe(embeddings)
    logits, predicted, num = logits.float(), predicted.float(), len(points)
    phase = batch.phase_yx[owner]
    asked = _answer_loss(
        logits[:num, 1:], predicted[:num, 1:], phase[:num], batch.point_masks.flatten(0, 1)
    )
    boxed = _answer_loss(
        logits[num:, :1], predicted[num:, :1], phase[num:], batch.box_masks.flatten(0, 1)[:, None]
    )
    return asked + BOX_WEIGHT * boxed + AUXILIARY_WEIGHT * auxiliary_loss(parts, offsets, batch)


def _answer_loss(
    logits: Float[Tensor, "prompt output low low"],
    predicted_iou: Float[Tensor, "prompt output"],
    phase_yx: Int[Tensor, "prompt 2"],
    truth: Bool[Tensor, "prompt output low low"],
) -> Float[Tensor, ""]:
    """Mean mask loss and squared error of the predicted IoU, each output with its own answer."""
    phases = phase_yx.repeat_interleave(logits.shape[1], 0)
    pixels = enlarge_phase(logits.flatten(0, 1)[:, None], phases).flatten(1)
    answers = truth.flatten(0, 1).flatten(1)
    error = F.mse_loss(predicted_iou.flatten(), mask_iou(pixels, answers))
    return mask_loss(pixels, answers).mean() + error


def auxiliary_loss(
    parts: Float[Tensor, "image part low low"],
    offsets: Float[Tensor, "image 2 low low"],
    batch: PromptBatch,
) -> Float[Tensor, ""]:
    """Cross-entropy of the parts and, on objects, absolute error of the offsets.

    All terms of the loss are means over images, so that a batch may be shared out.
    """
    inside = batch.parts > 0
    error = (offsets - batch.offsets).abs().sum(1) * inside
    distance = error.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return F.cross_entropy(parts, batch.parts) + distance.mean()


@dataclass(slots=True)
class SamState:
    """Everything that a checkpoint holds."""

    trainee: SamTrainee
    optimizer: torch.optim.Optimizer
    average: checkpoint.Average
    step: int = 0
    samples: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)


def create_state(settings: SamSettings) -> SamState:
    """Fresh model and optimizer; only matrices decay."""
    torch.manual_seed(settings.seed)
    trainee = SamTrainee().to(settings.device)
    live = [p for p in trainee.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in live if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in live if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.98), fused=True)
    return SamState(trainee, optimizer, checkpoint.Average(trainee.sam, settings.ema_decay))


def save_training(state: SamState, folder: Path, settings: SamSettings) -> None:
    """Write model, average and optimizer."""
    tensors = {
        **checkpoint.prefixed("model.", state.trainee.state_dict()),
        **checkpoint.prefixed("ema_sam.", state.average.state()),
        **checkpoint.prefixed("optimizer.", checkpoint.optimizer_state(state.optimizer)),
    }
    meta: dict[str, Any] = {"step": state.step, "samples": state.samples, "curve": state.curve}
    checkpoint.save_state(folder, tensors, {**meta, "settings": asdict(settings)})


def load_training(state: SamState, folder: Path) -> bool:
    """Continue from the checkpoint in `folder`; False where there is none."""
    found = checkpoint.load_state(folder)
    if found is None:
        return False
    tensors, meta = found
    state.trainee.load_state_dict(checkpoint.subset(tensors, "model."))
    state.average.load(checkpoint.subset(tensors, "ema_sam."))
    checkpoint.load_optimizer(state.optimizer, checkpoint.subset(tensors, "optimizer."))
    state.step, state.samples = meta["step"], meta["samples"]
    state.curve = [tuple(row) for row in meta["curve"]]
    return True


def averaged_sam(folder: Path) -> tuple[Sam, dict[str, Any]]:
    """The model of a checkpoint with its averaged weights, and the checkpoint's meta.

    Raises:
        FileNotFoundError: If the model was not trained yet.
    """
    found = checkpoint.load_state(folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder} must hold a checkpoint. Got none; run `python -m synthgen.lab.train sam "
            f"--steps N --work {folder.parent}` first."
        )
    tensors, meta = found
    sam = build_scenes_sam()
    live = checkpoint.subset(tensors, "model.sam.")
    sam.load_state_dict({**live, **checkpoint.subset(tensors, "ema_sam.")})
    return sam.eval(), meta


def _train_step(state: SamState, workers: GradientWorkers, settings: SamSettings) -> float:
    """One update of model and average; returns the loss."""
    s = settings
    set_learning_rate(state.optimizer, state.step, s.steps, s.lr, s.decay_share, s.warm_up)
    loss = workers.backward(state.step)
    nn.utils.clip_grad_norm_(workers.parameters, 1.0)
    state.optimizer.step()
    state.step += 1
    state.samples += settings.batch
    state.average.update(state.step)
    return loss


def start_from_weights(state: SamState, folder: Path) -> None:
    """Go on from exported weights; optimizer and auxiliary head begin anew."""
    state.trainee.sam.load_state_dict(load_folder(folder).state_dict())
    state.average.load(dict(state.trainee.sam.named_parameters()))


def train_sam(
    corpus: TruthCorpus, folder: Path, settings: SamSettings, weights: Path | None = None
) -> Iterator[Progress]:
    """Train up to `settings.steps`, resuming from `folder`.

    Args:
        corpus: What batches are drawn from.
        folder: Checkpoint folder.
        settings: How.
        weights: Exported folder to start from where `folder` holds no checkpoint.
    """
    state = create_state(settings)
    if not load_training(state, folder) and weights is not None:
        start_from_weights(state, weights)

    def partial_loss(step: int, rank: int, workers: int) -> Tensor:
        numbers = range(settings.batch)[rank::workers]
        batch = draw_batch(corpus, settings.seed, step, numbers).to(settings.device)
        return promptable_loss(state.trainee, batch, settings.bf16)

    def save(_step: int) -> None:
        save_training(state, folder, settings)

    parameters = [p for p in state.trainee.parameters() if p.requires_grad]
    with GradientWorkers(parameters, partial_loss, settings.workers) as workers:

        def update(_step: int) -> float:
            return _train_step(state, workers, settings)

        steps, save_every = settings.steps, settings.save_every_s
        for progress in run_steps(update, save, state.step, steps, save_every):
            state.curve.append((progress.step, round(progress.loss, 5)))
            yield progress
