"""Train the embedded world's models.

    python -m synthgen.lab.train vae --steps 2000 --batch 8
    python -m synthgen.lab.train ldm --grid 16 --steps 3400
    python -m synthgen.lab.train ldm --grid 32 --steps 500
    python -m synthgen.lab.train classifier --steps 1500 --threads 1
    python -m synthgen.lab.train export --weights synthgen/embedded/weights
    python -m synthgen.lab.train m2f --steps 6000 --batch 16 --workers 2 --scenes 16000
    python -m synthgen.lab.train export-m2f
    python -m synthgen.lab.train sam --steps 6000 --batch 8 --workers 2 --scenes 16000
    python -m synthgen.lab.train export-sam

Every recipe resumes from its checkpoint folder under `--work`; run the same command again to go
on, with more `--steps` to train longer. Without checkpoints, the diffusion model and SAM go on
from the exported weights, whose optimizer warms up again:

    python -m synthgen.lab.train ldm --grid 32 --steps 2000 --start synthgen/embedded/weights
    python -m synthgen.lab.train sam --steps 5000 --start synthgen/embedded/weights_sam
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from synthgen.embedded.mask2former import SHIPPED_M2F
from synthgen.embedded.sam import SHIPPED_SAM
from synthgen.lab.train.export import export_weights
from synthgen.lab.train.loop import Progress
from synthgen.lab.train.recipe_classifier import ClassifierSettings, train_classifier
from synthgen.lab.train.recipe_ldm import LdmSettings, prepare_data, train_ldm
from synthgen.lab.train.recipe_m2f import M2fSettings, export_m2f, train_m2f
from synthgen.lab.train.recipe_sam import SamSettings, train_sam
from synthgen.lab.train.recipe_vae import VaeSettings, train_vae
from synthgen.lab.train.sam_export import export_sam
from synthgen.lab.train.tokenizer import write_tokenizer
from synthgen.lab.world.corpus import Corpus, cached_corpus
from synthgen.lab.world.truth_corpus import TruthCorpus, truth_corpus

WEIGHTS = Path("synthgen/embedded/weights")
SINGLE_SHARE = 0.3
"""Share of the corpus with one object; the rest, two to four, teaches composition."""


def _given(args: argparse.Namespace, settings: type) -> dict[str, Any]:
    """Options that are fields of the settings and not left at None."""
    names = [field.name for field in fields(settings)]
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def _ldm(args: argparse.Namespace, corpus: Corpus) -> Iterator[Progress]:
    tokenizer_dir = args.work / "tokenizer"
    write_tokenizer(tokenizer_dir)
    settings = LdmSettings(**_given(args, LdmSettings))
    data = prepare_data(corpus, tokenizer_dir, args.work / "corpus" / "latents.npy")
    return train_ldm(data, tokenizer_dir, args.work / "ldm", settings, args.start)


def _vae(args: argparse.Namespace, corpus: Corpus) -> Iterator[Progress]:
    return train_vae(corpus, args.work / "vae", VaeSettings(**_given(args, VaeSettings)))


def _classifier(args: argparse.Namespace, corpus: Corpus) -> Iterator[Progress]:
    settings = ClassifierSettings(**_given(args, ClassifierSettings))
    return train_classifier(corpus, args.work / "classifier", settings)


RECIPES: dict[str, Callable[[argparse.Namespace, Corpus], Iterator[Progress]]] = {
    "vae": _vae,
    "ldm": _ldm,
    "classifier": _classifier,
}


def _m2f(args: argparse.Namespace, corpus: TruthCorpus) -> Iterator[Progress]:
    return train_m2f(corpus, args.work / "m2f", M2fSettings(**_given(args, M2fSettings)))


def _sam(args: argparse.Namespace, corpus: TruthCorpus) -> Iterator[Progress]:
    settings = SamSettings(**_given(args, SamSettings))
    return train_sam(corpus, args.work / "sam", settings, args.start)


TRUTH_RECIPES: dict[str, Callable[[argparse.Namespace, TruthCorpus], Iterator[Progress]]] = {
    "m2f": _m2f,
    "sam": _sam,
}
"""Recipes that learn from the scenes' maps."""

EXPORTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "export": lambda args: export_weights(args.work, args.weights or WEIGHTS),
    "export-m2f": lambda args: export_m2f(args.work / "m2f", args.weights or SHIPPED_M2F),
    "export-sam": lambda args: export_sam(args.work, args.weights or SHIPPED_SAM),
}


def _start(args: argparse.Namespace) -> Iterator[Progress]:
    if args.recipe in TRUTH_RECIPES:
        corpus = truth_corpus(args.work / "truth", args.scenes)
        return TRUTH_RECIPES[args.recipe](args, corpus)
    scenes = cached_corpus(args.work / "corpus", args.scenes, SINGLE_SHARE)
    return RECIPES[args.recipe](args, scenes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=(*RECIPES, *TRUTH_RECIPES, *EXPORTS))
    parser.add_argument("--steps", type=int, default=None, help="steps in total, of this grid")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, default=Path(".cache/scenes"))
    parser.add_argument("--scenes", type=int, default=30_000, help="scenes in the corpus")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--grid", type=int, choices=(8, 16, 32), default=None)
    parser.add_argument("--decay-share", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast; slow without bf16 hardware")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--single-share", type=float, default=None)
    parser.add_argument("--calm-density", type=float, default=None)
    parser.add_argument("--warm-up", type=int, default=None)
    parser.add_argument("--ema-decay", type=float, default=None)
    parser.add_argument("--start", type=Path, default=None, help="exported weights to go on from")
    parser.add_argument("--workers", type=int, default=1, help="processes that share each batch")
    parser.add_argument("--weights", type=Path, default=None, help="folder that export writes")
    return parser


def main() -> None:
    """Run a recipe and print one line of progress now and then, or export the weights."""
    parser = _parser()
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.recipe in EXPORTS:
        EXPORTS[args.recipe](args)
        return
    if args.steps is None:
        parser.error(f"{args.recipe} needs --steps, the number of steps to reach")
    for seen in _start(args):
        clock = time.strftime("%H:%M:%S")
        pace = f"loss {seen.loss:.4f} {seen.seconds_per_step:.2f} s/step"
        print(clock, args.recipe, f"step {seen.step}", pace, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
