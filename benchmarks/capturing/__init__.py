"""Benchmarks of a capture: what it costs a model to be heard, and to be kept."""
