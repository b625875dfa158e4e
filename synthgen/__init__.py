"""Segmentation datasets from text prompts, with masks nobody drew."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("synthgen")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0"
