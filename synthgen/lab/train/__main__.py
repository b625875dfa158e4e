"""Train the embedded world's models.

    python -m synthgen.lab.train vae --steps 2000 --batch 8
    python -m synthgen.lab.train ldm --grid 16 --steps 3400
    python -m synthgen.lab.train ldm --grid 32 --steps 500
    python -m synthgen.lab.train classifier --steps 1500 --threads 1
    python -m synthgen.lab.train export --weights synthgen/embedded/weights
    python -m synthgen.lab.train m2f --steps 6000 --workers 2 --scenes 16000
    python -m synthgen.lab.train export-m2f
    python -m synthgen.lab.train sam --steps 6000 --workers 2 --scenes 16000
    python -m synthgen.lab.train export-sam
    python -m synthgen.lab.train clip --steps 500 --start synthgen/embedded/weights_sam
    python -m synthgen.lab.train export-clip
    python -m synthgen.lab.train blip --steps 3600 --scenes 40000 --threads 1 --bf16 --lr 8e-4 \
        --warm-up 100 --decay-share 0.6 --ema-decay 0.995 --start synthgen/embedded/weights_clip
    python -m synthgen.lab.train blip --steps 11500 --scenes 40000 --threads 1 --bf16 --lr 6e-4 \
        --warm-up 100 --decay-share 0.6 --start synthgen/embedded/weights_blip
    python -m synthgen.lab.train export-blip

Every recipe resumes from its checkpoint folder under `--work`; run the same command again to go
on, with more `--steps` to train longer. Without checkpoints, the diffusion model, SAM and BLIP
go on from the exported weights, whose optimizer warms up again:

    python -m synthgen.lab.train ldm --grid 32 --steps 2000 --start synthgen/embedded/weights
    python -m synthgen.lab.train sam --steps 5000 --start synthgen/embedded/weights_sam

The diffusion model that ships has seen 383,000 samples of mostly one object, by those two stages,
and then, on one core in five hours, 622,000 of mostly two to four:

    python -m synthgen.lab.train ldm --bf16 --grid 16 --steps 20000 --batch 48 --scenes 40000 \
        --single-share 0.3 --calm-density 0.5 --lr 8e-4 --start synthgen/embedded/weights
    python -m synthgen.lab.train ldm --bf16 --grid 32 --steps 800 --batch 24 --scenes 40000 \
        --single-share 0.3 --lr 4e-4 --warm-up 20 --decay-share 0.6 --ema-decay 0.99

The first was stopped after 12,554 steps. The CLIP that ships (``--bf16``, 40,000 scenes) went on
with texts that mostly name classes alone, to learn what its patches show:

    python -m synthgen.lab.train clip --steps 610 --shortened 0.9 --kept 0.1 --decay-share 0.27 \
        --whole-share 0
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from synthgen.embedded.blip import SHIPPED_BLIP
from synthgen.embedded.card import SHIPPED
from synthgen.embedded.clip import SHIPPED_CLIP
from synthgen.embedded.mask2former import SHIPPED_M2F
from synthgen.embedded.sam import SHIPPED_SAM
from synthgen.embedded.vocabulary import TRAIN_SEEDS
from synthgen.lab.train.blip import BlipSettings, BlipTrainer
from synthgen.lab.train.classifier import ClassifierSettings, ClassifierTrainer
from synthgen.lab.train.clip import ClipSettings, ClipTrainer
from synthgen.lab.train.export import (
    export_blip,
    export_clip,
    export_m2f,
    export_sam,
    export_weights,
)
from synthgen.lab.train.ldm import LdmSettings, LdmTrainer, prepare_data
from synthgen.lab.train.m2f import M2fTrainer
from synthgen.lab.train.sam import SamSettings, SamTrainer
from synthgen.lab.train.tokenizer import write_tokenizer
from synthgen.lab.train.trainer import Settings, Trainer
from synthgen.lab.train.vae import VaeSettings, VaeTrainer
from synthgen.lab.world.corpus import Corpus, TruthCorpus, cached_corpus, truth_corpus

SINGLE_SHARE = 0.3
"""Share of the corpus with one object; the rest, two to four, teaches composition."""


def _scenes(args: argparse.Namespace) -> Corpus:
    return cached_corpus(args.work / "corpus", args.scenes, SINGLE_SHARE)


def _truth(args: argparse.Namespace) -> TruthCorpus:
    return truth_corpus(args.work / "truth", args.scenes)


def _ldm(args: argparse.Namespace, settings: LdmSettings) -> LdmTrainer:
    write_tokenizer(args.work / "tokenizer")
    latents = args.work / "corpus" / "latents.npy"
    data = prepare_data(_scenes(args), args.work / "tokenizer", latents)
    return LdmTrainer(data, args.work / "tokenizer", settings)


def _blip(args: argparse.Namespace, settings: BlipSettings) -> BlipTrainer:
    first = round(args.scenes * SINGLE_SHARE)  # behind those with one object at any rate
    seed = TRAIN_SEEDS.start + first
    truth = truth_corpus(args.work / "truth", settings.truths, first_seed=seed)
    return BlipTrainer(_scenes(args), truth, first, args.work / "words", settings)


def _clip(args: argparse.Namespace, settings: ClipSettings) -> ClipTrainer:
    write_tokenizer(args.work / "tokenizer")
    return ClipTrainer(_scenes(args), args.work / "tokenizer", settings)


RECIPES: dict[str, tuple[type, Callable[[argparse.Namespace, Any], Trainer]]] = {
    "vae": (VaeSettings, lambda args, settings: VaeTrainer(_scenes(args), settings)),
    "ldm": (LdmSettings, _ldm),
    "classifier": (
        ClassifierSettings,
        lambda args, settings: ClassifierTrainer(_scenes(args), settings),
    ),
    "m2f": (Settings, lambda args, settings: M2fTrainer(_truth(args), settings)),
    "clip": (ClipSettings, _clip),
    "blip": (BlipSettings, _blip),
    "sam": (SamSettings, lambda args, settings: SamTrainer(_truth(args), settings)),
}

EXPORTS: dict[str, tuple[Callable[[Path, Path], None], Path]] = {
    "export": (export_weights, SHIPPED),
    "export-m2f": (export_m2f, SHIPPED_M2F),
    "export-sam": (export_sam, SHIPPED_SAM),
    "export-clip": (export_clip, SHIPPED_CLIP),
    "export-blip": (export_blip, SHIPPED_BLIP),
}


def _parser() -> argparse.ArgumentParser:
    """A command per recipe, whose options are its settings, and per export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="recipe", required=True)
    for name, (settings, _) in RECIPES.items():
        command = commands.add_parser(name, help=f"train {name}")
        for field in fields(settings):
            option = f"--{field.name.replace('_', '-')}"
            if field.type == "bool":
                command.add_argument(option, action="store_true")
            else:
                kind = {"int": int, "float": float, "str": str}[str(field.type)]
                needed = field.default is MISSING
                command.add_argument(option, type=kind, default=field.default, required=needed)
        command.add_argument("--scenes", type=int, default=30_000, help="scenes in the corpus")
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--start", type=Path, help="exported weights to go on from")
    for name, (_, shipped) in EXPORTS.items():
        command = commands.add_parser(name, help="write weights and card")
        command.add_argument("--weights", type=Path, default=shipped, help="what is written")
    for command in commands.choices.values():
        command.add_argument("--work", type=Path, default=Path(".cache/scenes"))
    return parser


def main() -> None:
    """Run a recipe and print one line of progress now and then, or export the weights."""
    args = _parser().parse_args()
    if args.recipe in EXPORTS:
        EXPORTS[args.recipe][0](args.work, args.weights)
        return
    torch.set_num_threads(args.threads)
    kind, make = RECIPES[args.recipe]
    settings = kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
    for seen in make(args, settings).train(args.work / args.recipe, args.start):
        clock = time.strftime("%H:%M:%S")
        pace = f"loss {seen.loss:.4f} {seen.seconds_per_step:.2f} s/step"
        print(clock, args.recipe, f"step {seen.step}", pace, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
