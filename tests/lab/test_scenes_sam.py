"""scenes-sam: prompts and answers, the package's own decoder, losses, a recipe that resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from synthgen.embedded.sam import (
    AUTOMATIC_DEFAULTS,
    SHIPPED_SAM,
    WEIGHTS_NAME,
    build_scenes_sam,
    decode_prompts,
    embed_boxes,
    embed_points,
    encode_images,
    load_folder,
)
from synthgen.embedded.vocabulary import CLASS_PARTS, PARTS, VALIDATION_SEEDS
from synthgen.lab.bench.sam import bench_sam, best_ious
from synthgen.lab.train import checkpoint
from synthgen.lab.train.export import export_sam
from synthgen.lab.train.sam import (
    FOCAL_WEIGHT,
    SamSettings,
    SamTrainee,
    SamTrainer,
    enlarge_phase,
    mask_iou,
    mask_loss,
    promptable_loss,
)
from synthgen.lab.train.sam_prompts import (
    MAX_JITTER,
    NUM_POINTS,
    OBJECT_STRIDE,
    OFFSET_SCALE,
    PromptBatch,
    center_offsets,
    draw_batch,
    draw_boxes,
    level_masks,
    region_map,
)
from synthgen.lab.world.corpus import TruthCorpus, truth_corpus
from synthgen.lab.world.render import render
from synthgen.lab.world.truth import true_objects, true_parts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TruthCorpus:
    return truth_corpus(tmp_path_factory.mktemp("corpus") / "truth", 4, workers=0)


def _fields(batch: PromptBatch) -> dict[str, torch.Tensor]:
    return {name: getattr(batch, name) for name in PromptBatch.__dataclass_fields__}


def test_model_is_small_enough_to_ship_and_decodes_as_the_package_does() -> None:
    torch.manual_seed(1)
    sam = build_scenes_sam().eval()
    assert sum(p.numel() for p in sam.parameters()) * 2 < 8e6
    images = torch.rand(2, 3, 128, 128) * 255
    points, boxes = (
        torch.tensor([[5.0, 90.0], [60.0, 7.0]]),
        torch.tensor([[3.0, 4.0, 70.0, 90.0]]),
    )
    owner = torch.tensor([1, 0, 1])
    with torch.no_grad():
        embeddings = encode_images(sam, images)
        sparse = torch.cat([embed_points(sam, points), embed_boxes(sam, boxes)])
        logits, predicted = decode_prompts(sam, embeddings, sparse, owner)
        for i, prompt in enumerate([*points, *boxes]):
            request = {"image": images[owner[i]], "original_size": (128, 128)}
            if i < 2:
                request |= {"point_coords": prompt[None, None], "point_labels": torch.ones(1, 1)}
            else:
                request |= {"boxes": prompt[None]}
            (expected,) = sam([request], multimask_output=i < 2)
            outputs = slice(1, None) if i < 2 else slice(0, 1)
            low = expected["low_res_logits"][0]
            assert torch.allclose(logits[i, outputs], low, rtol=1e-3, atol=1e-4)
            assert torch.allclose(predicted[i, outputs], expected["iou_predictions"][0], atol=1e-4)


def test_levels_are_the_part_the_object_and_the_group() -> None:
    rng = np.random.default_rng(0)
    instance = rng.integers(0, 4, (6, 7)).astype(np.uint8)
    part = (rng.integers(1, len(PARTS) + 1, (6, 7)) * (instance > 0)).astype(np.uint8)
    regions = region_map(instance, part)
    for y, x in np.ndindex(6, 7):
        masks = level_masks(regions, int(regions[y, x]))
        for v, u in np.ndindex(6, 7):
            same_object = instance[v, u] == instance[y, x]
            assert masks[0, v, u] == (same_object and part[v, u] == part[y, x])
            assert masks[1, v, u] == same_object
            assert masks[2, v, u] == ((instance[v, u] > 0) == (instance[y, x] > 0))


def test_offsets_point_to_the_center_of_the_object() -> None:
    instance = np.random.default_rng(0).integers(0, 3, (5, 6)).astype(np.uint8)
    offsets = center_offsets(instance)
    for y, x in np.ndindex(5, 6):
        center = np.argwhere(instance == instance[y, x]).mean(0)
        expected = (center - [y, x]) / OFFSET_SCALE * (instance[y, x] > 0)
        assert np.allclose(offsets[:, y, x], expected, atol=1e-6)


def test_batches_depend_on_seed_step_and_number_only(corpus: TruthCorpus) -> None:
    whole = _fields(draw_batch(corpus, 0, 3, range(4)))
    for name, value in _fields(draw_batch(corpus, 0, 3, [1, 3])).items():
        assert torch.equal(value, whole[name][1::2]), name
    other = _fields(draw_batch(corpus, 0, 4, range(4)))
    assert not torch.equal(other["points_xy"], whole["points_xy"])


def test_points_lie_in_their_masks(corpus: TruthCorpus) -> None:
    batch = draw_batch(corpus, 1, 0, range(8))
    seen = 0
    for image in range(8):
        phase = batch.phase_yx[image]
        for point, masks in zip(batch.points_xy[image], batch.point_masks[image], strict=True):
            y, x = int(point[1]), int(point[0])
            assert (masks[0] <= masks[1]).all()
            assert (masks[1] <= masks[2]).all()
            if y % 2 == phase[0] and x % 2 == phase[1]:
                assert masks[:, y // 2, x // 2].all()
                seen += 1
    assert seen > NUM_POINTS


def test_boxes_surround_a_part_or_an_object(corpus: TruthCorpus) -> None:
    regions = region_map(corpus.instance[0], corpus.part[0])
    rng = np.random.default_rng(0)
    for boxes, masks in (draw_boxes(regions, rng) for _ in range(10)):
        for box, mask in zip(boxes, masks, strict=True):
            ys, xs = np.nonzero(mask)
            tight = np.array([xs.min(), ys.min(), xs.max(), ys.max()])
            assert (abs(box - tight) <= MAX_JITTER).all()
            inside = np.unique(regions[mask])
            whole = np.unique(regions[corpus.instance[0] == inside[0] // OBJECT_STRIDE])
            assert len(inside) == 1 or inside.tolist() == whole.tolist()


def test_phases_are_the_pixels_of_the_enlarged_logits() -> None:
    logits = torch.randn(4, 1, 5, 5)
    phases = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    large = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    for got, whole, (y, x) in zip(enlarge_phase(logits, phases), large, phases, strict=True):
        assert torch.allclose(got, whole[:, y::2, x::2], atol=1e-6)


def test_mask_loss_is_torchvisions_focal_and_dice_by_hand() -> None:
    logits, truth = torch.randn(3, 20), torch.rand(3, 20) < 0.4
    wanted = truth.float()
    focal = sigmoid_focal_loss(logits, wanted, alpha=-1, gamma=2).mean(1)
    p = torch.sigmoid(logits)
    dice = [
        1
        - (2 * sum(a * b for a, b in zip(p[i], wanted[i], strict=True)) + 1)
        / (sum(p[i]) + sum(wanted[i]) + 1)
        for i in range(3)
    ]
    assert torch.allclose(mask_loss(logits, truth), FOCAL_WEIGHT * focal + torch.stack(dice))
    assert mask_iou(torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[True, True, False]])) == 1 / 3
    assert mask_iou(-torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)) == 1


def _train(corpus: TruthCorpus, folder: Path, steps: int, workers: int = 1) -> None:
    settings = SamSettings(steps=steps, batch=2, decay_share=0.0, warm_up=4, workers=workers)
    list(SamTrainer(corpus, settings).train(folder))


def test_training_resumes_and_shares_batches_as_if_it_did_not(
    corpus: TruthCorpus, tmp_path: Path
) -> None:
    _train(corpus, tmp_path / "straight", 2)
    _train(corpus, tmp_path / "broken", 1)
    first = checkpoint.load_state(tmp_path / "broken")
    _train(corpus, tmp_path / "broken", 2)
    _train(corpus, tmp_path / "shared", 1, workers=2)
    names = ("straight", "broken", "shared")
    found = [checkpoint.load_state(tmp_path / name) for name in names]
    (straight, meta), (broken, again), (shared, _) = (pair for pair in found if pair is not None)
    assert first is not None
    assert (meta["step"], again["step"], meta["samples"]) == (2, 2, 4)
    for name, tensor in straight.items():
        assert torch.equal(tensor, broken[name]), name
    for name, tensor in shared.items():
        if name.endswith(".exp_avg"):  # a tenth of the first gradient
            scale = first[0][name].abs().max()
            assert torch.allclose(tensor, first[0][name], atol=1e-4 * float(scale) + 1e-8), name


def test_exported_weights_load_and_are_measured(corpus: TruthCorpus, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    with pytest.raises(FileNotFoundError, match=r"train sam --steps N"):
        export_sam(tmp_path, folder)
    with pytest.raises(FileNotFoundError, match=r"export-sam"):
        load_folder(folder)
    _train(corpus, tmp_path / "sam", 1)
    export_sam(tmp_path, folder)
    card = json.loads((folder / "card.json").read_text())
    assert card["name"] == "scenes-sam"
    assert card["recipe"]["step"] == 1
    assert card["recipe"]["curve"]
    assert (folder / WEIGHTS_NAME).stat().st_size < 8e6
    found = checkpoint.load_state(tmp_path / "sam")
    assert found is not None
    sam = load_folder(folder)
    for name, mean in checkpoint.subset(found[0], "ema_sam").items():
        assert torch.equal(sam.state_dict()[name], mean.half().float())
    loose = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    figures = bench_sam(2, folder, workers=0, parameters=loose)
    assert 0 <= figures["object_iou"] <= 1
    assert figures["masks_per_image"] > 0
    assert set(AUTOMATIC_DEFAULTS) >= set(loose)


def test_training_goes_on_from_exported_weights(corpus: TruthCorpus, tmp_path: Path) -> None:
    list(SamTrainer(corpus, SamSettings(steps=0, batch=2)).train(tmp_path / "sam", SHIPPED_SAM))
    found = checkpoint.load_state(tmp_path / "sam")
    assert found is not None
    shipped = load_folder().state_dict()
    live, means = (checkpoint.subset(found[0], part) for part in ("model.sam", "ema_sam"))
    assert all(torch.equal(live[name], tensor) for name, tensor in shipped.items())
    assert all(torch.equal(mean, shipped[name]) for name, mean in means.items())


def test_truth_of_a_scene_is_its_objects_and_their_parts() -> None:
    scene = render(VALIDATION_SEEDS[0])
    objects, parts = true_objects(scene), true_parts(scene)
    several = [i for i in scene.objects if len(CLASS_PARTS[i.class_name]) > 1]
    assert len(objects) == len(scene.objects)
    assert len(parts) <= sum(len(item.parts) for item in several)
    for part in parts:
        assert part.sum() >= 20
        assert any((part <= whole).all() for whole in objects)
    assert best_ious(objects, parts[:0]) == [0.0] * len(objects)
    slow = [max((o & m).sum() / (o | m).sum() for m in objects) for o in objects]
    assert np.allclose(best_ious(objects, objects), slow)


@pytest.mark.slow
def test_four_images_can_be_learned_by_heart(corpus: TruthCorpus) -> None:
    torch.manual_seed(0)
    trainee = SamTrainee()
    live = [p for p in trainee.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(live, 1e-3)
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 50, (500 - step) / 200)
        loss = promptable_loss(trainee, draw_batch(corpus, 0, step, range(4)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        optimizer.step()
    batch = draw_batch(corpus, 0, 1_000_000, range(8))
    owner = torch.arange(8).repeat_interleave(NUM_POINTS)
    with torch.no_grad():
        embeddings = encode_images(trainee.sam, batch.images)
        points = embed_points(trainee.sam, batch.points_xy.flatten(0, 1))
        logits, _ = decode_prompts(trainee.sam, embeddings, points, owner)
    pixels = enlarge_phase(
        logits[:, 1:].flatten(0, 1)[:, None], batch.phase_yx[owner].repeat_interleave(3, 0)
    )
    iou = mask_iou(pixels.flatten(1), batch.point_masks.flatten(0, 2).flatten(1))
    assert iou.mean() > 0.8
