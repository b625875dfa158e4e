"""Capture: what is recorded is right, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch import Tensor

from synthgen.diffusion.attention import record
from synthgen.diffusion.heatmaps import merge_layers
from synthgen.diffusion.probabilities import Attribution, attention_probabilities
from synthgen.diffusion.recording import Recording
from synthgen.diffusion.selection import attention_layers, call_groups, select_layers

UP3 = "up_blocks.3.attentions.0.transformer_blocks.0.attn1"
ALL = {"layers": "all", "map_grids": (8, 4, 2, 1)}


@pytest.fixture(scope="module")
def loaded_unet(tiny_pipeline: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")


@pytest.fixture
def unet(loaded_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy: processors, hooks and LoRA of one test reach no other."""
    return copy.deepcopy(loaded_unet)


def unet_inputs(rows: int, height: int = 8, width: int = 8, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(rows, 4, height, width, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(rows, 77, 32, generator=generator),
    }


@contextmanager
def recording(unet: Any, **settings: Any) -> Iterator[Recording]:
    """One call without guidance, unless something else is said."""
    settings = {"num_calls": 1, "guided": False, **ALL, **settings}
    with torch.no_grad(), record(unet, **settings) as kept:
        yield kept


def count_hooks(unet: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


class SlowProcessor:
    """Attention by the textbook, one head after the other; keeps what it computed."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.probabilities: list[Tensor] = []

    def __call__(
        self, attn: Any, states: Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> Tensor:
        text = states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(states), attn.to_k(text), attn.to_v(text))
        outputs, maps = [], []
        for q, k, v in zip(*(x.chunk(attn.heads, dim=-1) for x in projected), strict=True):
            maps.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1))
            outputs.append(maps[-1] @ v)
        self.outputs.append(torch.stack(outputs, dim=1))
        self.probabilities.append(torch.stack(maps, dim=1))
        return attn.to_out[0](torch.cat(outputs, dim=-1))


def test_captured_tensor_is_the_output_of_sdpa_bit_for_bit(
    unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook sees what the fused kernel returned: nothing is computed a second time."""
    seen = []

    def spy(*args: Any, **settings: Any) -> Tensor:
        seen.append(original(*args, **settings))
        return seen[-1]

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with recording(unet) as kept:
        unet(**unet_inputs(1))
    self_attention = seen[0::2]  # every block attends to itself, then to the text
    features = kept.features()[0].values
    assert len(self_attention) == len(features) == 16
    for value, expected in zip(features.values(), self_attention, strict=True):
        assert torch.equal(value, expected[0])


def test_captured_tensor_equals_attention_by_the_textbook(unet: Any) -> None:
    attn = unet.get_submodule(UP3)
    slow = SlowProcessor()
    attn.set_processor(slow)
    settings = {"map_layers": (UP3,), "map_grids": None, "self_grid": 8}
    with recording(unet, layers=(UP3,), **settings) as kept:
        unet(**unet_inputs(1))
    torch.testing.assert_close(kept.features()[0].values[UP3], slow.outputs[0][0])
    expected, (found,) = slow.probabilities[0].mean(dim=1)[0], kept.self_maps()
    torch.testing.assert_close(found.values, expected, atol=1e-6, rtol=1e-5)


def test_self_maps_of_all_layers_are_their_mean_on_the_largest_grid(unet: Any) -> None:
    """Weights by sides; finer queries averaged, keys summed; coarser queries repeated (LS)."""
    names = tuple(layer.name for layer in attention_layers(unet, (8, 8)))
    slow = {name: SlowProcessor() for name in names}
    for name, processor in slow.items():
        unet.get_submodule(name).set_processor(processor)
    with recording(unet, map_layers=None, self_layers="all", self_grid=64) as kept:
        unet(**unet_inputs(1))
    (found,) = kept.self_maps()
    assert found.grid == (8, 8)
    assert not kept.token_maps()
    expected, total = torch.zeros(64, 64), 0
    for layer in attention_layers(unet, (8, 8)):
        side = layer.grid[0]
        own = slow[layer.name].probabilities[0].mean(dim=1)[0].reshape(1, -1, side, side)
        wide = F.interpolate(own, size=(8, 8), mode="bilinear", align_corners=False)[0]
        wide = wide / wide.sum((1, 2), keepdim=True)
        repeated = torch.arange(8) // (8 // side)
        rows = (repeated[:, None] * side + repeated).flatten()
        expected += side * wide.flatten(1)[rows]
        total += side
    torch.testing.assert_close(found.values, expected / total, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.values.sum(1), torch.ones(64))


@pytest.mark.parametrize("mode", ["default", "textbook", "sliced", "fused", "lora"])
def test_unet_output_is_bit_identical_and_features_agree(unet: Any, mode: str) -> None:
    inputs = unet_inputs(2)
    settings = {"guided": True, "attribution": Attribution([[(1,), (2, 3)]]), "self_grid": 8}
    if mode == "lora":
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    with recording(unet, **settings) as reference:
        unet(**inputs)
    if mode == "textbook":
        unet.set_attn_processor(AttnProcessor())
    if mode == "sliced":
        unet.set_attention_slice(1)
    if mode == "fused":
        unet.fuse_qkv_projections()
    with torch.no_grad():
        plain = unet(**inputs).sample
    with recording(unet, **settings) as kept:
        assert torch.equal(unet(**inputs).sample, plain)
    torch.testing.assert_close(kept.self_maps()[0].values, reference.self_maps()[0].values)
    for layer, expected in reference.features()[0].values.items():
        torch.testing.assert_close(kept.features()[0].values[layer], expected)
        torch.testing.assert_close(kept.token_maps()[layer], reference.token_maps()[layer])


def test_lora_changes_what_is_captured(unet: Any) -> None:
    with recording(unet) as before:
        unet(**unet_inputs(1))
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_v"]))
    with recording(unet) as after:
        unet(**unet_inputs(1))
    assert not torch.allclose(before.features()[0].values[UP3], after.features()[0].values[UP3])


def test_cross_attention_equals_the_scores_of_diffusers(unet: Any) -> None:
    """``Attention.get_attention_scores`` of diffusers, on the same projections."""
    attn = unet.get_submodule(UP3.replace("attn1", "attn2"))
    projected: dict[str, Tensor] = {}
    for name in ("to_q", "to_k"):
        getattr(attn, name).register_forward_hook(
            lambda _, __, output, name=name: projected.update({name: output})
        )
    with recording(unet, map_layers=(UP3,), map_grids=None) as kept:
        unet(**unet_inputs(1))
    heads = {name: attn.head_to_batch_dim(value) for name, value in projected.items()}
    scores = attn.get_attention_scores(heads["to_q"], heads["to_k"])
    expected = scores.unflatten(0, (1, attn.heads)).mean(dim=1)
    torch.testing.assert_close(kept.token_maps()[UP3], expected, atol=1e-5, rtol=0)


def test_probabilities_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, n, 12, generator=generator) for n in (50, 7))
    whole = attention_probabilities(query, key, 3, 0.5)
    monkeypatch.setattr("synthgen.diffusion.probabilities._CHUNK", 2 * 3 * 7 * 4)
    torch.testing.assert_close(attention_probabilities(query, key, 3, 0.5), whole)
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(2, 50))


