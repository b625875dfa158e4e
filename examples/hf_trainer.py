"""Train a SegFormer from scratch with the Hugging Face Trainer.

python examples/hf_trainer.py data/scenes --steps 500 --out segformer
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
)

import synthgen
from synthgen.dataset.labels import class_names


def to_inputs(sample: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What SegFormer's ``forward`` takes; it ignores label 255 by itself."""
    image = torch.from_numpy(sample["image"]).permute(2, 0, 1) / 127.5 - 1
    return {"pixel_values": image, "labels": torch.from_numpy(sample["semantic"]).long()}


def make_model(names: dict[int, str]) -> SegformerForSemanticSegmentation:
    """A SegFormer of a few hundred thousand weights; labels are the ids of classes.json."""
    id2label = {number: names.get(number, str(number)) for number in range(max(names) + 1)}
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 64],
        decoder_hidden_size=64,
        id2label=id2label,
        label2id={name: number for number, name in id2label.items()},
        semantic_loss_ignore_index=255,
    )
    return SegformerForSemanticSegmentation(config)


def train(directory: str, out: str | Path, steps: int = 500, batch_size: int = 4) -> list[float]:
    """Train and save; returns the logged losses."""
    names = {number: name for number, name in class_names(directory).items() if number != 255}
    torch.manual_seed(0)
    settings = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,  # the stream has no length
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )
    dataset = synthgen.open_dataset(directory, masks=False, shuffle=64, transform=to_inputs)
    trainer = Trainer(model=make_model(names), args=settings, train_dataset=dataset)
    trainer.train()
    trainer.save_model(str(out))
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--out", default="segformer")
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    found = train(given.directory, given.out, given.steps)
    print(f"loss {found[0]:.3f} -> {found[-1]:.3f}")
