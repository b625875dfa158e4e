"""The files that describe a dataset to people and to Hugging Face: README.md and its friends.

The card's YAML names the tars (anything beside them would otherwise hijack ``load_dataset``) and
pins the features (inference looks at five samples only, and an empty list has no type).
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from synthgen import __version__
from synthgen.config import Config, dump
from synthgen.storage.redaction import redact_tree
from synthgen.types import BACKGROUND, IGNORE


def hub_features(
    image_format: str, versions: Sequence[str], labeled: bool = False
) -> list[dict[str, Any]]:
    """``dataset_info.features`` of the card: every column's type, in the hub's YAML form.

    Args:
        image_format: Suffix of the image column.
        versions: Keys of ``provenance.versions``.
        labeled: Whether the samples carry labels.
    """
    segment = [
        _scalar("id", "int64"),
        _scalar("area", "int64"),
        {"name": "bbox_xywh", "list": "int64"},
        {"name": "members", "list": {"list": "int64"}},
        _scalar("parent", "int64"),
        _scalar("label", "string"),
        _scalar("label_score", "float64"),
        _rle(),
    ]
    instance = [
        _scalar("id", "int64"),
        _scalar("label", "string"),
        _scalar("label_score", "float64"),
        _scalar("area", "int64"),
        {"name": "bbox_xywh", "list": "int64"},
        _rle(),
    ]
    labels = [{"name": "not_found", "list": "string"}, {"name": "instances", "list": instance}]
    provenance = [
        *(_scalar(name, "string") for name in ("config", "model", "revision")),
        *(_scalar(name, "string") for name in ("device", "dtype")),
        *(_scalar(name, "int64") for name in ("algorithm_version", "batch", "batch_size")),
        {"name": "versions", "struct": [_scalar(name, "string") for name in versions]},
    ]
    content = [
        _scalar("key", "string"),
        *(_scalar(name, "int64") for name in ("height", "width")),
        *(_scalar(name, "string") for name in ("prompt", "prompt_id")),
        *(_scalar(name, "int64") for name in ("seed", "image_index")),
        {"name": "classes", "list": "string"},
        _scalar("num_segments", "int64"),
        {"name": "segments", "list": segment},
        *(labels if labeled else []),
        {"name": "provenance", "struct": provenance},
    ]
    return [
        _scalar(image_format, "image"),
        {"name": "json", "struct": content},
        _scalar("mask.png", "image"),
        *([_scalar("sem.png", "image")] if labeled else []),
        _scalar("txt", "string"),
        _scalar("__key__", "string"),
        _scalar("__url__", "string"),
    ]


def class_table(names: Iterable[str], pinned: Mapping[str, int] | None = None) -> dict[str, str]:
    """The content of classes.json: id to name, 0 for background, 255 for ignore.

    Args:
        names: Of all classes.
        pinned: Ids of some; the others get those that are free, by alphabet.

    >>> class_table(["mat", "cat"]), class_table(["mat", "cat"], {"dog": 2, "mat": 1})
    ({'0': 'background', '1': 'cat', '2': 'mat', '255': 'ignore'}, {'0': 'background', ...})
    """
    table = {number: name for name, number in (pinned or {}).items()}
    taken = {*table, BACKGROUND, IGNORE}
    free = (number for number in itertools.count(1) if number not in taken)
    table |= dict(zip(free, sorted({*names} - {*(pinned or ())}), strict=False))
    table |= {BACKGROUND: "background", IGNORE: "ignore"}
    return {str(index): table[index] for index in sorted(table)}


def config_yaml(config: Config, digest: str) -> str:
    """The content of config.yaml: the resolved configuration, secrets taken out.

    ``synthgen generate config.yaml`` reads it back. Labeling that is off, and classes and
    extensions that there are not, are left out: datasets keep the file they always had.
    """
    tree = redact_tree(yaml.safe_load(dump(config)))
    if config.labeling.method == "none":
        del tree["labeling"]
    if config.classes is None:
        del tree["classes"]
    if not config.extended:
        del tree["extended"]
    head = f"# synthgen {__version__}: resolved configuration\n# digest: {digest}\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def readme(
    config: Config,
    identity: Mapping[str, Any],
    tars: Sequence[str],
    manifest: Mapping[str, Any] | None,
    labels: Mapping[str, Any] | None = None,
) -> str:
    """The dataset card.

    Args:
        config: The dataset's configuration.
        identity: Content of identity.json.
        tars: Names of the shards, for the hub and ``load_dataset``, or a pattern of them.
        manifest: The manifest; None while the dataset is being made.
        labels: Statistics of the labels (`label_statistics`); None without labels, and while the
            dataset is being made.
    """
    labeled = config.labeling.method != "none"
    versions = sorted(identity["environments"][0]["versions"])
    meta = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": []}]}],
        "dataset_info": {"features": hub_features(config.dataset.image_format, versions, labeled)},
        "tags": ["synthetic", "segmentation", "webdataset"],
        "task_categories": ["image-segmentation"],
    }
    # our names need no quotes, and YAML takes half a minute to find that of 100,000 of them
    names = "\n" + "".join(f"    - {name}\n" for name in tars) if tars else " []\n"
    head = yaml.safe_dump(meta, sort_keys=False).replace(" []\n", names, 1)
    facts = _facts(config, identity, manifest) | _label_facts(config, labels)
    return f"---\n{head}---\n{_BODY.format(**facts)}"


def _facts(
    config: Config, identity: Mapping[str, Any], manifest: Mapping[str, Any] | None
) -> dict[str, str]:
    model = redact_tree(identity["content"]["model"])
    totals = manifest["totals"] if manifest else {}
    size = (
        f"{totals['samples']} samples in {totals['shards']} shards "
        f"({totals['failed']} of {totals['planned']} planned samples failed"
        + "".join(f"; {reason}: {count}" for reason, count in totals["reasons"].items())
        + ")"
        if totals
        else f"being made; {config.planned} samples planned"
    )
    return {
        "size": size,
        "model": f"`{model['id']}`"
        + (f", revision `{model['revision']}`" if model.get("revision") else ""),
        "method": config.segmentation.method,
        "ks": ", ".join(str(k) for k in config.segmentation.clusters.ks),
        "suffix": config.dataset.image_format,
        "digest": identity["digest"],
        "version": __version__,
    }


def _label_facts(config: Config, labels: Mapping[str, Any] | None) -> dict[str, str]:
    """What the card says of classes; nothing but that there are none, without labels."""
    if config.labeling.method == "none":
        return {"labeled": "They have no class labels.", "semantic": "", "classes": ""}
    refiner = config.labeling.refiner
    refined = "" if refiner == "none" else f", refined by `{refiner}`"
    labeled = f"Labels: `{config.labeling.method}`{refined}, from cross-attention; see below."
    return {"labeled": labeled, "semantic": _SEMANTIC, "classes": _class_section(labels)}


def _class_section(labels: Mapping[str, Any] | None) -> str:
    if labels is None:
        return _CLASSES.format(rows="| being made | | | | |", background="", undecided="")
    counted = [row["pixels"] for row in labels["classes"].values()]
    total = max(1, sum(counted) + labels["background"] + labels["undecided"])
    rows = [
        f"| {_plain(name)} | {row['images']} | {row['pixels'] / total:.2%} "
        f"| {row['score']:.2f} | {row['not_found']} |"
        for name, row in labels["classes"].items()
    ]
    return _CLASSES.format(
        rows="\n".join(rows),
        background=f" Background: {labels['background'] / total:.1%} of all pixels.",
        undecided=f" Undecided: {labels['undecided'] / total:.1%}.",
    )


def _plain(name: str) -> str:
    """A class name that no Markdown reader takes for markup or another cell.

    >>> _plain("a|b<i>")
    'a\\\\|b&lt;i&gt;'
    """
    return html.escape(name, quote=False).replace("|", "\\|")


def _rle() -> dict[str, Any]:
    """A new tree each time: YAML writes a second use of the same one as a reference."""
    sizes = {"name": "size", "list": "int64"}
    return {"name": "rle", "struct": [sizes, _scalar("counts", "string")]}


def _scalar(name: str, dtype: str) -> dict[str, str]:
    return {"name": name, "dtype": dtype}


_SEMANTIC = (
    "| `KEY.sem.png` | 8-bit gray: class of each pixel by `classes.json`, 0 background, "
    "255 undecided |\n"
)

_CLASSES = """
## Classes