def test_attribution_text_reads_other_keys_and_leaves_the_output_alone(unet: Any) -> None:
    """Equal to cross-attention of a pass over the other text, with the queries of this one."""
    layer = attention_layers(unet, (8, 8))[0].name  # its query does not see any text before
    chosen = {"layers": (layer,), "map_layers": (layer,), "map_grids": None}
    inputs, other = unet_inputs(1), unet_inputs(1, seed=5)["encoder_hidden_states"]
    with torch.no_grad():
        plain = unet(**inputs).sample
    with recording(unet, **chosen, attribution=Attribution([[(3, 4)]], other)) as attributed:
        assert torch.equal(unet(**inputs).sample, plain)
    with recording(unet, **chosen, attribution=Attribution([[(3, 4)]])) as of_prompt:
        unet(**inputs)
    with recording(unet, **chosen, attribution=Attribution([[(3, 4)]])) as of_other:
        unet(**(inputs | {"encoder_hidden_states": other}))
    maps = [x.token_maps()[layer] for x in (attributed, of_prompt, of_other)]
    torch.testing.assert_close(maps[0], maps[2])
    assert not torch.allclose(maps[0], maps[1])


def test_token_groups_are_means_and_empty_groups_zero(unet: Any) -> None:
    groups = [[(1,), (2,), (1, 2), ()], [(5,)]]
    with recording(unet, attribution=Attribution(groups)) as kept:
        unet(**unet_inputs(2))
    maps = kept.token_maps()[UP3].mT
    assert maps.shape == (2, 4, 64)
    torch.testing.assert_close(maps[0, 2], (maps[0, 0] + maps[0, 1]) / 2)
    assert maps[0, 3].abs().max() == 0
    assert maps[1, 1:].abs().max() == 0


