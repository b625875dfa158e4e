"""Recipe of scenes-sam: promptable segmentation on rendered scenes.

Loss of SAM (Kirillov et al. 2023, appendix A): 20 focal + dice per mask, squared error of the
predicted IoU. SAM trains the best of three outputs because SA-1B knows one mask per prompt; a
rendered point has three, so outputs 1 to 3 always answer part, object and group: three times
the signal, and no output lies idle. Boxes train the single output 0. For speed on a CPU, some
ten prompts share one pass of the encoder, and a linear head on its embedding, thrown away later,
names the part of each pixel and points to its object's center.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from synthgen.lab.train.sam_prompts import NUM_BOXES, NUM_POINTS, PromptBatch, draw_batch
from synthgen.lab.train.trainer import Settings, Trainer
from synthgen.lab.world.corpus import TruthCorpus

FOCAL_WEIGHT = 20.0
"""Focal to dice loss, 20:1 (Kirillov et al. 2023, section 3)."""

FOCAL_GAMMA = 2.0
BOX_WEIGHT, AUXILIARY_WEIGHT = 0.5, 0.5
WEIGHT_DECAY = 0.02
_SUBPIXELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SamSettings(Settings):
    """How scenes-sam is trained."""

    batch: int = 8


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


class SamTrainer(Trainer):
    """Model, auxiliary head, optimizer and average while they are trained; only matrices decay.

    Args:
        corpus: What batches are drawn from.
        settings: How.
    """

    def __init__(self, corpus: TruthCorpus, settings: SamSettings):
        torch.manual_seed(settings.seed)
        self.corpus, self.trainee = corpus, SamTrainee().to(settings.device)
        live = [p for p in self.trainee.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in live if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in live if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.98), fused=True)
        averaged = {"ema_sam": self.trainee.sam}
        super().__init__(settings, {"model": self.trainee}, optimizer, averaged)

    def start(self, weights: Path) -> None:
        """Go on from exported weights; optimizer and auxiliary head begin anew."""
        self.trainee.sam.load_state_dict(load_folder(weights).state_dict())
        self.averages["ema_sam"].load(dict(self.trainee.sam.named_parameters()))

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Loss of a share of a batch, see `promptable_loss`."""
        s = self.settings
        batch = draw_batch(self.corpus, s.seed, step, range(s.batch)[rank::workers])
        return promptable_loss(self.trainee, batch.to(s.device), s.bf16)
