"""The sweep: every model type of the installed transformers, made small, run, captured, and compared with the truth.

``python -m tests.sweep`` from the root of a clone runs it on the installed attncache; docs/models.md, which it writes,
explains it. Nothing here is collected by pytest; tests/test_sweep.py runs a sample of types and tests the oracle.
"""