def test_rows_of_a_guided_batch_are_those_of_the_prompt(unet: Any) -> None:
    """[negative, positive]: 3 images are 6 rows; without guidance all are kept."""
    inputs = unet_inputs(6)
    with recording(unet, guided=True) as kept:
        unet(**inputs)
    for image in range(3):
        alone = {k: v[3 + image : 4 + image] if v.ndim else v for k, v in inputs.items()}
        with recording(unet) as single:
            unet(**alone)
        value = kept.features()[image].values[UP3]
        torch.testing.assert_close(value, single.features()[0].values[UP3])
    with recording(unet) as plain:
        unet(**inputs)
    assert (len(plain), plain.features()[0].num_heads) == (6, 27)


def test_calls_are_keyed_by_index_and_averaged(unet: Any) -> None:
    calls = [unet_inputs(1, seed=seed) for seed in range(4)]
    singles = []
    for inputs in calls:
        with recording(unet) as single:
            unet(**inputs)
        singles.append(single.features()[0].values[UP3])

    def run(calls_setting: Any, **settings: Any) -> Recording:
        own = {
            "layers": (UP3,),
            "calls": calls_setting,
            "map_calls": calls_setting,
            "num_calls": 4,
        }
        with recording(unet, **own, **settings, attribution=Attribution([[(1,)]])) as kept:
            for inputs in calls:
                unet(**inputs)
        return kept

    last = run("last")
    assert torch.equal(last.features()[0].values[UP3], singles[3])
    assert "call 3 of 4" in repr(last)
    mean = run(3)
    torch.testing.assert_close(
        mean.features()[0].values[UP3], torch.stack(singles[1:]).mean(dim=0)
    )
    assert "call 1+2+3 of 4" in repr(mean)
    half = run(3, dtype="float16").features()[0].values[UP3]
    assert half.dtype == torch.float16
    torch.testing.assert_close(
        half.float(), torch.stack(singles[1:]).mean(dim=0), atol=1e-3, rtol=0
    )
    several = run((0.0, 1.0))
    values = several.features()[0].values
    assert list(values) == [f"{UP3}@0", f"{UP3}@3"]
    assert torch.equal(values[f"{UP3}@0"], singles[0])
    assert torch.equal(values[f"{UP3}@3"], singles[3])
    first = run((0.0,)).token_maps()[UP3]
    torch.testing.assert_close(several.token_maps()[UP3], (first + last.token_maps()[UP3]) / 2)


def test_call_groups_refuse_what_the_run_does_not_have() -> None:
    assert call_groups((0.5, 0.5, 0.51), 3) == ((1,),)
    with pytest.raises(ValueError, match=r"capture\.calls must be at most 2"):
        call_groups(3, 2)
    with pytest.raises(ValueError, match="at least one share"):
        call_groups((), 2)


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (8, 20), (9, 13)])
def test_grids_follow_the_true_latent_size(unet: Any, size: tuple[int, int]) -> None:
    """Also where the product says nothing about the sides, and for odd sizes."""
    shapes = {}

    def keep(module: Any, inputs: tuple[Tensor]) -> None:
        shapes[module] = inputs[0].shape[-2:]

    blocks = {n: m for n, m in unet.named_modules() if n.endswith("attentions.0")}
    handles = [block.register_forward_pre_hook(keep) for block in blocks.values()]
    with recording(unet) as kept:
        unet(**unet_inputs(1, *size))
    for handle in handles:
        handle.remove()
    grids = kept.features()[0].grids
    for name, block in blocks.items():
        assert grids[f"{name}.transformer_blocks.0.attn1"] == tuple(shapes[block])
    for name, value in kept.features()[0].values.items():
        assert value.shape[1] == grids[name][0] * grids[name][1]


def test_layers_and_grids_are_selected(unet: Any) -> None:
    layers = attention_layers(unet, (16, 24))

    def heads(**settings: Any) -> int:
        return sum(x.heads for x in select_layers(layers, **settings))

    parts = {"up": 15, "down": 10, "mid": 2, "both": 25, "all": 27}
    assert {part: heads(asked=part) for part in parts} == parts
    assert heads(asked=("up_blocks.3",)) == 3
    assert heads(asked=(UP3, "mid_block")) == 3
    assert heads(asked="all", grids=(16,)) == 5
    with pytest.raises(ValueError, match=r"Got 'up_blocks\.33'"):
        heads(asked=("up_blocks.33",))
    with pytest.raises(ValueError, match=r"capture\.grids must name grids among \[4, 8, 16\]"):
        heads(grids=(64,))


