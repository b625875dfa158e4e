"""The embedded models: weights and inference; how they were trained is in `synthgen.lab`."""
