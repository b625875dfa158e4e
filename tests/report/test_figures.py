"""The paper's figures: their content against slow obvious references, and `inspect` end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_dataset import KS, make_sample
from PIL import Image
from sklearn.decomposition import PCA

from synthgen.config import CaptureConfig, Config, load
from synthgen.report import figures
from synthgen.report.inspection import inspect_sample, read_image, segmented_features
from synthgen.types import HeadFeatures

SETTINGS = (
    *("generation.num_inference_steps=1", "generation.height=64", "generation.width=64"),
    *("generation.guidance_scale=1.0", "segmentation.clusters.ks=[2,3]", "model.device=cpu"),
    *("segmentation.features.components=2", "segmentation.clusters.max_iterations=8"),
)


@pytest.fixture(scope="module")
def config(tiny_pipeline: Path) -> Config:
    return load(overrides=[*SETTINGS, f"model.card={tiny_pipeline}"])


def test_head_pictures_are_scikit_learns_components() -> None:
    values = np.random.default_rng(0).normal(size=(2, 24, 5)).astype(np.float32)
    pictures = figures.head_pictures(torch.from_numpy(values), (4, 6))
    for head, picture in zip(values, pictures, strict=True):
        components = PCA(3, svd_solver="full").fit_transform(head.astype(np.float64))
        for channel in range(3):
            column = components[:, channel]
            scaled = (column - column.min()) / (column.max() - column.min()) * 255
            shown = picture[..., channel].reshape(-1).astype(float)
            away = min(np.abs(shown - scaled).max(), np.abs(255 - shown - scaled).max())
            assert away <= 0.51  # up to the axis's sign
    assert (figures.head_pictures(torch.ones(1, 24, 5), (4, 6)) == 0).all(), "a constant head"
    assert figures.head_pictures(torch.randn(2, 24, 1), (4, 6)).shape == (2, 4, 6, 3)


def test_matches_are_the_best_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    references, masks = rng.random((7, 6, 5)) < 0.5, rng.random((9, 6, 5)) < 0.5
    areas = [mask.sum() for mask in references]
    largest = sorted(range(7), key=lambda i: (-areas[i], i))[:3]
    expected = []
    for r in largest:
        ious = [(references[r] & m).sum() / (references[r] | m).sum() for m in masks]
        expected.append((r, int(np.argmax(ious)), max(ious)))
    assert figures.match_masks(references, masks, 3) == expected
    assert figures.match_masks(references[:0], masks) == []


def test_every_figure_is_drawn() -> None:
    sample = make_sample(0, "x", (40, 56))
    image, segmentation = sample.record.image, sample.segmentation
    masks = segmentation.mask_set
    features = HeadFeatures(
        {"up_blocks.1.attn1": torch.randn(3, 24, 4)}, {"up_blocks.1.attn1": (4, 6)}
    )
    blocks = [torch.randn(4, 6, 2), torch.randn(8, 12, 3)]
    drawn = [
        (3, figures.head_gallery(features)),
        (len(KS) + 1, figures.cluster_strip(image, segmentation)),
        (10, figures.matched_masks(image, masks.masks[:5], masks.masks)),
        (len(masks), figures.hierarchy(image, masks)),
        (6, figures.error_maps(blocks, (40, 56))),  # two grids, both, and three color bars
    ]
    for num, figure in drawn:
        assert len(figure.axes) == num
        figure.canvas.draw()
    figures.matched_masks(image, masks.masks[:0], masks.masks).canvas.draw()


def test_masks_are_made_of_the_layers_that_the_configuration_names() -> None:
    names = ["down_blocks.0.x", "mid_block.x", "up_blocks.1.x", "up_blocks.2.x"]
    grids = dict(zip(names, [(8, 8), (2, 2), (4, 4), (8, 8)], strict=True))
    features = HeadFeatures({n: torch.zeros(1, g[0] * g[1], 2) for n, g in grids.items()}, grids)

    def kept(**settings: object) -> list[str]:
        return list(segmented_features(features, CaptureConfig(**settings)).values)

    assert kept() == names[2:]
    assert kept(layers="both") == [names[0], *names[2:]]
    assert kept(layers="all", grids=(8,)) == [names[0], names[3]]
    assert kept(layers=("up_blocks.2",)) == names[3:]


def test_inspect_writes_the_figures_of_a_prompt_and_of_an_image(
    config: Config, tmp_path: Path
) -> None:
    paths = inspect_sample("a <b>red</b> car", tmp_path / "prompt", config)
    names = ["image.png", "heads.png", "clusters.png", "masks.png", "error.png"]
    assert [path.name for path in paths] == names
    inspect_sample(str(paths[0]), tmp_path / "image", config)
    again = np.asarray(Image.open(tmp_path / "image" / "image.png"))
    np.testing.assert_array_equal(again, np.asarray(Image.open(paths[0])))
    for path in paths:
        assert Image.open(path).size[0] >= 64


def test_images_that_are_none_are_one_clear_line(tmp_path: Path) -> None:
    missing, text, huge = tmp_path / "no.png", tmp_path / "text.png", tmp_path / "huge.png"
    text.write_text("<svg/>")
    with huge.open("wb") as stream:
        stream.truncate(65 * 1024 * 1024)
    for path, message in ((missing, "No such file"), (text, "readable"), (huge, "at most")):
        with pytest.raises(ValueError, match=message) as caught:
            read_image(path, (8, 8))
        assert "\n" not in str(caught.value)
    Image.linear_gradient("L").save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png", (8, 16)).shape == (8, 16, 3)
