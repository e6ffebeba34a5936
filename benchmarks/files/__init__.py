"""Caches in files beside NumPy, safetensors, torch and cp, for ``python -m benchmarks.files``."""
