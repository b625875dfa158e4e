"""Recipe of scenes-blip: the caption of a scene, word by word.

What an image leaves open is left out: captions have their plainest wording, and objects stand in
the order of the vocabulary. Word by word alone, a small vision transformer learns late what there
is. So its patches also say which classes and colors an image has, the surest patch for each, and
of scenes whose pixels are known, which class each patch is of; that head is not exported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from synthgen.embedded.blip import PATCH, SPECIAL, build_blip, build_blip_tokenizer
from synthgen.embedded.card import read_card
from synthgen.embedded.clip import Clip
from synthgen.embedded.vocabulary import CLASSES, COLORS
from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.train.tokenizer import caption_words
from synthgen.lab.train.trainer import Settings, Trainer, lineage
from synthgen.lab.world.captions import compose_caption, parse_caption
from synthgen.lab.world.corpus import Corpus, TruthCorpus

SHARES = {1: 0.35, 2: 0.45, 3: 0.12, 4: 0.08}
"""Share of a batch by number of objects."""

CLASS_WEIGHT = 3.0
"""Weight of the words that name classes, in the mean over words."""

KINDS = (*CLASSES, *COLORS)
"""What patches say, behind the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipSettings(Settings):
    """How scenes-blip is trained.

    Args:
        aid: Weight of what patches say of classes and colors, and of their own class.
        truths: Scenes whose pixels are known.
        truth_share: Share of a batch that they are, whatever their number of objects.
    """

    batch: int = 64
    decay_share: float = 0.5
    aid: float = 1.0
    truths: int = 20_000
    truth_share: float = 0.5


def plain_caption(caption: str) -> str:
    """A caption that says the same, with nothing in it that its image leaves open.

    >>> plain_caption("a photo of a red star next to a blue ball in the snow")
    'a blue ball and a red star in the snow'
    """
    meaning = parse_caption(caption)
    order = sorted(meaning.objects, key=lambda o: (CLASSES.index(o.class_name), o.colors))
    return compose_caption(replace(meaning, objects=tuple(order)))


def patch_classes(
    semantic: UInt8[np.ndarray, "batch height width"],
) -> Float[Tensor, "batch patch kind"]:
    """Share of each patch that is background, and that is of each class.

    >>> patch_classes(np.full((1, 16, 32), 2, dtype=np.uint8)).shape
    torch.Size([1, 2, 13])
    """
    shares = F.one_hot(torch.from_numpy(semantic).long(), len(CLASSES) + 1).movedim(-1, 1)
    return F.avg_pool2d(shares.float(), PATCH).flatten(2).mT


