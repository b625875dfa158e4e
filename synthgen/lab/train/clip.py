"""Recipe of scenes-clip: images and captions of rendered scenes, told apart from each other.

Contrastive (Radford et al. 2021), with what renderer and grammar know: a text may be true of
several images of a batch, so the loss spreads over all that are (Khosla et al. 2020, eq. 2). Most
texts say less than the caption does ("a ball", "a red cup in the snow"): what is left must be
found by the word that is left, which is what class names are asked for later. Half of the patches
of an image are dropped (FLIP, Li et al. 2023), but not towards the end.

Patches take part: the same loss on the soft maximum over patches of their similarity to a text
(the idea of FILIP, Yao et al. 2022). From random weights a class token alone learned in 360 steps
to find 95 % of captions among 50, while GEM named 3 % of true segments: nothing asked patches to
speak the texts' language. What they said of a class stood beside its objects (area under the ROC
curve .30, also after 100 steps with the second loss). CLIPs that saw 400 million pairs do better.
Here the vision tower begins with scenes-sam's encoder (`start`), whose places know what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import CLIPModel

from synthgen.embedded.card import read_card
from synthgen.embedded.clip import build_clip
from synthgen.embedded.sam import load_folder
from synthgen.embedded.vocabulary import BACKGROUNDS
from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.train.tokenizer import load_tokenizer
from synthgen.lab.train.trainer import Settings, Trainer
from synthgen.lab.world.captions import (
    OPENINGS,
    CaptionMeaning,
    ObjectPhrase,
    article,
    parse_caption,
    phrase,
)
from synthgen.lab.world.corpus import Corpus

MAX_LOG_SCALE = float(np.log(100.0))
"""Largest temperature factor, as CLIP clips it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSettings(Settings):
    """How scenes-clip is trained.

    Args:
        single_share: Share of a batch with one object.
        shortened: Share of the texts that say less than the caption.
        kept: Chance of an object's colors, and of the place, to stay in those.
        patches: Share of an image's patches that a step sees.
        whole_share: Share of the steps, the last ones, that see all.
    """

    batch: int = 64
    lr: float = 6e-4
    warm_up: int = 50
    ema_decay: float = 0.99
    single_share: float = 0.5
    shortened: float = 0.75
    kept: float = 0.4
    patches: float = 0.5
    whole_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Said:
    """What a text says: objects, of which colors and pattern may be empty, and a place or none."""

    objects: tuple[ObjectPhrase, ...]
    place: str | None

    def true_of(self, scene: CaptionMeaning) -> bool:
        """Whether a scene shows all of it.

        >>> red = CaptionMeaning((ObjectPhrase("ball", ("red",), "solid"),), "snow")
        >>> Said((ObjectPhrase("ball", (), ""),), None).true_of(red)
        True
        >>> Said((ObjectPhrase("ball", ("blue",), "solid"),), None).true_of(red)
        False
        """
        if self.place not in (None, scene.background):
            return False
        left = list(scene.objects)
        for said in sorted(self.objects, key=lambda item: -len(item.colors)):
            shown = [o for o in left if o.class_name == said.class_name]
            shown = [o for o in shown if not said.colors or o == said]
            if not shown:
                return False
            left.remove(shown[0])
        return True

    def text(self, rng: np.random.Generator) -> str:
        """Words for it, with any opening."""
        names = [
            phrase(item) if item.colors else f"{article(item.class_name)} {item.class_name}"
            for item in self.objects
        ]
        place = f" {BACKGROUNDS[self.place].phrase}" if self.place else ""
        return f"{OPENINGS[rng.integers(len(OPENINGS))]}{' and '.join(names)}{place}"


def shorten(scene: CaptionMeaning, kept: float, rng: np.random.Generator) -> Said:
    """Some of the objects, each with or without its colors and pattern, with or without place."""
    order = rng.permutation(len(scene.objects))[: rng.integers(len(scene.objects)) + 1]
    said = [
        o if rng.random() < kept else replace(o, colors=(), pattern="")  # as one: "red and white"
        for o in (scene.objects[i] for i in order)
    ]
    return Said(tuple(said), scene.background if rng.random() < kept else None)


