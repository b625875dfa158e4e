"""Formats that trainers read, what they take from a dataset, and its way to other places.

One module per format; ``synthgen.jobs.export`` drives them. Submodules are imported by name.
"""
