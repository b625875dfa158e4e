"""Samples on disk: records, shards, their verification, the card, and the loader.

Submodules are imported by name; nothing is loaded here.
"""
