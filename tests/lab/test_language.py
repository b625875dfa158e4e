"""GEM against a literal one, LS's methods, and the comparison on annotated images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel
from typer.testing import CliRunner

from synthgen.cli import app
from synthgen.embedded.clip import Clip, build_clip, clip_config, save_clip
from synthgen.lab.language.evaluate import LanguageSettings, evaluate_language
from synthgen.lab.language.gem import gem, gem_features
from synthgen.lab.language.methods import (
    attention_to,
    class_prompts,
    classify,
    heat_rows,
    read_method,
)
from synthgen.lab.language.scores import counts_of, summarize
from synthgen.lab.train.tokenizer import load_tokenizer, write_tokenizer
from synthgen.lab.world.render import render
from synthgen.types import Heatmaps, SelfMap


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights, as it ships."""
    root = tmp_path_factory.mktemp("clip")
    write_tokenizer(root / "tokenizer")
    tokenizer = load_tokenizer(root / "tokenizer")
    torch.manual_seed(0)
    save_clip(build_clip(tokenizer), tokenizer, root / "weights")
    return root / "weights"


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def literal_block(attention: torch.nn.Module, x: Tensor, iterations: int) -> Tensor:
    """Equations 4 to 7 for one image, place by place and head by head, with lists."""
    heads, width = attention.num_heads, attention.head_dim
    beta = float(torch.stack([row.norm() for row in x]).mean()) / math.sqrt(width)
    projections = [attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)]
    outputs = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        value = projections[2][:, part]
        for projection in projections:
            s = projection[:, part]

            def looked(s: Tensor, at: Tensor) -> Tensor:
                unit = [row / row.norm() for row in s]
                found = []
                for row in unit:
                    weights = softmax([beta * float(row @ other) for other in unit])
                    found.append(sum(w * v for w, v in zip(weights, at, strict=True)))
                return torch.stack(found)

            for _ in range(iterations):
                s = torch.stack([row / row.norm() for row in s])
                s = looked(s, s)
            outputs[:, part] += looked(s, value) / 3
    return attention.out_proj(outputs)


@pytest.mark.parametrize(("blocks", "iterations"), [(1, 1), (3, 1), (2, 2)])
def test_gem_is_the_literal_one_on_random_weights(blocks: int, iterations: int) -> None:
    torch.manual_seed(1)
    config = clip_config(647, 646)
    config.vision_config.update(
        {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "patch_size": 32}
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for layer in model.vision_model.encoder.layers:  # far from uniform attention
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.mul_(30)
        pixels = torch.randn(1, 3, 96, 160)
        found = gem_features(model, pixels, blocks=blocks, iterations=iterations)
        vision = model.vision_model
        embedded = vision.embeddings(pixels, interpolate_pos_encoding=True)
        states = [vision.pre_layrnorm(embedded)]
        for layer in vision.encoder.layers:
            states.append(layer(states[-1], None))
        first = len(vision.encoder.layers) - blocks
        stream = states[first][0]
        for index in range(first, len(vision.encoder.layers)):
            layer = vision.encoder.layers[index]
            seen = layer.layer_norm1(states[index])[0]
            stream = stream + literal_block(layer.self_attn, seen, iterations)
        expected = model.visual_projection(vision.post_layernorm(stream[1:]))
    assert found.shape == (1, 3, 5, 128)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(0, 2), expected, dim=-1)
    assert cosine.min() >= 0.9999
    plain = model.visual_projection(vision.post_layernorm(states[-1][0, 1:]))
    assert torch.nn.functional.cosine_similarity(plain, expected, dim=-1).min() < 0.999


def test_gem_says_what_does_not_fit(folder: Path) -> None:
    clip = Clip(folder)
    with pytest.raises(ValueError, match="multiples of the patch, 8"):
        gem_features(clip.model, torch.zeros(1, 3, 100, 128))
    with pytest.raises(ValueError, match=r"blocks must be from 1 to 6\. Got 7"):
        gem_features(clip.model, torch.zeros(1, 3, 128, 128), blocks=7)
    similarity = gem(clip, render(1).image, ["a ball", "a tree", "a star"])
    assert similarity.shape == (3, 32, 32)
    assert similarity.abs().max() <= 1.0001


