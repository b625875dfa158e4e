"""k-means: the knot grid, the implicit form and scikit-learn against plain Lloyd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from synthgen.lab.bench.explicit import ExplicitEngine, materialize
from synthgen.segmentation import cells
from synthgen.segmentation.cells import corner_weights, open_cells
from synthgen.segmentation.implicit import ImplicitEngine
from synthgen.segmentation.interpolation import Interpolant
from synthgen.segmentation.kmeans import cluster, cluster_batch, lattice_size, make_engine
from synthgen.segmentation.knots import KnotEngine
from synthgen.segmentation.lloyd import Engine, Solution, inertia, lloyd
from synthgen.segmentation.seeding import first_centroids, lattice_sides

ALL_KS = (2, 3, 3, 7)


def random_blocks(
    grids: list[tuple[int, int]], features: int = 5, seed: int = 0, dtype: type = torch.float64
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*grid, features, generator=generator).to(dtype) for grid in grids]


def random_start(
    blocks: list[torch.Tensor], size: tuple[int, int], ks: tuple[int, ...]
) -> torch.Tensor:
    """Distinct pixels for every k."""
    generator = torch.Generator().manual_seed(3)
    flat = materialize(blocks, size).flatten(0, 1)
    seeds = [flat[torch.randperm(len(flat), generator=generator)[:k]] for k in ks]
    return torch.cat(seeds)[None]


def solve(
    engine: Engine, start: torch.Tensor, ks: tuple[int, ...] = ALL_KS, iterations: int = 6
) -> Solution:
    still = start.new_full((len(start),), 1e-21)  # engines may differ in a centroid's last bit
    return lloyd(engine, start, ks, iterations, still)


def check_equal(ours: Solution, plain: Solution) -> None:
    assert torch.equal(ours.final.labels, plain.final.labels)
    assert torch.equal(ours.final.counts, plain.final.counts)
    # a sum in another order may need one more: torch 2.6 does, 2.15 does not
    assert (ours.iterations - plain.iterations).abs().max() <= 1
    torch.testing.assert_close(ours.centroids, plain.centroids)
    torch.testing.assert_close(ours.final.sums, plain.final.sums)


def textbook_lloyd(features: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    """Lloyd in a dozen lines of numpy: distances to all centroids, means of the clusters."""
    centroids = start.copy()
    for _ in range(iterations):
        labels = ((features[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)
        for c in range(len(centroids)):
            if (labels == c).any():
                centroids[c] = features[labels == c].mean(0)
    return ((features[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)


@pytest.mark.parametrize(
    ("grids", "size"),
    [
        ([(8, 8)], (16, 16)),  # one pixel per cell
        ([(8, 8), (4, 4)], (32, 32)),  # knots every 2 pixels
        ([(4, 4), (8, 8)], (128, 128)),  # every 8: the largest leaves
        ([(4, 4), (8, 8)], (256, 256)),  # every 16: cells are halved
        ([(4, 6), (8, 12)], (64, 192)),  # not square, every 4 and 8
        ([(4, 4), (6, 6)], (48, 96)),  # grids that do not divide each other
        ([(3, 5)], (72, 60)),  # every 12 and 6: leaves of odd sides
        ([(1, 4), (2, 2)], (16, 32)),  # a grid of one row
    ],
)
def test_knots_implicit_and_explicit_agree(
    grids: list[tuple[int, int]], size: tuple[int, int]
) -> None:
    blocks = random_blocks(grids)
    start = random_start(blocks, size, ALL_KS)
    plain = solve(ExplicitEngine(materialize(blocks, size)[None]), start)
    batched = [block[None] for block in blocks]
    knots = KnotEngine.of(batched, size)
    assert knots is not None
    check_equal(solve(knots, start), plain)
    check_equal(solve(ImplicitEngine.of(batched, size), start), plain)


@settings(max_examples=15, deadline=None)
@given(
    grids=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    times=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 1000),
)
def test_knots_assign_as_the_textbook_on_any_grids(
    grids: list[tuple[int, int]], times: tuple[int, int], seed: int
) -> None:
    """Centroids are no pixels and not symmetric, so that no pixel is between two of them."""
    size = tuple(
        2 * int(np.lcm.reduce([grid[axis] for grid in grids])) * times[axis] for axis in (0, 1)
    )
    blocks = random_blocks(grids, features=3, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    centroids = torch.randn(1, 15, 3 * len(grids), generator=generator).double()
    plain = ExplicitEngine(materialize(blocks, size)[None]).assign(
        centroids, ALL_KS, return_labels=True
    )
    knots = KnotEngine.of([block[None] for block in blocks], size)
    assert knots is not None
    ours = knots.assign(centroids, ALL_KS, return_labels=True)
    assert torch.equal(ours.labels, plain.labels)
    assert torch.equal(ours.counts, plain.counts)
    torch.testing.assert_close(ours.sums, plain.sums)


@pytest.mark.parametrize("size", [(9, 14), (8, 8), (50, 31), (4, 5)])
def test_sizes_that_do_not_divide_fall_back_to_the_implicit_form(size: tuple[int, int]) -> None:
    blocks = random_blocks([(8, 8), (4, 4)])
    batched = [block[None] for block in blocks]
    assert KnotEngine.of(batched, size) is None
    engine = make_engine(batched, size)
    assert isinstance(engine, ImplicitEngine)
    start = random_start(blocks, size, ALL_KS)
    check_equal(
        solve(engine, start), solve(ExplicitEngine(materialize(blocks, size)[None]), start)
    )


def test_nearest_features_are_clustered_as_they_are() -> None:
    blocks, size = random_blocks([(8, 8), (4, 4)]), (32, 24)
    engine = make_engine([block[None] for block in blocks], size, interpolation="nearest")
    full = materialize(blocks, size, "nearest")[None]
    start = random_start(blocks, size, ALL_KS)
    check_equal(solve(engine, start), solve(ExplicitEngine(full), start))


def test_explicit_engine_is_textbook_lloyd() -> None:
    blocks, size, ks = random_blocks([(6, 6)]), (18, 12), (4,)
    full = materialize(blocks, size)
    start = random_start(blocks, size, ks)
    labels = solve(ExplicitEngine(full[None]), start, ks, 5).final.labels
    expected = textbook_lloyd(full.flatten(0, 1).numpy(), start[0].numpy(), 5)
    assert np.array_equal(labels[0, 0].numpy().ravel(), expected)


def test_float32_labels_agree_on_nearly_all_pixels() -> None:
    blocks, size = random_blocks([(8, 8), (16, 16)], 40, dtype=torch.float32), (128, 128)
    start = random_start(blocks, size, ALL_KS)
    plain = solve(ExplicitEngine(materialize(blocks, size)[None]), start)
    knots = solve(KnotEngine.of([block[None] for block in blocks], size), start)
    agree = (knots.final.labels == plain.final.labels).double().mean()
    assert agree >= 0.9999


@pytest.mark.parametrize("leaf", [1, 4, 16, 10_000])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 4), (6, 12), (5, 3)])
def test_opened_cells_equal_their_pixels(
    monkeypatch: pytest.MonkeyPatch, leaf: int, height: int, width: int
) -> None:
    monkeypatch.setattr(cells, "LEAF", leaf)
    generator = torch.Generator().manual_seed(1)
    leads = torch.randn(3, 4, 50, generator=generator).double()
    weights, held = open_cells(leads, height, width)
    centers = [(torch.arange(n).double() + 0.5) / n for n in (height, width)]
    to_pixels = corner_weights(*centers)
    scores = torch.cat([torch.zeros(1, height * width, 50), to_pixels @ leads])
    assert torch.equal(held.flatten(0, 1).long(), scores.argmax(0))
    for rival in range(3):
        mine = (held.flatten(0, 1) == rival + 1).double()
        torch.testing.assert_close(weights[rival], to_pixels.T @ mine)


def test_cells_of_smooth_features_stay_closed() -> None:
    ramp = torch.linspace(-1, 1, 16)[:, None].expand(16, 16)[..., None].contiguous()
    engine = KnotEngine.of([ramp[None]], (256, 256))
    assert engine is not None
    start = torch.tensor([[[-0.5], [0.5]]])
    final = solve(engine, start, (2,)).final
    assert 0 < final.boundary[0, 0] <= 1 / 16  # one row of cells of 32
    assert (final.labels[0, 0, :128] == 0).all()
    assert (final.labels[0, 0, 128:] == 1).all()


@pytest.mark.parametrize("size", [(32, 32), (30, 33)])
def test_cluster_is_sklearn_with_the_exact_inertia(size: tuple[int, int]) -> None:
    """On the knot grid and, where the sides do not divide, through the implicit form."""
    blocks = [block + 30 for block in random_blocks([(8, 8), (4, 4)], dtype=torch.float32)]
    result = cluster(blocks, size, (2, 6), tolerance=1e-8)
    full = materialize(blocks, size).flatten(0, 1).double()
    for labels, centroids, cost in zip(
        result.labels, result.centroids, result.inertia, strict=True
    ):
        own = centroids.double()[torch.from_numpy(labels).long().flatten()]
        assert cost == pytest.approx(float((full - own).square().sum()), rel=1e-5)
        again = KMeans(len(centroids), init=centroids.numpy() - 30, n_init=1).fit(full - 30)
        assert again.n_iter_ <= 2  # nothing is left to be done
        assert np.mean(again.labels_ != labels.ravel()) < 0.002


@pytest.mark.parametrize("tolerance", [2e-5, 1e-15])
def test_after_the_lattice_labels_are_those_of_textbook_lloyd(tolerance: float) -> None:
    """From where the lattice left it, plain Lloyd on all pixels goes on to the same labels."""
    blocks, size, ks = random_blocks([(4, 4), (8, 8)]), (64, 64), (3, 7)
    blocks = [block[None] for block in blocks]
    mean = Interpolant.at(blocks, size).totals() / (64 * 64)
    own = torch.split(mean[:, None, None], [5, 5], dim=-1)
    blocks = [block - part for block, part in zip(blocks, own, strict=True)]
    full = materialize([block[0] for block in blocks], size)
    lattice = ImplicitEngine.of(blocks, size, lattice=lattice_size(blocks, size))
    assert lattice_size(blocks, size) == (12, 12)
    start = first_centroids(blocks, size, ks)
    still = tolerance * full.square().sum()[None]
    coarse = lloyd(lattice, start, ks, 300, still)
    assert (coarse.iterations > 2).any()
    exact = lloyd(ExplicitEngine(full[None]), coarse.centroids, ks, 300, still)
    ours = cluster([block[0] for block in blocks], size, ks, tolerance=tolerance)
    assert np.array_equal(ours.labels, exact.final.labels[0].numpy())
    assert ours.iterations == tuple((coarse.iterations + exact.iterations)[0].tolist())
    again = lloyd(ExplicitEngine(full[None]), exact.centroids, ks, 1, still)
    if tolerance < 1e-9:  # a fixed point: one update more gains nothing
        assert again.converged.all()
        assert torch.equal(again.final.labels, exact.final.labels)


def test_a_lattice_of_every_pixel_is_the_image() -> None:
    blocks, size = [block[None] for block in random_blocks([(8, 8), (4, 4)])], (24, 40)
    start = first_centroids(blocks, size, ALL_KS)
    pixels = solve(ImplicitEngine.of(blocks, size), start)
    check_equal(solve(ImplicitEngine.of(blocks, size, lattice=size), start), pixels)


def test_converged_labels_are_a_fixed_point_of_sklearn() -> None:
    blocks, size = random_blocks([(8, 8)]), (32, 32)
    result = cluster(blocks, size, (5,), tolerance=0.0, max_iterations=500)
    assert result.iterations[0] < 500
    full = materialize(blocks, size).flatten(0, 1).numpy()
    again = KMeans(5, init=result.centroids[0].numpy(), n_init=1, max_iter=1).fit(full)
    assert np.array_equal(again.labels_, result.labels[0].ravel())


def test_an_image_that_needs_many_updates_gets_them() -> None:
    """A limit stops it before it stands still, and says so."""
    generator = torch.Generator().manual_seed(8)
    shapes = ((4, 4, 3), (8, 8, 4))
    blocks, size = [torch.randn(*shape, generator=generator) for shape in shapes], (64, 64)
    ours = cluster(blocks, size, (20,), tolerance=1e-9)
    assert 25 < ours.iterations[0] < 300
    assert ours.converged
    stopped = cluster(blocks, size, (20,), tolerance=1e-9, max_iterations=8)
    assert not stopped.converged
    assert 8 < stopped.iterations[0] <= 16  # on the lattice, and on the pixels
    assert not np.array_equal(stopped.labels, ours.labels)


def test_a_batch_gives_what_each_image_gives_alone() -> None:
    images = [random_blocks([(8, 8), (4, 4)], seed=seed) for seed in range(3)]
    stacked = [torch.stack(blocks) for blocks in zip(*images, strict=True)]
    batch = cluster_batch(stacked, (64, 32), (2, 9), max_iterations=15)
    for blocks, together in zip(images, batch, strict=True):
        alone = cluster(blocks, (64, 32), (2, 9), max_iterations=15)
        assert np.array_equal(alone.labels, together.labels)
        assert alone.iterations == together.iterations
        assert alone.inertia == pytest.approx(together.inertia)


def test_a_run_that_stopped_is_not_touched_again() -> None:
    blocks, size = random_blocks([(8, 8)]), (32, 32)
    start = random_start(blocks, size, ALL_KS)
    engine = KnotEngine.of([block[None] for block in blocks], size)
    solution = lloyd(engine, start, ALL_KS, 100, torch.tensor([2.0]).double())
    assert len(set(solution.iterations[0].tolist())) > 1
    for run, slots in enumerate(([0, 1], [2, 3, 4], [5, 6, 7], [*range(8, 15)])):
        single = lloyd(engine, start[:, slots], (len(slots),), 100, torch.tensor([2.0]).double())
        assert int(single.iterations) == int(solution.iterations[0, run])
        torch.testing.assert_close(single.centroids, solution.centroids[:, slots])


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_pixels_leave_clusters_empty_without_nan(value: float) -> None:
    block = torch.full((8, 8, 3), value)
    block[4:] += 1
    result = cluster([block], (64, 64), (2, 20))
    assert all(centroids.isfinite().all() for centroids in result.centroids)
    assert len(np.unique(result.labels[0])) == 2
    constant = cluster([torch.full((8, 8, 3), value)], (64, 64), (2, 5))
    assert constant.labels.max() == 0
    assert constant.inertia == pytest.approx((0.0, 0.0), abs=1e-6)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        cluster([torch.full((4, 4, 1), float("nan"))], (16, 16))


def test_inertia_is_as_good_as_sklearn() -> None:
    """From Ward's clusters k-means ends no higher than from one of scikit-learn's own seedings."""
    size, ks, found = (32, 32), (3, 8, 20), []
    for seed in range(5):
        blocks = random_blocks([(4, 4), (8, 8)], 8, seed, dtype=torch.float32)
        full = materialize(blocks, size).flatten(0, 1).numpy()
        theirs = [
            np.median([KMeans(k, n_init=1, random_state=s).fit(full).inertia_ for s in range(7)])
            for k in ks
        ]
        found.append(np.divide(cluster(blocks, size, ks).inertia, theirs))
    assert np.mean(found) < 1.0
    assert np.max(found) < 1.05


def test_first_centroids_are_the_means_of_wards_clusters() -> None:
    """By brute force: join, again and again, the two whose union adds least to the inertia."""
    blocks, size, ks = random_blocks([(8, 8), (4, 4)]), (32, 32), (3, 5, 6)
    assert lattice_sides(ks) == [16, 16, 8]
    found = torch.split(first_centroids([block[None] for block in blocks], size, ks)[0], ks)
    at = (torch.arange(8).double() + 0.5) * 4 - 0.5  # the lattice of 8 x 8, in pixels
    points = Interpolant.at([block[None] for block in blocks], size, (at, at))
    rows = torch.arange(8)
    places = points.pick(rows.repeat_interleave(8), rows.repeat(8))[0].numpy()
    groups = [places[i : i + 1] for i in range(64)]
    while len(groups) > 6:
        _, i, j = min(
            (len(a) * len(b) / (len(a) + len(b)) * ((a.mean(0) - b.mean(0)) ** 2).sum(), i, j)
            for j, b in enumerate(groups)
            for i, a in enumerate(groups[:j])
        )
        groups[i] = np.concatenate([groups[i], groups.pop(j)])
    means = np.stack([group.mean(0) for group in groups])
    assert np.allclose(sorted(means.tolist()), sorted(found[2].tolist()))


def test_first_centroids_are_near_the_end() -> None:
    """From pixels drawn at random k-means needs more updates, and ends higher."""
    size, ks, updates, costs = (64, 64), (5, 20), [0, 0], [0.0, 0.0]
    for seed in range(6):
        coarse = [block.movedim(-1, 0) for block in random_blocks([(4, 4), (4, 4)], 8, seed)]
        blocks = [
            torch.nn.functional.interpolate(block[None], size=(side, side), mode="bicubic")[0]
            for block, side in zip(coarse, (8, 16), strict=True)
        ]
        blocks = [block.movedim(0, -1) for block in blocks]
        energy = materialize(blocks, size).square().sum()[None]
        batched = [block[None] for block in blocks]
        engine = make_engine(batched, size)
        starts = first_centroids(batched, size, ks), random_start(blocks, size, ks)
        for index, start in enumerate(starts):
            solution = lloyd(engine, start, ks, 300, 2e-5 * energy)
            updates[index] += int(solution.iterations.sum())
            costs[index] += float(inertia(solution, energy, ks).sum())
    assert updates[0] < updates[1]
    assert costs[0] < costs[1]


def test_inertia_of_a_known_case() -> None:
    features = torch.tensor([[[[0.0], [2.0], [10.0], [14.0]]]])
    solution = solve(ExplicitEngine(features), torch.tensor([[[0.0], [10.0]]]), (2,))
    assert solution.final.labels.flatten().tolist() == [0, 0, 1, 1]
    assert solution.centroids.flatten().tolist() == [1.0, 12.0]
    energy = features.square().sum()[None]
    assert inertia(solution, energy, (2,)).item() == pytest.approx(2 + 8)


def test_threads_do_not_change_the_labels() -> None:
    blocks = random_blocks([(8, 8), (16, 16)], 40, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(cluster(blocks, (64, 64), (2, 10), max_iterations=10).labels.tobytes())
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]