def test_hooks_are_gone_after_success_and_after_an_exception(unet: Any) -> None:
    before = count_hooks(unet)
    processors = dict(unet.attn_processors)
    settings = {"attribution": Attribution([[(1,)]]), "self_grid": 8}
    with recording(unet, **settings):
        assert count_hooks(unet) > before + 16
    assert count_hooks(unet) == before
    with pytest.raises(KeyboardInterrupt), recording(unet, **settings):
        raise KeyboardInterrupt
    with pytest.raises(ValueError), recording(unet, memory_budget_mb=1e-3):
        unet(**unet_inputs(1))
    assert count_hooks(unet) == before
    assert unet.attn_processors == processors


def test_memory_budget_is_exact_and_names_the_setting(unet: Any) -> None:
    """Head outputs alone, then with maps; refused at the first call, before it computes."""
    inputs, chosen = unet_inputs(3, 16, 24), {"dtype": "float16", "map_layers": None}
    with recording(unet, **chosen) as kept:
        unet(**inputs)
    needed = sum(x.num_bytes for x in kept.features()) / 1e6
    message = r"^capture\.memory_budget_mb must be at least 1\. Got"
    few = {"memory_budget_mb": needed * 0.99}
    with pytest.raises(ValueError, match=message), recording(unet, **chosen, **few):
        unet(**inputs)
    enough = {"memory_budget_mb": needed * 1.01}
    with recording(unet, **chosen, **enough):
        unet(**inputs)
    half = {"dtype": "float16", **enough}
    with pytest.raises(ValueError, match="memory_budget_mb"), recording(unet, **half):
        unet(**inputs)


def test_a_recording_tells_what_it_holds(unet: Any) -> None:
    with recording(unet, num_calls=2) as kept:
        assert repr(kept) == "Recording of nothing yet"
        with pytest.raises(RuntimeError, match="call the pipeline inside the with block"):
            kept.features()
        unet(**unet_inputs(1))
    with pytest.raises(RuntimeError, match=r"in 2 UNet calls.*nothing from down_blocks\.0"):
        kept.features()
    with recording(unet) as kept:
        unet(**unet_inputs(1))
    assert repr(kept) == (
        "Recording of 1 image(s): 27 heads in 16 layers on grids 1x1, 2x2, 4x4, 8x8; call 0 of 1"
    )


@pytest.mark.parametrize("calls", ["last", (0.0,), 2])
def test_other_numbers_of_calls_than_announced_are_an_error(unet: Any, calls: Any) -> None:
    """They would give another call than the one asked for."""
    with recording(unet, layers=(UP3,), calls=calls, num_calls=2):
        unet(**unet_inputs(1))
        with pytest.raises(RuntimeError, match=r"of one shape\. Got \(2, 4, 8, 8\)"):
            unet(**unet_inputs(2))
        unet(**unet_inputs(1))
        with pytest.raises(RuntimeError, match="one more UNet call than the 2"):
            unet(**unet_inputs(1))
    with recording(unet, layers=(UP3,), calls=calls, num_calls=4) as kept:
        for _ in range(3):
            unet(**unet_inputs(1))
    with pytest.raises(RuntimeError, match=r"must be reached in 4 UNet calls\. Got 3 calls"):
        kept.features()


def test_captures_outlive_the_pass_and_are_moved_and_cast(unet: Any) -> None:
    """Kept rows own their memory: half a guided batch is not held through a view."""
    with recording(unet, layers=(UP3,), dtype="bfloat16", device="cpu", guided=True) as kept:
        unet(**unet_inputs(2))
    value = kept.features()[0].values[UP3]
    assert value.dtype == torch.bfloat16
    assert value.is_contiguous()
    assert value.untyped_storage().nbytes() == value.nbytes
    assert not value.requires_grad


def test_layers_are_merged_by_their_grids() -> None:
    """Against the definition with numbers: weights 1/4 and 1/2 over their sum."""
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (torch.rand(1, 2, n, generator=generator) for n in (4 * 6, 2 * 3))
    merged = merge_layers({"a": fine, "b": coarse}, {"a": (4, 6), "b": (2, 3)})
    large = F.interpolate(coarse.view(1, 2, 2, 3), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(merged, fine.view(1, 2, 4, 6) / 3 + large * 2 / 3)
