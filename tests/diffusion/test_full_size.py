"""A random-weight Stable Diffusion 2.1-base of full size through capture and segmentation.

Slow: 5.2 GB of weights, minutes of time. It shows that sizes, grids, the real tokenizer and memory
are right; random weights draw nothing. Run
``pytest -m slow -s tests/diffusion/test_full_size.py``.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synthgen.config import CaptureConfig, GenerationConfig, LabelConfig, SegmentationConfig
from synthgen.diffusion.backbones import Backbone
from synthgen.diffusion.cards import load_cards
from synthgen.diffusion.generate import generate
from synthgen.lab.bench.capture import SD21_UNET
from synthgen.segmentation.segment import segment_per_head
from synthgen.types import Prompt, Sample

TOKENIZER = Path(__file__).parents[3] / "shared" / "data" / "sd21" / "tokenizer"


def random_sd21() -> Backbone:
    """SD 2.1-base's architecture (UNet 865.9 M, text encoder 340 M, VAE 83.7 M parameters)."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                vocab_size=49408,
                hidden_act="gelu",
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=UNet2DConditionModel(**SD21_UNET),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.eval().requires_grad_(False)
    card = load_cards()["sd21-base"]
    return Backbone(pipeline, card, {"id": "random"}, torch.device("cpu"), torch.float32)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not TOKENIZER.is_dir(), reason=f"needs the CLIP tokenizer in {TOKENIZER}")
def test_full_size_sample_through_the_pipeline() -> None:
    start = time.perf_counter()
    backbone = random_sd21()
    loaded = time.perf_counter()
    prompt = Prompt("0", "an aeroplane over a potted plant", ("aeroplane", "potted plant"))
    results = generate(
        backbone,
        [prompt],
        [0],
        GenerationConfig(num_inference_steps=2, scheduler="ddim"),
        CaptureConfig(layers="all"),
        LabelConfig(method="argmax", text="classes"),
    )
    drawn = time.perf_counter()
    (sample,) = results
    assert isinstance(sample, Sample), results
    assert sample.image.shape == (512, 512, 3)
    assert sample.features.num_heads == 195
    sides = Counter()
    for layer, value in sample.features.values.items():
        assert value.shape[2] == 64
        assert torch.isfinite(value).all()
        sides[sample.features.grids[layer][0]] += value.shape[0]
    assert sides == {64: 25, 32: 50, 16: 100, 8: 20}
    assert sample.features.num_bytes == pytest.approx(46e6, rel=0.01)  # 23 MB in fp16
    assert sample.heatmaps.values.shape == (2, 32, 32)
    assert sample.heatmaps.values.min() > 0
    segmented = segment_per_head(sample, SegmentationConfig())
    done = time.perf_counter()
    assert segmented.labels.shape == (5, 512, 512)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"\n{sample.features.num_heads} heads, {sample.features.num_bytes / 1e6:.1f} MB captured; "
        f"built in {loaded - start:.0f} s, drawn in {drawn - loaded:.0f} s, "
        f"segmented in {done - drawn:.0f} s ({len(segmented)} masks); "
        f"peak {peak:.1f} GB"
    )
