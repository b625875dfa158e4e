"""Segmenters beside each other on annotated images: ours, rivals, yours."""
