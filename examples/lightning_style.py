"""Train in the style of Lightning: a module that knows its step, data that knows its loaders.

Both classes have Lightning's methods and nothing else; with it installed, derive them from
``lightning.LightningModule`` and ``lightning.LightningDataModule`` and replace ``fit`` by
``lightning.Trainer(max_steps=...).fit(module, data)``.

python examples/lightning_style.py data/scenes --audited scenes-sam-0a1b2c3d
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import synthgen
from synthgen.dataset.labels import class_names

Batch = tuple[torch.Tensor, torch.Tensor]


def to_tensors(sample: dict[str, Any]) -> Batch:
    """Image (float, -1..1) and classes, flipped at random: an augmentation belongs here."""
    image = torch.from_numpy(sample["image"]).permute(2, 0, 1) / 127.5 - 1
    classes = torch.from_numpy(sample["semantic"]).long()
    if torch.rand(()) < 0.5:
        image, classes = image.flip(-1), classes.flip(-1)
    return image, classes


class DatasetModule:
    """Loaders; with an audit, only what it keeps."""

    def __init__(self, directory: str, audited: str | None = None, batch_size: int = 4) -> None:
        self.directory, self.audited, self.batch_size = directory, audited, batch_size
        self.num_classes = 1 + max(number for number in class_names(directory) if number != 255)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled samples; shards are split over ranks and workers."""
        dataset = synthgen.open_dataset(
            self.directory,
            masks=False,
            shuffle=64,
            audited=self.audited,
            transform=to_tensors,
        )
        return DataLoader(dataset, batch_size=self.batch_size)


class SegmentationModule(nn.Module):
    """A small network with its loss and its optimizer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, num_classes, 1)
        )

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        """The loss of a batch; undecided pixels (255) do not count."""
        images, classes = batch
        return nn.functional.cross_entropy(self.net(images), classes, ignore_index=255)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(module: SegmentationModule, data: DatasetModule, max_steps: int) -> list[float]:
    """What ``lightning.Trainer.fit`` does, as far as one CPU needs it."""
    optimizer, loader = module.configure_optimizers(), data.train_dataloader()
    losses: list[float] = []
    while len(losses) < max_steps:
        for index, batch in enumerate(loader):
            loss = module.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == max_steps:
                break
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--audited")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.manual_seed(0)
    data = DatasetModule(given.directory, given.audited)
    found = fit(SegmentationModule(data.num_classes), data, given.steps)
    print(f"loss {found[0]:.3f} -> {found[-1]:.3f}")
