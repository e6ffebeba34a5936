"""Proofs at size, run by hand: a real model over a long text, a cache larger than memory. Small ones are in tests/test_proofs.py."""
