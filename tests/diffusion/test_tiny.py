"""The tiny pipeline is what the other tests believe it to be."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import save_tiny_pipeline, tiny_tokenizer


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
