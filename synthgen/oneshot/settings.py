"""How parts are learned and found; every default cites its table of the paper."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from synthgen.config.reading import load_section
from synthgen.config.settings import Fraction, Section, row_of
from synthgen.registry import REFINERS

Timestep = Annotated[int, Field(ge=0, le=999)]


class PartSettings(Section):
    """Settings of `learn_parts` and of the `Parts` that it gives."""

    epochs: int = Field(200, ge=1, le=100_000, description="Rounds through the examples (B).")
    lr: float = Field(0.1, gt=0.0, le=10.0, description="Learning rate of Adam (table 9).")
    decay: bool = Field(False, description="Lower the rate to 0 along a cosine, not in the paper.")
    alpha: float = Field(1.0, ge=0.0, description="Weight of the WAS maps' loss (table 6).")
    beta: float = Field(0.005, ge=0.0, description="Weight of the denoising loss (table 6).")
    timesteps: tuple[Timestep, Timestep] = Field(
        (5, 100), description="Range of the noise that is learned at (table 7)."
    )
    timestep: Timestep = Field(100, description="Noise that parts are found at (table 8).")
    more_timesteps: tuple[Timestep, ...] = Field(
        (), description="Others, whose maps are averaged with those; not in the paper."
    )
    text: str = Field(
        "part", description="What embeddings begin as: names, or a word to repeat (table 5)."
    )
    background: Literal["start", "rest"] = Field(
        "start",
        description="Background is what the text's first token is attended to (the paper), or all "
        "tokens that are no part's: small models leave the first little.",
    )
    cross_layers: tuple[str, ...] | None = Field(
        None, description="Cross-attention layers; null: the 8th to 12th of 16 (table 10)."
    )
    self_layers: tuple[str, ...] | None = Field(
        None, description="Self-attention layers of one grid; null: the last three (B)."
    )
    augmentation: Literal["none", "car", "horse", "face"] = Field(
        "horse",
        description="Flips, blur, turns and crops: car (at least half of the sides), horse "
        "(0.8), face (0.6, turned by at most 10 degrees; the others 30) (B).",
    )
    recolor: Fraction = Field(
        0.0,
        description="Share of the views in other colors, so that a part is no color; not in the "
        "paper.",
    )
    backgrounds: Fraction = Field(
        0.0,
        description="Share of the views before another background, so that parts are not what "
        "stands out from the example's; not in the paper.",
    )
    checkpointing: bool = Field(
        False, description="Compute the UNet's blocks again on the way back: less memory."
    )
    validate_every: int = Field(
        10, ge=1, description="Epochs between looks at the validation example; the best is kept."
    )
    was: bool = Field(True, description="Find parts by WAS maps; false: cross maps (table 1).")
    rescale: bool = Field(
        False, description="WAS maps stretched to the range of the cross maps (the authors' code)."
    )
    presence: Fraction = Field(
        0.2, description="A part whose cross map never exceeds this is not there (B)."
    )
    noises: int = Field(1, ge=1, le=64, description="Noise seeds that maps are averaged over.")
    patches: bool = Field(
        False, description="Average the maps of four overlapping corners, as for faces (B)."
    )
    clusters: bool = Field(
        False, description="Parts are unions of masks: maps are averaged over clusters."
    )
    refiner: str = Field(
        "none", description="Row of REFINERS (none, pamr, color-majority): borders that follow."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of noise, timesteps and augmentation.")

    _known_refiner = row_of("refiner", REFINERS)

    @model_validator(mode="after")
    def _ordered(self) -> PartSettings:
        low, high = self.timesteps
        if low > high:
            raise ValueError(f"timesteps must be a range, low to high. Got {low} to {high}.")
        return self

    def changed(self, **changes: Any) -> PartSettings:
        """The same with other values.

        Raises:
            ValueError: In one line, for a bad one.
        """
        return load_section(PartSettings, **{**dict(self), **changes})


FOUND_BY = (
    *("timestep", "more_timesteps", "noises", "patches", "was", "rescale", "presence"),
    *("clusters", "refiner", "seed"),
)
"""Settings that may be changed when parts are found."""