class BlipTrainer(Trainer):
    """Model, the patches' head, optimizer and average; only matrices decay.

    Args:
        corpus: Scenes and captions.
        truth: What pixels of some of them are, in the corpus' order.
        first: The scene in the corpus that is the first of ``truth``.
        tokenizer_dir: Where the vocabulary is written.
        settings: How.
    """

    def __init__(
        self,
        corpus: Corpus,
        truth: TruthCorpus,
        first: int,
        tokenizer_dir: Path,
        settings: BlipSettings,
    ):
        if not np.array_equal(corpus.images[first], truth.image[0]):
            raise ValueError(f"truth must be of the corpus' scenes from {first} on.")
        torch.manual_seed(settings.seed)
        self.corpus, self.truth, self.first = corpus, truth, first
        self.captions = [plain_caption(text) for text in corpus.captions]
        counts = np.array([len(names) for names in corpus.classes])
        self.rows = {n: np.flatnonzero(counts == n) for n in SHARES if (counts == n).any()}
        said = [
            {*classes, *(color for own in colors for color in own)}
            for classes, colors in zip(corpus.classes, corpus.colors, strict=True)
        ]
        self.shown = torch.tensor([[float(kind in own) for kind in KINDS] for own in said])
        words = caption_words()
        self.tokenizer = build_blip_tokenizer(words, tokenizer_dir)
        weights = [CLASS_WEIGHT if word in CLASSES else 1.0 for word in words]
        self.weights = torch.tensor([1.0] * len(SPECIAL) + weights, device=settings.device)
        self.model = build_blip(len(self.tokenizer)).to(settings.device)
        self.head = nn.Linear(self.model.config.vision_config.hidden_size, 1 + len(KINDS))
        self.head.to(settings.device)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.98), fused=True)
        modules = {"model": self.model, "head": self.head}
        super().__init__(settings, modules, optimizer, {"ema": self.model})

    @torch.no_grad()
    def start(self, weights: Path) -> None:
        """Go on from the exported model, or begin the vision tower with that of scenes-clip.

        CLIP norms what enters the first block, and BLIP does not: that norm becomes part of the
        embeddings, with the spread that patches have on average. CLIP's patches have half the
        side: ours see the image at half its size.
        """
        card = read_card(weights)
        self.start_from = f"{card['name']}, its vision tower"
        if card["name"] == "scenes-blip":
            self.start_from = lineage(card["name"], card["recipe"])
            stored = load_file(weights / "model.safetensors")  # tied weights are stored once
            self.model.load_state_dict({k: t.float() for k, t in stored.items()}, strict=False)
            self.averages["ema"].load(dict(self.model.named_parameters()))
            return
        clip, vision = Clip(weights).model.vision_model, self.model.vision_model
        theirs, ours, norm = clip.embeddings, vision.embeddings, clip.pre_layrnorm
        images = image_to_unit(torch.from_numpy(np.array(self.corpus.images[:64])))
        scale = norm.weight / theirs(images)[:, 1:].std(-1).mean()
        kernel, places = theirs.patch_embedding.weight, theirs.position_embedding.weight
        factor = PATCH // theirs.patch_size
        kernel = kernel.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
        side = theirs.image_size // theirs.patch_size
        pooled = F.avg_pool2d(places[1:].T.unflatten(1, (side, side)), factor).flatten(1).T
        centered = pooled - pooled.mean(-1, keepdim=True)
        ours.patch_embedding.weight.copy_((kernel - kernel.mean(0)) * scale[:, None, None, None])
        ours.patch_embedding.bias.copy_(norm.bias)
        ours.position_embedding[0, 1:] = centered * scale
        ours.position_embedding[0, 0] = 0
        ours.class_embedding[0, 0] = norm(theirs.class_embedding + places[0])
        for block, other in zip(vision.encoder.layers, clip.encoder.layers, strict=True):
            attention = other.self_attn
            block.layer_norm1.load_state_dict(other.layer_norm1.state_dict())
            block.layer_norm2.load_state_dict(other.layer_norm2.state_dict())
            block.mlp.load_state_dict(other.mlp.state_dict())
            block.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            block.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            block.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        vision.post_layernorm.load_state_dict(clip.post_layernorm.state_dict())
        self.averages["ema"].load(dict(self.model.named_parameters()))

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Cross entropy of the words, and of what patches say."""
        s = self.settings
        rng = np.random.default_rng((s.seed, step))
        known = round(s.batch * s.truth_share)
        shares = np.array([SHARES[n] for n in self.rows])
        kinds = rng.choice(list(self.rows), s.batch - known, p=shares / shares.sum())
        rows = np.array(
            [
                *(self.first + rng.integers(len(self.truth), size=known)),
                *(rng.choice(self.rows[kind]) for kind in kinds),
            ]
        )
        turned = rng.random(s.batch) < 0.5
        gain = 1 + 0.1 * torch.from_numpy(rng.standard_normal((s.batch, 3, 1, 1))).float()
        shift = 0.08 * torch.from_numpy(rng.standard_normal((s.batch, 1, 1, 1))).float()
        part = slice(rank, None, workers)
        rows, turned, gain, shift = rows[part], turned[part], gain[part], shift[part]
        ways = [slice(None, None, -1 if t else 1) for t in turned]
        images = np.stack(
            [self.corpus.images[row][:, way] for row, way in zip(rows, ways, strict=True)]
        )
        pixels = (image_to_unit(torch.from_numpy(images)) * gain + shift).clamp(-1, 1)
        texts = self.tokenizer(
            [self.captions[row] for row in rows], padding=True, return_tensors="pt"
        )
        tokens, seen = texts.input_ids.to(s.device), texts.attention_mask.to(s.device)
        tokens[:, 0] = SPECIAL.index("[DEC]")
        with torch.autocast(s.device, torch.bfloat16, enabled=s.bf16):
            output = self.model(pixels.to(s.device), tokens, seen)
            said = self.head(output.image_embeds[:, 1:])
        targets = tokens[:, 1:].masked_fill(seen[:, 1:] == 0, -100)
        logits, said = output.logits[:, :-1].float().flatten(0, 1), said.float()
        words = F.cross_entropy(logits, targets.flatten(), self.weights, ignore_index=-100)
        there = self.shown[torch.from_numpy(rows)].to(s.device)
        any_patch = F.binary_cross_entropy_with_logits(said[..., 1:].amax(1), there)
        loss: Tensor = words + s.aid * any_patch
        num = len(range(*part.indices(known)))
        if num:
            pairs = zip(rows[:num] - self.first, ways[:num], strict=True)
            maps = np.stack([self.truth.semantic[row][:, way] for row, way in pairs])
            own = said[:num, :, : len(CLASSES) + 1].log_softmax(-1)
            loss = loss - s.aid * (patch_classes(maps).to(s.device) * own).sum(-1).mean()
        return loss
