"""Exact k-means on the knot grid against scikit-learn on the features in full, in one run.

Both start from the same pixels and do the same number of iterations on the same threads. Times
are wall clock and interleaved (ours, scikit-learn, ours, ...), so that another load on the
machine falls on both; medians are compared. Building the features in full is not counted
against scikit-learn; building our engine and painting the labels is counted against us.

Labels are compared with plain Lloyd from the same start after the same final assignment. Where
the features in full would not fit, every n-th feature takes part in that comparison (exactness
does not depend on how many there are); standard error says so.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from synthgen.lab.bench.explicit import ExplicitEngine, materialize
from synthgen.lab.bench.quality import embedded_features
from synthgen.lab.memory import peak_bytes, reset_peak
from synthgen.lab.processes import in_processes
from synthgen.segmentation.features import head_blocks
from synthgen.segmentation.interpolation import Interpolant
from synthgen.segmentation.kmeans import KS, cluster
from synthgen.segmentation.knots import KnotEngine
from synthgen.segmentation.lloyd import Solution, lloyd
from synthgen.types import HeadFeatures

Blocks = list[Float[Tensor, "_height _width _feature"]]

ITERATIONS = 10
SD21_UP = ((16, 480), (32, 240), (64, 120))
"""Grid and features of SD 2.1's up layers at 8 components: 3 x (20, 10, 5) heads (BL table 1)."""

SMOOTH = ((8, 0.05), (8, 0.05), (8, 0.05))
"""Per grid: nodes per independent value, and standard deviation of noise per node."""
ROUGH = ((2, 0.05), (4, 2.7), (8, 5.5))
"""Noise that gives 15-25 % of boundary cells at 512 x 512, as captured features do."""

FULL_BYTES = {torch.float32: 900_000_000, torch.float64: 250_000_000}
"""Largest tensor of features that plain Lloyd is run on; all features at 512 x 512 in float32."""


def bench_kmeans(embedded: HeadFeatures | None = None, quick: bool = False) -> dict[str, Any]:
    """Times, agreement, memory and inertia of the knot grid against scikit-learn.

    Args:
        embedded: Features captured from the embedded model; captured here by default.
        quick: Smaller images; for a check that the bench runs.
    """
    sizes, top = ((128, 256), 256) if quick else ((256, 512, 1024), 512)
    smooth, rough = made_blocks(SMOOTH), made_blocks(ROUGH)
    captured = [block.cpu() for block in head_blocks(embedded or embedded_features())]
    result: dict[str, Any] = {
        "smooth": {
            str(size): _measure(f"smooth {size}", smooth, size, size <= top) for size in sizes
        },
        "rough": {str(top): _measure(f"rough {top}", rough, top)},
        "embedded": {str(top): _measure(f"embedded {top}", captured, top)},
    }
    result["peak_extra_ratio"] = _peak_extra("knot", top) / _peak_extra("sklearn", top)
    result["inertia_ratio"] = inertia_ratio(smooth, 128, 3 if quick else 11)
    _say(f"peak extra {result['peak_extra_ratio']:.4f}, inertia {result['inertia_ratio']:.4f}")
    return result


def made_blocks(roughness: Sequence[tuple[int, float]], seed: int = 0) -> Blocks:
    """Random features of SD 2.1's size: smooth fields plus noise per grid node."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for (grid, features), (scale, noise) in zip(SD21_UP, roughness, strict=True):
        coarse = torch.randn(1, features, grid // scale, grid // scale, generator=generator)
        field = torch.nn.functional.interpolate(coarse, size=(grid, grid), mode="bicubic")
        field = field + noise * torch.randn(field.shape, generator=generator)
        blocks.append(field[0].permute(1, 2, 0).contiguous())
    return blocks


def inertia_ratio(blocks: Blocks, size: int, seeds: int) -> float:
    """Inertia, ours over the median of scikit-learn's from its own seeds; worst over k."""
    ours = cluster(blocks, (size, size)).inertia
    full = materialize(blocks, (size, size)).flatten(0, 1).numpy()
    theirs = [
        [KMeans(k, n_init=1, max_iter=300, tol=1e-4, random_state=seed).fit(full) for k in KS]
        for seed in range(seeds)
    ]
    costs = [[fit.inertia_ for fit in fits] for fits in theirs]
    return float((np.asarray(ours) / np.median(costs, axis=0)).max())


