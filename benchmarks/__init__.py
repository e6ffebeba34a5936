"""What attncache's operations cost beside NumPy and torch: run ``python -m benchmarks`` from the repository root."""
