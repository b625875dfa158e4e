"""Finished datasets in the formats that trainers read, and their way to other places.

``export`` is the engine, one module per format; submodules are imported by name.
"""
