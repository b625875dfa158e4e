"""Labels of drawn images against what the embedded Mask2Former sees."""

from __future__ import annotations

from synthgen.config import Config, LabelConfig
from synthgen.lab.downstream.drawn import measure_drawn


def test_labels_of_drawn_images_are_compared_with_what_is_seen() -> None:
    """Three images with nine objects; where no class is ever there, none is right."""
    found = measure_drawn(3, config=Config(labeling=LabelConfig(method="clusters", presence=1.0)))
    assert 5 <= found["objects"] <= 9
    assert found["class_right"] == found["iou"] == 0
    assert found["not_found"] == 9
