"""Pictures of a dataset: the report, its mask explorer, and the figures of one sample.

Submodules are imported by name; nothing is loaded here.
"""
