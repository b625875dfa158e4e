"""The tiny pipeline is what the other tests believe it to be."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from tiny import save_tiny_pipeline, tiny_tokenizer


def test_has_the_topology_of_sd21(tiny_pipeline: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_pipeline, use_safetensors=True, safety_checker=None, local_files_only=True
    )
    attention = [n for n, _ in pipeline.unet.named_modules() if n.endswith("attn1")]
    per_part = {p: sum(n.startswith(p) for n in attention) for p in ("down", "mid", "up")}
    assert per_part == {"down": 6, "mid": 1, "up": 9}
    assert pipeline.vae_scale_factor == 4
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a red car", height=64, width=64, num_inference_steps=2)
    start = time.perf_counter()
    pipeline("a red car", height=64, width=64, num_inference_steps=2)
    assert time.perf_counter() - start < 2.0  # 0.2 s on a free core


def test_weights_depend_on_the_seed_alone(tiny_pipeline: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = save_tiny_pipeline(tmp_path / "again")
    assert torch.equal(state, torch.get_rng_state())
    files = sorted(p.relative_to(again) for p in again.rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert (again / file).read_bytes() == (tiny_pipeline / file).read_bytes()


def test_some_words_split_into_several_tokens() -> None:
    tokenizer = tiny_tokenizer()
    encoding = tokenizer("an aeroplane, a red car", return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoding.input_ids)[1:-1]
    assert tokens == ["an</w>", "aero", "plane</w>", ",</w>", "a</w>", "red</w>", "car</w>"]
    assert encoding.offset_mapping[2:4] == [(3, 7), (7, 12)]
