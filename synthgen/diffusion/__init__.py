"""Diffusion: prompts or images in; images and the attention recorded on the way out.

`cards` and `backbones` know and load the models, `generate` and `invert` run them, `attention`
records (`selection` decides what, `probabilities` computes maps), `heatmaps` turns
cross-attention into maps of classes. Submodules are imported by name; nothing is loaded here.
"""
