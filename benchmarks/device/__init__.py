"""Layers in the memory of a GPU beside torch, for ``python -m benchmarks.device``."""
