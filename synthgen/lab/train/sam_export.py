"""Export of scenes-sam: the averaged weights of a checkpoint to the folder that ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthgen.embedded.card import CARD_NAME, draft_of, file_digests, thinned
from synthgen.embedded.sam import SHIPPED_SAM, save_sam
from synthgen.embedded.vocabulary import IMAGE_SIZE
from synthgen.lab.train.recipe_sam import averaged_sam
from synthgen.lab.train.sam_data import LEVELS


def export_sam(work: Path, folder: Path = SHIPPED_SAM) -> None:
    """Write weights and card of the checkpoint in `work/sam` to `folder`.

    The measured quality of a former card is dropped: measure the new weights.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    sam, meta = averaged_sam(work / "sam")
    recipe = {key: meta[key] for key in ("step", "samples", "settings")}
    card: dict[str, Any] = {
        "name": "scenes-sam",
        "license": "Apache-2.0",
        "image_size": IMAGE_SIZE,
        "outputs": ["box", *LEVELS],
        "untrained": "mask prompts and negative points",
        "num_parameters": sum(p.numel() for p in sam.parameters()),
        "seed": meta["settings"]["seed"],
        "recipe": {**recipe, "curve": thinned(meta["curve"])},
        "quality": {},
    }
    with draft_of(folder) as draft:
        save_sam(sam, draft)
        digests = file_digests(draft)
        (draft / CARD_NAME).write_text(json.dumps({**card, "sha256": digests}, indent=1))
