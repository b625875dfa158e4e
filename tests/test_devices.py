"""Where torch computes: what auto takes, and what is refused before torch fails on it."""

from __future__ import annotations

import pytest
import torch

from synthgen.auditing.sam import sam_device
from synthgen.devices import pick_device

GPUS = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def test_auto_takes_the_first_gpu_there_is() -> None:
    first = next((name for name, there in GPUS.items() if there), "cpu")
    assert pick_device("auto", "model.device").type == first
    assert pick_device("auto", "model.device", gpus=()).type == "cpu"
    assert pick_device("cpu", "model.device").type == "cpu"


@pytest.mark.parametrize("name", [name for name, there in GPUS.items() if not there] + ["tpu"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.device must be .* Got '{name}'; use auto\.$"):
        pick_device(name, "model.device")


def test_sam_takes_no_mps_and_no_absent_gpu() -> None:
    with pytest.raises(ValueError, match="no float64"):
        sam_device("mps")
    if not GPUS["cuda"]:
        with pytest.raises(ValueError, match=r"auditor\.device must be present"):
            sam_device("cuda")
