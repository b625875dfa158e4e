"""Recipe of scenes-blip: the caption of a scene, word by word.

What an image leaves open is left out: captions have their plainest wording, and objects stand in
the order of the vocabulary. Word by word alone, a small vision transformer learns late where to
look. So its patches also say which classes and colors there are, the surest patch for each; that
head is not exported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthgen.embedded.blip import SPECIAL, build_blip, build_blip_tokenizer
from synthgen.embedded.vocabulary import CLASSES, COLORS
from synthgen.lab.train.classifier import augment
from synthgen.lab.train.latents import image_to_unit
from synthgen.lab.train.tokenizer import caption_words
from synthgen.lab.train.trainer import Settings, Trainer
from synthgen.lab.world.captions import compose_caption, parse_caption
from synthgen.lab.world.corpus import Corpus

SHARES = {1: 0.35, 2: 0.45, 3: 0.12, 4: 0.08}
"""Share of a batch by number of objects."""

KINDS = (*CLASSES, *COLORS)
"""What patches say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipSettings(Settings):
    """How scenes-blip is trained.

    Args:
        aid: Weight of what patches say of classes and colors.
    """

    batch: int = 64
    decay_share: float = 0.5
    aid: float = 1.0


def plain_caption(caption: str) -> str:
    """A caption that says the same, with nothing in it that its image leaves open.

    >>> plain_caption("a photo of a red star next to a blue ball in the snow")
    'a blue ball and a red star in the snow'
    """
    meaning = parse_caption(caption)
    order = sorted(meaning.objects, key=lambda o: (CLASSES.index(o.class_name), o.colors))
    return compose_caption(replace(meaning, objects=tuple(order)))


class BlipTrainer(Trainer):
    """Model, the patches' head, optimizer and average; only matrices decay.

    Args:
        corpus: Scenes and captions.
        tokenizer_dir: Where the vocabulary is written.
        settings: How.
    """

    def __init__(self, corpus: Corpus, tokenizer_dir: Path, settings: BlipSettings):
        torch.manual_seed(settings.seed)
        self.corpus = corpus
        self.captions = [plain_caption(text) for text in corpus.captions]
        counts = np.array([len(names) for names in corpus.classes])
        self.rows = {n: np.flatnonzero(counts == n) for n in SHARES if (counts == n).any()}
        said = [
            {*classes, *(color for own in colors for color in own)}
            for classes, colors in zip(corpus.classes, corpus.colors, strict=True)
        ]
        self.shown = torch.tensor([[float(kind in own) for kind in KINDS] for own in said])
        self.tokenizer = build_blip_tokenizer(caption_words(), tokenizer_dir)
        self.model = build_blip(len(self.tokenizer)).to(settings.device)
        self.head = nn.Linear(self.model.config.vision_config.hidden_size, len(KINDS))
        self.head.to(settings.device)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, settings.lr, betas=(0.9, 0.98), fused=True)
        modules = {"model": self.model, "head": self.head}
        super().__init__(settings, modules, optimizer, {"ema": self.model})

    def loss(self, step: int, rank: int, workers: int) -> Tensor:
        """Cross entropy of the words, and binary cross entropy of what patches say."""
        s = self.settings
        rng = np.random.default_rng((s.seed, step))
        shares = np.array([SHARES[n] for n in self.rows])
        kinds = rng.choice(list(self.rows), s.batch, p=shares / shares.sum())
        rows = np.sort(np.array([rng.choice(self.rows[kind]) for kind in kinds]))
        images = image_to_unit(torch.from_numpy(self.corpus.images[rows]))
        images = augment(images, torch.Generator().manual_seed(s.seed * 1_000_003 + step))
        part = slice(rank, None, workers)
        texts = self.tokenizer(
            [self.captions[row] for row in rows[part]], padding=True, return_tensors="pt"
        )
        tokens, seen = texts.input_ids.to(s.device), texts.attention_mask.to(s.device)
        tokens[:, 0] = SPECIAL.index("[DEC]")
        labels = tokens.masked_fill(seen == 0, -100)
        there = self.shown[torch.from_numpy(rows[part])].to(s.device)
        with torch.autocast(s.device, torch.bfloat16, enabled=s.bf16):
            output = self.model(images[part].to(s.device), tokens, seen, labels)
            said = self.head(output.image_embeds[:, 1:]).amax(1).float()
        patches = F.binary_cross_entropy_with_logits(said, there)
        loss: Tensor = output.loss.float() + s.aid * patches
        return loss