def test_other_folders_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a CLIP folder must hold config\.json"):
        Clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(ValueError, match=r"must hold a CLIP .*model_type 'blip'"):
        Clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match="must hold a CLIP") as caught:
        Clip(tmp_path)
    assert "\n" not in str(caught.value)
    done = CliRunner().invoke(
        app, ["evaluate", "language", "--num", "1", "-s", f"clip={tmp_path}", "--methods", "GEM"]
    )
    assert "must hold a CLIP" in str(done.exception)


def test_the_background_is_what_no_class_has() -> None:
    similarity = torch.tensor([[[0.3, 0.1]], [[0.1, 0.1]]])
    rows = attention_to(similarity, 0.1, True, lacking=0.3)
    best = 1 / (1 + math.exp(-2))
    assert rows[:, 0, 0] == pytest.approx([max(0.0, 0.7 - best), best, 1 - best])
    assert rows[:, 0, 1] == pytest.approx([0.2, 0.5, 0.5])
    assert len(attention_to(similarity, 0.1, False)) == 2
    named = attention_to(similarity, 0.1, True, places=torch.tensor([[[0.3, 0.3]], [[0.1, 0.1]]]))
    assert named[0, 0, 0] == pytest.approx(named[1, 0, 0])
    assert named[0, 0, 1] > named[1:, 0, 1].max()


def test_methods_choose_by_place_by_neighbors_and_by_cluster() -> None:
    """Four places; the second looks at the third, and is of its cluster."""
    rows = np.array([[[0.9, 0.6, 0.2, 0.1]], [[0.1, 0.4, 0.8, 0.9]]], dtype=np.float32)
    assert classify(rows, (1, 4)).tolist() == [[0, 0, 1, 1]]
    matrix = torch.eye(4)
    matrix[2] = torch.tensor([0.0, 0.9, 0.1, 0.0])  # the third hands on to the second
    spread = rows.reshape(2, 4) @ matrix.numpy()  # literal: AGG[i] = sum over j of CA[j] SA[j, i]
    found = classify(rows, (1, 4), self_map=SelfMap(matrix, (1, 4)))
    assert found.tolist() == [spread.argmax(0).tolist()] == [[0, 1, 1, 1]]
    clusters = np.array([[[0, 7, 7, 7]]])
    assert classify(rows, (1, 4), labels=clusters, ks=(2,)).tolist() == [[0, 1, 1, 1]]


def test_lists_of_classes_that_are_too_long_become_several_prompts() -> None:
    import synthgen

    tokenizer = synthgen.load_model().tokenizer
    names = [f"thing {number}" for number in range(12)]
    prompts = class_prompts(tokenizer, names, joint=" and ")
    assert len(prompts) > 1
    assert [name for _, own in prompts for name in own] == names
    with pytest.raises(ValueError, match="within 48 tokens"):
        class_prompts(tokenizer, ["so long a name of a thing " * 4])
    maps = [
        Heatmaps(own, torch.full((len(own), 2, 2), float(i)), torch.full((2, 2), float(i)))
        for i, (_, own) in enumerate(prompts)
    ]
    rows = heat_rows(maps, True)
    assert len(rows) == 13
    assert rows[0] == pytest.approx(np.full((2, 2), (len(prompts) - 1) / 2))


def test_names_of_methods_are_read_or_refused() -> None:
    assert read_method("GTClustW").known
    assert read_method("AggSD") == read_method("AggSDW")
    assert read_method("clusters:wardW").joined == "ward"
    with pytest.raises(ValueError, match="Did you mean 'AggGEM'"):
        read_method("AggGEMM")
    with pytest.raises(ValueError, match="Did you mean 'ward'"):
        read_method("clusters:wards")
    with pytest.raises(ValueError, match=r"template must have \{\} once"):
        LanguageSettings(template="a photo of {0.__class__}")


