"""The fuzz of ``AttentionCache.load``: files changed at random, but with knowledge of their structure.

``python -m tests.fuzz --minutes 20`` from the root of a clone runs it for long, on Linux and macOS; a number makes each
input, so a finding repeats by itself. tests/test_fuzz_load.py runs some thousands of inputs with every test run.
"""
