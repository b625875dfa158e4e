"""Train a segmenter on a synthgen dataset with nothing but PyTorch.

python examples/plain_pytorch.py data/scenes --steps 200
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import synthgen
from synthgen.dataset.labels import class_names


def to_tensors(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (float, -1..1) and classes (255: ignore); called in the loader's workers."""
    image = torch.from_numpy(sample["image"]).permute(2, 0, 1) / 127.5 - 1
    return image, torch.from_numpy(sample["semantic"]).long()


def make_model(num_classes: int) -> nn.Module:
    """A few convolutions; put your own network here."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(16, num_classes, 1),
    )


def train(directory: str, steps: int = 200, batch_size: int = 4, workers: int = 0) -> list[float]:
    """Train; returns the loss of every step."""
    num_classes = 1 + max(number for number in class_names(directory) if number != 255)
    torch.manual_seed(0)
    dataset = synthgen.open_dataset(directory, masks=False, shuffle=64, transform=to_tensors)
    loader = DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0
    )
    model = make_model(num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses: list[float] = []
    while len(losses) < steps:  # an epoch, in another order each time
        for images, classes in loader:
            loss = nn.functional.cross_entropy(model(images), classes, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    found = train(given.directory, given.steps, workers=given.workers)
    print(f"loss {found[0]:.3f} -> {found[-1]:.3f}")
