"""The fault matrix: every write path is killed, starved and cut short at every system call, and what is left is judged.

``python -m tests.faults`` from the root of a clone, on Linux with strace, runs it on the installed attncache and prints
its figures; docs/faults.md explains them. Nothing here is collected by pytest; tests/test_faults.py tests the harness.
"""
