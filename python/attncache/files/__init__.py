"""Patterns in files: caches on disk, and the archives that people keep patterns in.

archives.py reads .npz and .npy; everything else reads and writes the format of docs/format.md.
"""

from __future__ import annotations

from attncache.files.archives import PatternFile, read_patterns, sample_path

__all__ = ["PatternFile", "read_patterns", "sample_path"]
