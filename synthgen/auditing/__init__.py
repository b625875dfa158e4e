"""Independent segmenters look at finished samples; what they see, what that says of our masks.

Submodules are imported by name; nothing is loaded here.
"""
