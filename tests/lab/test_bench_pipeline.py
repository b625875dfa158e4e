"""The pipeline bench: what is simulated, and a small model of the full one's architecture."""

from __future__ import annotations

import pytest

from synthgen.lab.bench.capture import SD21_UNET
from synthgen.lab.bench.pipeline import full_size, shards_share, simulated_share, throughput

SMALL = {
    **SD21_UNET,
    "sample_size": 16,
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": (2, 4, 4, 4),
    "cross_attention_dim": 32,
}


@pytest.mark.parametrize(
    ("seconds", "cost", "workers", "share"),
    [
        (1.0, 0.6, 1, 1.0),  # a worker keeps up
        (0.5, 1.0, 1, 0.5),  # it takes twice as long as drawing
        (0.5, 1.0, 2, 1.0),
        (0.2, 0.6, 2, 2 * 0.2 / 0.6),
        (0.2, 0.6, 4, 1.0),
    ],
)
def test_a_device_waits_only_for_too_few_workers(
    seconds: float, cost: float, workers: int, share: float
) -> None:
    assert simulated_share(seconds, cost, workers, num=4000) == pytest.approx(share, rel=0.01)


def test_the_gpu_part_runs_with_a_small_model_on_any_device() -> None:
    model = full_size(SMALL, 32, layers=1)
    assert [len(block.attentions) for block in model.pipeline.unet.up_blocks[1:]] == [3, 3, 3]
    found = throughput(model, 4, runs=1)
    assert 0 < found["drawing"] < 1
    rates = found["images_per_hour"], found["images_per_hour_alone"]
    assert found["share"] == pytest.approx(rates[0] / rates[1])


def test_the_stand_in_draws_whole_shards() -> None:
    assert 0 < shards_share(0.01, 2, num=2, size=2) < 1
