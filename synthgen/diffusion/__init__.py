"""Diffusion: cards and loading, generating and inverting, recording attention on the way."""
