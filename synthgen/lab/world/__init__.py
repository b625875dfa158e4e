"""The embedded world: rendered scenes with ground truth, and a diffusion model trained on them."""

from synthgen.embedded.card import read_card, weights_dir
from synthgen.lab.world.render import Scene, SceneObject, render

__all__ = ["Scene", "SceneObject", "read_card", "render", "weights_dir"]
