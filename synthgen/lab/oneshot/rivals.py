"""Rivals on the same head features, from the same examples: nearest centroid, and an MLP.

What the heads wrote in one UNet call at the timestep of the parts, with an empty prompt, all
layers brought to one grid and side by side: a vector for each place (SegDDPM, Baranchuk et al.
2021, reads a diffusion model's activations so). Each feature is scaled by its mean and deviation
over the examples. The MLP is SegDDPM's: layers of 128 and 32 with ReLU and batch norm, Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from synthgen.diffusion.attention import record
from synthgen.oneshot.attending import ClassReader, resized
from synthgen.oneshot.learn import resize_mask
from synthgen.types import IGNORE

GRID = 64  # places per side that are learned and classified
STEPS, BATCH, LR = 300, 1024, 1e-3

Features = Float[Tensor, "feature row column"]
Classifier = Callable[[Features], Float[Tensor, "cls row column"]]


@torch.no_grad()
def head_features(
    reader: ClassReader, image: UInt8[np.ndarray, "height width 3"], timestep: int, seed: int
) -> Features:
    """Head outputs of down and up layers for each place of a grid of `GRID` squared."""
    shown = resized(image, reader.working_size((image.shape[0], image.shape[1])))
    unet = reader.pipe.unet
    with record(unet, "both", map_layers=None, num_calls=1, guided=False) as recording:
        reader(reader.encode(shown), timestep, [seed], reader.text_states(""), 1)
    found = recording.features()[0]
    planes = [
        F.interpolate(
            value.movedim(1, 2).reshape(1, -1, *found.grids[name]),
            size=(GRID, GRID),
            mode="bilinear",
            align_corners=False,
        )[0]
        for name, value in found.values.items()
    ]
    return torch.cat(planes)


def labeled_places(
    examples: Sequence[tuple[Features, UInt8[np.ndarray, "height width"]]],
) -> tuple[Float[Tensor, "place feature"], Int[Tensor, " place"]]:
    """Features and classes of the places of all examples that are annotated."""
    rows, classes = [], []
    for features, mask in examples:
        own = resize_mask(torch.from_numpy(mask.astype(np.int64)), (GRID, GRID)).flatten()
        rows.append(features.flatten(1).T[own != IGNORE])
        classes.append(own[own != IGNORE])
    return torch.cat(rows), torch.cat(classes)


def nearest_centroid(
    places: Float[Tensor, "place feature"], classes: Int[Tensor, " place"], num_classes: int
) -> Classifier:
    """The class whose mean feature has the smallest angle to a place's."""
    mean, deviation = places.mean(0), places.std(0).clamp(min=1e-6)
    scaled = F.normalize((places - mean) / deviation, dim=1)
    centers = torch.stack([scaled[classes == k].mean(0) for k in range(num_classes)])
    centers = F.normalize(centers, dim=1)

    def classify(features: Features) -> Float[Tensor, "cls row column"]:
        own = (features - mean[:, None, None]) / deviation[:, None, None]
        return torch.einsum("kf,fhw->khw", centers, F.normalize(own, dim=0))

    return classify


def train_mlp(
    places: Float[Tensor, "place feature"],
    classes: Int[Tensor, " place"],
    num_classes: int,
    seed: int,
) -> Classifier:
    """SegDDPM's network of three layers, trained on the annotated places."""
    mean, deviation = places.mean(0), places.std(0).clamp(min=1e-6)
    scaled = (places - mean) / deviation
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(scaled.shape[1], 128), nn.ReLU(), nn.BatchNorm1d(128)),
        *(nn.Linear(128, 32), nn.ReLU(), nn.BatchNorm1d(32)),
        nn.Linear(32, num_classes),
    )
    optimizer = torch.optim.Adam(model.parameters(), LR)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        batch = torch.randint(len(scaled), (BATCH,), generator=rng)
        loss = F.cross_entropy(model(scaled[batch]), classes[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    model.eval()

    @torch.no_grad()
    def classify(features: Features) -> Float[Tensor, "cls row column"]:
        own = (features.flatten(1).T - mean) / deviation
        scores: Tensor = model(own).softmax(1).T
        return scores.reshape(num_classes, *features.shape[1:])

    return classify
