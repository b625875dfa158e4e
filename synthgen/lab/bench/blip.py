"""How well the embedded BLIP names what is in scenes that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synthgen.embedded.blip import SHIPPED_BLIP
from synthgen.embedded.vocabulary import CLASSES, VALIDATION_SEEDS
from synthgen.jobs.prompt_lists import captioner
from synthgen.lab.world.captions import parse_caption
from synthgen.lab.world.render import Scene, render

BATCH = 25


def bench_blip(
    num: int = 200, weights: Path = SHIPPED_BLIP, objects: Sequence[int] = (1, 2)
) -> dict[str, float]:
    """Captions of validation scenes of one object and of two, `num` of each.

    Args:
        num: Scenes of each number of objects.
        weights: Their folder.
        objects: Numbers of objects.

    Returns:
        Shares of captions: ``classes_1``, ``classes_2`` that name every object class of the
        scene, ``classes`` of all, ``exact`` that name no more, ``grammar`` that the grammar
        reads, ``background`` and ``colors`` that are right (all of every object).
    """
    describe = captioner("scenes-blip" if weights == SHIPPED_BLIP else str(weights))
    named: dict[int, list[bool]] = {n: [] for n in objects}
    exact, places, colors, read = [], [], [], 0
    for n in objects:
        for first in range(0, num, BATCH):
            seeds = VALIDATION_SEEDS[first : min(first + BATCH, num)]
            scenes = [render(seed, n) for seed in seeds]
            texts = describe([scene.image for scene in scenes])
            for scene, text in zip(scenes, texts, strict=True):
                words = text.split()
                shown = {item.class_name for item in scene.objects}
                named[n].append(shown <= {*words})
                exact.append(shown == {*words} & {*CLASSES})
                try:
                    said = parse_caption(text)
                except ValueError:
                    places.append(False)
                    colors.append(False)
                    continue
                read += 1
                places.append(said.background == parse_caption(scene.caption).background)
                colors.append(_colors(scene) == {(o.class_name, o.colors) for o in said.objects})
    every = [hit for own in named.values() for hit in own]
    result = {f"classes_{n}": float(np.mean(own)) for n, own in named.items()}
    result |= {"classes": float(np.mean(every)), "exact": float(np.mean(exact))}
    result |= {"grammar": read / len(every)}
    result |= {"background": float(np.mean(places)), "colors": float(np.mean(colors))}
    return result


def _colors(scene: Scene) -> set[tuple[str, tuple[str, ...]]]:
    return {(item.class_name, tuple(item.colors)) for item in scene.objects}
