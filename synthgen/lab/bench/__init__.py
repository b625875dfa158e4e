"""Benches: every claim measured against its rival in the same run."""