`classes.json` maps ids to names. Labels come from the attention of the image to the words of its
prompt; nobody checked them. Background means: none of the classes that the prompt names. A class
that was prompted and is not in the image is listed in the json's `not_found`. Each label has a
score (0 to 1). `instances` are connected components: touching objects of one class are one, an
object cut in two by another is two.{background}{undecided}

| class | images | pixels | score | prompted, not found |
|---|---|---|---|---|
{rows}
"""

_BODY = """
# Synthetic segmentation dataset

Images drawn by a diffusion model from text prompts, and masks clustered from the attention of
that model while it drew them ("Beyond Labels", Stillger et al., VISAPP 2025). Nobody drew or
checked a mask. Made by synthgen {version}.

- Size: {size}.
- Model: {model}. Its license and its biases are those of the images.
- Masks: `{method}`, k in {{{ks}}}, merged into a hierarchy. {labeled}
- Digest of everything that determines the bytes: `{digest}` (`identity.json`).
- Screening: **not screened** for unsafe, private or copyrighted content.

## Samples

| member | content |
|---|---|
| `KEY.{suffix}` | image |
| `KEY.mask.png` | 8-bit gray: id of the smallest mask at each pixel, 0 where there is none |
{semantic}| `KEY.txt` | prompt |
| `KEY.json` | size, prompt, seed, provenance, and all masks |

Masks overlap and form a hierarchy. Each has an id, area, box, parent (0: none), the pairs
(k, cluster) it was merged from, and a COCO run-length encoding.
{classes}
## Use

```python
import synthgen
for sample in synthgen.open_dataset("."):       # key, image, mask, masks, json, prompt
    ...

from datasets import load_dataset
rows = load_dataset(".", split="train", streaming=True)
```

`manifest.json` lists the shards with their sha256, `metadata/` has one row per planned sample,
also those that failed, with the reason. `synthgen verify .` checks all of it, and
`synthgen replay . KEY` makes a sample again.
"""
