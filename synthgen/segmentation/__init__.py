"""Tensors in, masks out: features, exact k-means, masks, metrics, and the paper on one page.

Pure: nothing here knows a diffusion model, a file format or a network. Tensors until clustering,
numpy after; the one crossing is in ``kmeans.cluster``.
"""
