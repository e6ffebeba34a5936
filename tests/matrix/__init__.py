"""The matrix: models of many libraries, and of one's own, each captured and compared with the truth.

``python -m tests.matrix`` from the root of a clone runs those whose library is installed; docs/models.md, whose second table
it writes, explains it. Nothing here is collected by pytest; tests/test_matrix.py runs those that need torch alone.
"""
