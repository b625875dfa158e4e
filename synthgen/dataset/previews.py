"""Previews: what a sample looked like inside, kept for 1 in n samples.

``previews/train-000000.tar`` holds per sample ``KEY.kNN.png`` (label map per k, 8-bit, values
0..k-1), ``KEY.pca.png`` (first three principal components of all features as RGB) and
``KEY.upsampling.png`` (eq. 6, scaled to 0..255). They are for eyes: nothing reads them to train.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from synthgen.types import Segmentation

_MEMBER = re.compile(r"([0-9]{10,20})\.k([0-9]{2,3})\.png")


def preview_members(
    key: str,
    segmentation: Segmentation,
    pca: Float[np.ndarray, "height width 3"] | None = None,
    upsampling: Float[np.ndarray, "height width"] | None = None,
) -> dict[str, bytes]:
    """Tar members of one sample's preview, by file name.

    Args:
        key: Sample key.
        segmentation: Gives the label map of every k.
        pca: Component maps; each is scaled to 0..255.
        upsampling: Eq. 6; scaled to 0..255.
    """
    members = {
        f"{key}.k{k:02d}.png": _png(labels)
        for k, labels in zip(segmentation.ks, segmentation.labels, strict=True)
    }
    if pca is not None:
        members[f"{key}.pca.png"] = _png(np.stack([_scaled(c) for c in np.moveaxis(pca, 2, 0)], 2))
    if upsampling is not None:
        members[f"{key}.upsampling.png"] = _png(_scaled(upsampling))
    return members


def read_previews(root: Path) -> Mapping[str, Mapping[int, UInt8[np.ndarray, "height width"]]]:
    """Label maps by sample key and k, from every preview tar of a dataset."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for path in sorted((root / "previews").glob("train-*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match, file = _MEMBER.fullmatch(member.name), tar.extractfile(member)
                if match and file:
                    labels = np.asarray(Image.open(io.BytesIO(file.read())))
                    found.setdefault(match[1], {})[int(match[2])] = labels
    return found


def _scaled(values: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255.0 / max(high - low, 1e-12))).round().astype(np.uint8)


def _png(pixels: UInt8[np.ndarray, ...]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()