class ClipTrainer(Trainer):
    """Both towers, optimizer and average while they are trained; only matrices decay.

    Args:
        corpus: Scenes and captions.
        tokenizer_dir: Folder of the tokenizer.
        settings: How.
    """

    def __init__(self, corpus: Corpus, tokenizer_dir: Path, settings: ClipSettings):
        torch.manual_seed(settings.seed)
        self.corpus = corpus
        self.meanings = [parse_caption(text) for text in corpus.captions]
        self.singles = corpus.singles()
        self.several = np.setdiff1d(np.arange(len(self.meanings)), self.singles)
        self.tokenizer = load_tokenizer(tokenizer_dir)
        self.model = build_clip(self.tokenizer).to(settings.device)
        if settings.bf16 and settings.device == "cpu":  # plain products use AMX: .54 s for .86
            self.model.set_attn_implementation("eager")
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.98), fused=True)
        super().__init__(settings, {"model": self.model}, optimizer, {"ema": self.model})

    @torch.no_grad()
    def start(self, weights: Path) -> None:
        """Begin the vision tower with the encoder of scenes-sam, where it has the same layers.

        What CLIP lacks (windows, relative positions) is left out; its first norm is scaled so that
        it hands on about what it is given.
        """
        encoder, vision = load_folder(weights).image_encoder, self.model.vision_model
        embeddings = vision.embeddings
        embeddings.patch_embedding.weight.copy_(encoder.patch_embed.proj.weight)
        places = encoder.pos_embed.flatten(1, 2)[0] + encoder.patch_embed.proj.bias
        embeddings.position_embedding.weight[1:].copy_(places)
        images = image_to_unit(torch.from_numpy(np.array(self.corpus.images[:16])))
        spread = embeddings(images.to(self.settings.device))[:, 1:].std(-1).mean()
        vision.pre_layrnorm.weight.fill_(spread)
        for ours, theirs in zip(vision.encoder.layers, encoder.blocks, strict=True):
            ours.layer_norm1.load_state_dict(theirs.norm1.state_dict())
            ours.layer_norm2.load_state_dict(theirs.norm2.state_dict())
            ours.mlp.fc1.load_state_dict(theirs.mlp.lin1.state_dict())
            ours.mlp.fc2.load_state_dict(theirs.mlp.lin2.state_dict())
            ours.self_attn.out_proj.load_state_dict(theirs.attn.proj.state_dict())
            parts = zip(
                theirs.attn.qkv.weight.chunk(3), theirs.attn.qkv.bias.chunk(3), strict=True
            )
            for name, (weight, bias) in zip("qkv", parts, strict=True):
                projection = getattr(ours.self_attn, f"{name}_proj")
                projection.weight.copy_(weight)
                projection.bias.copy_(bias)
        self.averages["ema"].load(dict(self.model.named_parameters()))
        self.start_from = f"{read_card(weights)['name']}, its image encoder"

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Contrastive loss within a share of a batch."""
        s = self.settings
        rng = np.random.default_rng((s.seed, step))
        num = round(s.batch * s.single_share)
        rows = np.concatenate(
            [rng.choice(self.singles, num), rng.choice(self.several, s.batch - num)]
        )
        rows = rows[rank::workers]
        scenes = [self.meanings[row] for row in rows]
        said = [
            shorten(scene, s.kept, rng)
            if rng.random() < s.shortened
            else Said(scene.objects, scene.background)
            for scene in scenes
        ]
        texts = [one.text(rng) for one in said]
        true = torch.tensor([[one.true_of(scene) for one in said] for scene in scenes])
        images = torch.from_numpy(self.corpus.images[np.sort(rows)][np.argsort(np.argsort(rows))])
        pixels = image_to_unit(images)
        pixels = torch.where(
            torch.from_numpy(rng.random((len(rows), 1, 1, 1)) < 0.5), pixels.flip(3), pixels
        )
        share = 1.0 if step >= s.steps * (1 - s.whole_share) else s.patches
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").input_ids
        with torch.autocast(s.device, torch.bfloat16, enabled=s.bf16):
            seen, dense = embed_patches(self.model, pixels.to(s.device), share, rng)
            named = self.model.get_text_features(tokens.to(s.device)).pooler_output
        scale = self.model.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
        texts_of = F.normalize(named.float(), dim=-1)
        whole = scale * F.normalize(seen.float(), dim=-1) @ texts_of.T
        near = scale * F.normalize(dense.float(), dim=-1) @ texts_of.T
        true = true.to(s.device)
        return contrast(whole, true) + contrast(near.logsumexp(1) - np.log(near.shape[1]), true)


def embed_patches(
    model: CLIPModel,
    pixels: Float[Tensor, "image 3 height width"],
    share: float,
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "image dim"], Float[Tensor, "image patch dim"]]:
    """Embeddings of images, and of a share of their patches, drawn for each image."""
    vision = model.vision_model
    tokens = vision.embeddings(pixels)
    if share < 1.0:
        places = tokens.shape[1] - 1
        keep = round(places * share)
        order = rng.random((len(tokens), places)).argsort(1)[:, :keep] + 1
        index: Int[Tensor, "image token"] = torch.from_numpy(order).to(tokens.device)
        index = torch.cat([torch.zeros_like(index[:, :1]), index], 1)
        tokens = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
    hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens)).last_hidden_state
    embedded: Tensor = model.visual_projection(vision.post_layernorm(hidden))
    return embedded[:, 0], embedded[:, 1:]


def contrast(
    logits: Float[Tensor, "image text"], true: Bool[Tensor, "image text"]
) -> Float[Tensor, ""]:
    """Mean over images of the mean over true texts of -log softmax, and the same the other way.

    With one true text per image it is CLIP's loss; with several, Khosla et al. 2020, eq. 2.

    >>> contrast(torch.zeros(2, 2), torch.eye(2, dtype=torch.bool)).item()
    0.6931471824645996
    """
    share = true.float()

    def one_way(of: Tensor, share: Tensor) -> Tensor:
        return -((share * of.log_softmax(1)).sum(1) / share.sum(1)).mean()

    return (one_way(logits, share) + one_way(logits.T, share.T)) / 2