def _measure(name: str, blocks: Blocks, size: int, against_sklearn: bool = True) -> dict[str, Any]:
    """One row of the bench; ``sklearn_seconds`` and ``ratio`` are null where it is left out."""
    start = _start(blocks, size)
    solution = _ours(blocks, size, start)
    theirs = None
    ours = [_timed(lambda: _ours(blocks, size, start)) for _ in range(2)]
    if against_sklearn:
        full = materialize(blocks, (size, size)).flatten(0, 1).numpy()
        theirs = _timed(lambda: _sklearn(full, start))
        del full
    ours += [_timed(lambda: _ours(blocks, size, start)) for _ in range(2)]
    seconds = median(ours)
    row = {
        "seconds": seconds,
        "sklearn_seconds": theirs,
        "ratio": None if theirs is None else theirs / seconds,
        "agree_fp32": _agreement(name, blocks, size, torch.float32),
        "agree_fp64": _agreement(name, blocks, size, torch.float64),
        "boundary_share": float(solution.final.boundary.mean()),
    }
    _say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    return row


def _start(blocks: Blocks, size: int) -> Float[Tensor, "1 slot feature"]:
    """Random pixels as centroids."""
    generator = torch.Generator().manual_seed(1)
    row, column = torch.randint(0, size, (2, sum(KS)), generator=generator)
    return Interpolant.at([block[None] for block in blocks], (size, size)).pick(row, column)


def _ours(blocks: Blocks, size: int, start: Float[Tensor, "1 slot feature"]) -> Solution:
    engine = KnotEngine.of([block[None] for block in blocks], (size, size))
    assert engine is not None
    return lloyd(engine, start, KS, ITERATIONS, torch.zeros(1, dtype=start.dtype))


def _sklearn(
    full: Float[np.ndarray, "pixel feature"], start: Float[Tensor, "1 slot feature"]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for part in torch.split(start[0], list(KS)):
            KMeans(len(part), init=part.numpy(), n_init=1, max_iter=ITERATIONS, tol=0.0).fit(full)


def _agreement(name: str, blocks: Blocks, size: int, dtype: torch.dtype) -> float:
    """Share of pixels, over all k, on which the knot grid and plain Lloyd give equal labels."""
    features = sum(block.shape[-1] for block in blocks)
    step = -(-size * size * features * dtype.itemsize // FULL_BYTES[dtype])
    if step > 1:
        _say(f"{name}: agreement in {dtype} on one in {step} features")
    thin = [block[..., ::step].to(dtype) for block in blocks]
    start = _start(thin, size)
    plain = ExplicitEngine(materialize(thin, (size, size))[None])
    expected = lloyd(plain, start, KS, ITERATIONS, torch.zeros(1, dtype=dtype)).final.labels
    labels = _ours(thin, size, start).final.labels
    assert labels is not None
    assert expected is not None
    return float((labels == expected).double().mean())


def _peak_extra(route: str, size: int) -> float:
    """Peak memory in bytes that a route adds, measured in a process of its own."""
    return float(in_processes(_peak_extra_here, [(route, size)], workers=1)[0])


def _peak_extra_here(route: str, size: int) -> int:
    blocks = made_blocks(SMOOTH)
    start = _start(blocks, size)
    before = reset_peak()
    if route == "knot":
        _ours(blocks, size, start)
    else:
        last = start[0, -KS[-1] :].numpy()
        full = materialize(blocks, (size, size)).flatten(0, 1).numpy()
        KMeans(KS[-1], init=last, n_init=1, max_iter=2, tol=0.0).fit(full)
    return peak_bytes() - before


def _timed(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
