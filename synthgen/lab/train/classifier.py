"""A small convolutional network that names the class and the colors of a single object.

It is trained on rendered scenes only and judges generated images; it never guides them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synthgen.embedded.vocabulary import CLASSES, COLORS

WIDTHS = (16, 32, 48, 64)
CLASSIFIED_AT_ONCE = 50  # images
FILE_NAME = "classifier.safetensors"


class SceneClassifier(nn.Module):
    """Four strided convolutions and one more, mean and maximum over positions, linear heads."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
        layers += [
            nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 3, 1, 1),
            nn.GroupNorm(8, WIDTHS[-1]),
            nn.ReLU(),
        ]
        self.trunk = nn.Sequential(*layers)
        self.class_head = nn.Linear(2 * WIDTHS[-1], len(CLASSES))
        self.color_head = nn.Linear(2 * WIDTHS[-1], len(COLORS))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, " batch kind"], Float[Tensor, " batch color"]]:
        """Logits of classes (softmax) and of colors (one sigmoid each).

        Args:
            images: sRGB in [-1, 1].
        """
        field = self.trunk(images)
        pooled = torch.cat([field.mean((2, 3)), field.amax((2, 3))], 1)
        return self.class_head(pooled), self.color_head(pooled)


def save_classifier(model: SceneClassifier, folder: Path) -> None:
    """Write the weights in fp16."""
    tensors = {name: t.detach().half().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, folder / FILE_NAME)


def load_classifier(folder: Path) -> SceneClassifier:
    """Classifier with the weights in `folder`, fp32, for inference."""
    model = SceneClassifier()
    model.load_state_dict({k: t.float() for k, t in load_file(folder / FILE_NAME).items()})
    return model.eval()


@torch.no_grad()
def classify(
    model: SceneClassifier, images: Float[Tensor, "batch 3 height width"]
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Most likely class and most likely color of each image, as indices."""
    pairs = [model(part) for part in torch.split(images, CLASSIFIED_AT_ONCE)]
    return torch.cat([c for c, _ in pairs]).argmax(1), torch.cat([k for _, k in pairs]).argmax(1)


def classifier_loss(
    logits: tuple[Tensor, Tensor],
    classes: Int[Tensor, " batch"],
    colors: Float[Tensor, " batch color"],
) -> Float[Tensor, ""]:
    """Cross entropy of the class plus binary cross entropy of each color."""
    class_logits, color_logits = logits
    smooth = F.cross_entropy(class_logits, classes, label_smoothing=0.02)
    return smooth + 2.0 * F.binary_cross_entropy_with_logits(color_logits, colors)
