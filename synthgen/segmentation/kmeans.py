"""Exact k-means at image resolution, for all k, restarts and images at once (BL section 4.1).

The features of a pixel are the bilinearly upsampled grids, concatenated. Lloyd's iteration needs
of them only which centroid is nearest to each pixel and the sum of each cluster's features;
an ``Engine`` answers both without building the features. Three engines give the same labels:

- `knots.KnotEngine`: opens only the cells that a border crosses; its cost hardly depends on the
  resolution. The default.
- `implicit.ImplicitEngine`: upsamples scores, not features; any size, nearest or bilinear.
- `explicit.ExplicitEngine`: the features in full, the plain reference.

Decided here: seeding (`seeding`), convergence as in scikit-learn (squared shift of all centroids
of a run at most ``tolerance`` times the mean variance of the features), an empty cluster keeps
its centroid (its seed was a pixel, so it is empty only among equal pixels, where a new seed would
be empty again), the restart of least inertia wins, the first of equals. Same input, same labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from synthgen.config import ClusterConfig
from synthgen.segmentation import explicit, implicit, knots
from synthgen.segmentation.interpolation import Interpolation
from synthgen.segmentation.seeding import seed_centroids
