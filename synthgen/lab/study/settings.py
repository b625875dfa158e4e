"""The rows of each study, carried over from the paper's grids to those of any model.

BL's tables are about SD 2.1 at 512 pixels: grids 16, 32, 64, heads of 64 features, features
upsampled to 64 or 256. Here 64, 32 and 16 mean the finest grid of a model, half and a quarter of
it; 64 and 256 as upsampling resolutions mean once and four times the finest grid, at most the
image; components are at most the head dimension. Paper rows that come to the same setting are one
row. Everything else is the table's: tables 6 and 7 were run with reweighting, table 2 without
the middle block. Which layers tables 6 and 7 are about is not certain: they are repeated with up
layers and with both.

One study is our own: what borders that follow the image are worth on each grid and at each k.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from synthgen.config import SegmentationConfig
from synthgen.diffusion.selection import Layer
from synthgen.lab.study.paper import ALL_GRIDS, TABLES, PaperRow, paper_row
from synthgen.registry import CLUSTER_REFINERS
from synthgen.segmentation.segment import segment_sample
from synthgen.types import HeadFeatures, Sample, Segmentation

StudyName = Literal["layers", "components", "resolutions", "mid", "upsampling", "refinement"]
Position = Literal["down", "up", "both", "none"]

PARTS: Mapping[str, tuple[str, ...]] = {
    "down": ("down_blocks",),
    "up": ("up_blocks",),
    "both": ("down_blocks", "up_blocks"),
}
"""Layer position to the parts of the UNet it stands for."""

POSITIONS: Mapping[str, Position] = {"down": "down", "up": "up", "both": "both", "all": "both"}
"""What the tables call a position, without "+mid", to the down and up layers that it has."""

BETWEEN = (128, 512)
"""Upsampling resolutions that no table has: between the two, and the image itself."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What one row of a study sets.

    Args:
        layers: Position of the layers; none: color and position in place of features.
        mid: Whether the middle block's layer is added.
        grids: Shorter sides of the grids whose down and up layers are kept, ascending.
        components: Principal components per head.
        reweight: BL eq. 5.
        resolution: Longer side in pixels that features are upsampled to and clustered at.
        refiner: Of `segmentation.refiner`; empty in what repeats the paper, whose components are
            as they are, too.
        k: The only number of clusters; None: all of them.
    """

    layers: Position
    mid: bool
    grids: tuple[int, ...]
    components: int
    reweight: bool
    resolution: int
    refiner: str = ""
    k: int | None = None

    @property
    def name(self) -> str:
        """A name that says all of it.

        >>> Setting("up", True, (8, 16), 3, False, 32).name
        'up+mid grids 8,16 pc 3 plain at 32'
        """
        if self.layers == "none":
            return f"rgbxy at {self.resolution}"
        layers = f"{self.layers}{'+mid' if self.mid else ''}"
        grids = ",".join(str(side) for side in self.grids)
        weights = "reweight" if self.reweight else "plain"
        name = f"{layers} grids {grids} pc {self.components} {weights} at {self.resolution}"
        refined = f" refiner {self.refiner}" if self.refiner else ""
        return f"{name}{refined}{f' k {self.k}' if self.k else ''}"

    def segment(self, sample: Sample, base: SegmentationConfig) -> Segmentation:
        """The masks of a captured sample: ``base`` decides whatever the row does not."""
        chosen = replace(sample, features=self.select(sample.features))
        wanted: dict[str, Any] = {"components": self.components, "reweight": self.reweight}
        clusters: dict[str, Any] = {"resolution": self.resolution}
        if not self.refiner:
            wanted["normalization"] = "none"  # as in BL
        if self.k is not None:
            clusters["ks"] = (self.k,)
        changes = {
            "features": base.features.model_copy(update=wanted),
            "clusters": base.clusters.model_copy(update=clusters),
            **({"method": "rgbxy"} if self.layers == "none" else {}),
            **({"refiner": self.refiner} if self.refiner else {}),
        }
        with warnings.catch_warnings():  # heads of fewer features keep all; `study_rows` says so
            warnings.filterwarnings("ignore", "features.components must be at most")
            return segment_sample(chosen, base.model_copy(update=changes))

    def select(self, features: HeadFeatures) -> HeadFeatures:
        """The layers of an image that the row clusters; none for color and position."""
        kept = [name for name, grid in features.grids.items() if self._keeps(name, grid)]
        return HeadFeatures(
            {name: features.values[name] for name in kept},
            {name: features.grids[name] for name in kept},
        )

    def _keeps(self, name: str, grid: tuple[int, int]) -> bool:
        part = name.split(".")[0]
        if self.layers == "none":
            return False
        if part == "mid_block":
            return self.mid
        return part in PARTS[self.layers] and min(grid) in self.grids


@dataclass(frozen=True, slots=True)
class Row:
    """A setting with the paper's rows that it stands for; the baseline stands for none."""

    setting: Setting
    papers: tuple[PaperRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """What rows depend on in a model at one image size.

    Args:
        grids: Shorter sides of the grids of its down and up layers, finest first.
        finest: Longer side of the finest grid.
        image: Longer side of the image in pixels.
        head_dim: Largest head dimension; heads of fewer features keep all they have.
        has_mid: Whether its middle block has self-attention.
    """

    grids: tuple[int, ...]
    finest: int
    image: int
    head_dim: int
    has_mid: bool


def model_layout(layers: Sequence[Layer], image: tuple[int, int]) -> Layout:
    """The layout of a model with these attention layers for images of (height, width)."""
    outer = [layer for layer in layers if not layer.name.startswith("mid_block")]
    return Layout(
        grids=tuple(sorted({min(layer.grid) for layer in outer}, reverse=True)),
        finest=max(max(layer.grid) for layer in outer),
        image=max(image),
        head_dim=max(layer.dim for layer in layers),
        has_mid=len(outer) < len(layers),
    )


@dataclass(frozen=True, slots=True)
class Design:
    """What a study repeats of the paper.

    Args:
        title: For people.
        papers: The paper's rows in the order of the study's table; none in a study of ours.
        reference: The row that the others are compared with; None: the first.
        wide: Whether it has the columns of tables 6 and 7, otherwise those of 2 and 8.
    """

    title: str
    papers: tuple[PaperRow, ...]
    reference: PaperRow | None
    wide: bool


def _upsampling_rows() -> tuple[PaperRow, ...]:
    """All grids of tables 6 and 7, and 8 components at resolutions that neither has."""
    listed = [row for table in (6, 7) for row in TABLES[table] if row.grids == ALL_GRIDS]
    made = replace(paper_row(6, 4), table=0, samples=None, sam={}, m2f={})
    return (*listed, *(replace(made, id=-1, resolution=side) for side in BETWEEN))


def _in_both_readings(table: int) -> tuple[PaperRow, ...]:
    """Rows of a table that does not name its layers, with up layers and with both (`paper`)."""
    return (*TABLES[table], *(replace(row, layer="both") for row in TABLES[table]))


STUDIES: Mapping[StudyName, Design] = {
    "layers": Design(
        "reweighting and layer positions (BL table 2)", TABLES[2], paper_row(2, 7), False
    ),
    "mid": Design(
        "the middle block (BL table 8, beside table 2)",
        (*TABLES[8], *TABLES[2]),
        paper_row(2, 7),
        False,
    ),
    "resolutions": Design(
        "attention resolutions and components (BL table 6)",
        _in_both_readings(6),
        paper_row(6, 0),
        True,
    ),
    "components": Design(
        "components at the finer upsampling (BL table 7)",
        _in_both_readings(7),
        paper_row(7, 0),
        True,
    ),
    "upsampling": Design(
        "upsampling resolution (BL table 6 against table 7)",
        _upsampling_rows(),
        paper_row(6, 4),
        True,
    ),
    "refinement": Design("borders that follow the image, per grid and per k", (), None, True),
}


def study_rows(
    study: StudyName, layout: Layout, ks: Sequence[int] = (2, 5, 6, 10, 20)
) -> tuple[Row, ...]:
    """The rows of a study for a model, and the baseline at each of their resolutions.

    Rows that name a grid which the model lacks are left out. Warns once, of components that are
    clamped to the head dimension.

    Raises:
        ValueError: If the study is about a middle block that does not attend.
    """
    if study == "mid" and not layout.has_mid:
        raise ValueError(
            "The study 'mid' must have a model with self-attention in its middle block. Got "
            "none; choose another --backbone or study."
        )
    if study == "refinement":
        return _refinement_rows(layout, ks)
    papers, head_dim = STUDIES[study].papers, layout.head_dim
    over = sorted({row.components for row in papers if row.components > head_dim}, reverse=True)
    if over:
        warnings.warn(
            f"Components must be at most the head dimension. Got {', '.join(map(str, over))} for "
            f"heads of {head_dim}; those rows are the row of {head_dim}.",
            stacklevel=2,
        )
    merged: dict[Setting, tuple[PaperRow, ...]] = {}
    for paper in papers:
        setting = adapt(paper, layout)
        if setting is not None:
            merged[setting] = (*merged.get(setting, ()), paper)
    sides = sorted({setting.resolution for setting in merged})
    baseline = [Row(Setting("none", False, (), 0, False, side)) for side in sides]
    return (*(Row(setting, rows) for setting, rows in merged.items()), *baseline)


def _refinement_rows(layout: Layout, ks: Sequence[int]) -> tuple[Row, ...]:
    """Every refiner on all grids and on each alone; without and with the default at each k."""
    grids = tuple(sorted(layout.grids))
    whole = Setting("both", False, grids, min(8, layout.head_dim), False, layout.image)
    per_grid = [
        replace(whole, grids=own, refiner=refiner)
        for own in dict.fromkeys([grids, *((side,) for side in grids)])
        for refiner in CLUSTER_REFINERS
    ]
    default = SegmentationConfig().refiner
    per_k = [replace(whole, refiner=refiner, k=k) for k in ks for refiner in ("none", default)]
    return tuple(Row(setting) for setting in (*per_grid, *per_k))


def adapt(paper: PaperRow, layout: Layout) -> Setting | None:
    """A row of the paper for a model; None where the model has no such grids.

    >>> scenes = Layout((32, 16, 8), 32, 128, 16, True)
    >>> adapt(paper_row(7, 8), scenes).name
    'up grids 16,32 pc 16 reweight at 128'
    """
    levels = [(64 // side).bit_length() - 1 for side in paper.grids]
    if paper.grids == ALL_GRIDS:
        levels = list(range(len(layout.grids)))
    if max(levels) >= len(layout.grids):
        return None
    return Setting(
        layers=POSITIONS[paper.layer.removesuffix("+mid")],
        mid=paper.layer.endswith("+mid"),
        grids=tuple(sorted(layout.grids[level] for level in levels)),
        components=min(paper.components, layout.head_dim, 64),
        reweight=paper.reweight,
        resolution=min(layout.finest * paper.resolution // 64, layout.image),
    )


def needed_layers(settings: Iterable[Setting]) -> Literal["up", "both", "all"]:
    """What must be captured so that every row can be made."""
    settings = tuple(settings)
    if any(setting.mid for setting in settings):
        return "all"
    return "both" if any(s.layers in ("down", "both") for s in settings) else "up"
