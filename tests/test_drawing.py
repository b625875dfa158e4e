"""Figures of masks and labels, as notebooks show them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made_records import make_mask_set
from PIL import Image

from synthgen.types import LabelMap

SIZE = (24, 40)


def labels() -> LabelMap:
    semantic = np.zeros(SIZE, dtype=np.uint8)
    semantic[:12, :20], semantic[12:, :20] = 1, 255
    scores, none = np.full(SIZE, 0.5, np.float32), np.zeros(0, np.uint8)
    return LabelMap(("car", "dog"), semantic, scores, none, none.astype(np.float32), ("dog",))


@pytest.mark.parametrize("found", [make_mask_set(np.random.default_rng(0), 5, *SIZE), labels()])
def test_results_are_pictures_with_and_without_their_image(found: object) -> None:
    image = Image.new("RGB", SIZE[::-1], "red")
    alone, over = found.show(), found.show(image)
    assert len(over.axes) == len(alone.axes) + 1
    assert np.array_equal(
        found.show(np.asarray(image)).axes[0].images[0].get_array()[0, 0], (255, 0, 0)
    )
    with Image.open(io.BytesIO(found._repr_png_())) as shown:
        assert len(shown.convert("RGB").getcolors(1 << 20)) > 3
    with pytest.raises(ValueError, match=r"image must be RGB of 24 x 40 pixels.*\(8, 8, 3\)"):
        found.show(Image.new("RGB", (8, 8)))


def test_labels_name_the_classes_that_are_there() -> None:
    legend = labels().show().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["car", "undecided"]