def test_scores_are_sums_over_images_and_means_over_classes() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 4, (2, 3, 20, 20))
    truth[:, :3] = 255
    rows = [
        {"counts": counts_of(t, p), "seconds": 1.0, "megabytes": 2.0}
        for t, p in zip(truth, predicted, strict=True)
    ]
    found = summarize(rows, [1, 2, 3], [0])
    seen = truth != 255
    for number in range(4):
        both = ((truth == number) & (predicted == number) & seen).sum()
        either = (((truth == number) | (predicted == number)) & seen).sum()
        assert found["per_class"][str(number)] == pytest.approx(both / either)
    assert found["precision"] == found["recall"] == 1.0


def test_images_are_measured_once_and_go_on(folder: Path, tmp_path: Path) -> None:
    """A pair of folders with a scene and a broken file; all kinds of methods."""
    root, out = tmp_path / "data", tmp_path / "out"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    scene = render(3)
    Image.fromarray(scene.image).save(root / "images" / "scene.png")
    Image.fromarray(scene.semantic).save(root / "masks" / "scene.png")
    (root / "images" / "broken.png").write_bytes(b"no image")
    settings = LanguageSettings(
        data="folder",
        root=root,
        clip=str(folder),
        methods=("GEM", "AggGEMW", "HeadClust", "clusters:rgbxy", "GTClust", "AggSD"),
    )
    with pytest.raises(ValueError, match=r"classes\.json \(folder\)"):
        evaluate_language(out, settings)
    names = {str(i): name for i, name in enumerate(("ball", "star", "heart", "car", "house"), 1)}
    names |= {str(i): f"thing {i}" for i in range(6, 13)}
    (root / "classes.json").write_text(json.dumps({"0": "background", **names}))
    result = evaluate_language(out, settings)
    assert (result["num"], list(result["failed"])) == (1, ["broken"])
    assert list(result["table"]) == list(settings.methods)
    known = {str(cls) for cls in np.unique(scene.semantic)}
    assert set(result["table"]["AggGEMW"]["per_class"]) <= {"0", *known}
    assert result["table"]["AggSD"]["recall"] is not None
    assert {"language.md", "language.png", "language.json", "rows.parquet"} <= {
        path.name for path in out.iterdir()
    }
    before = {path: path.stat().st_mtime_ns for path in out.glob("rows/*/*.json")}
    assert evaluate_language(out, settings)["table"] == result["table"]
    assert {path: path.stat().st_mtime_ns for path in out.glob("rows/*/*.json")} == before


def test_171_names_are_compared_as_the_27_classes_that_they_belong_to(
    folder: Path, tmp_path: Path
) -> None:
    """LS's protocol of COCO-Stuff: where a method knows the names, coarse classes are right."""
    root = tmp_path / "stuff"
    fine = np.zeros((64, 64), dtype=np.uint8)
    fine[:32, 32:], fine[32:], fine[:4] = 105, 123, 255  # person, clouds, grass, nobody says
    (root / "images" / "val2017").mkdir(parents=True)
    (root / "annotations" / "val2017").mkdir(parents=True)
    Image.fromarray(render(3).image[:64, :64]).save(root / "images" / "val2017" / "1.jpg")
    Image.fromarray(fine).save(root / "annotations" / "val2017" / "1.png")
    settings = LanguageSettings(
        data="cocostuff-171", root=root, clip=str(folder), methods=("GEM", "GTClustW", "AggSD")
    )
    result = evaluate_language(tmp_path / "out", settings)
    assert len(result["names"]) == 27
    shown = {result["names"][number] for number in result["table"]["GTClustW"]["per_class"]}
    assert shown <= {"person", "sky", "plant"}
    assert {"person", "sky", "plant"} <= {
        result["names"][number] for number in result["table"]["GEM"]["per_class"]
    }
    assert result["published"]["AggGEM"] == 0.396
    counts = json.loads(next((tmp_path / "out").glob("rows/*/*.json")).read_text())
    total = sum(own[2] for own in counts["methods"]["AggSD"]["counts"].values())
    assert total == round((fine[None, :, :] != 255).mean() * 320 * 320)
