"""Patterns in files: caches on disk, and the archives that people keep patterns in.

``archives`` reads .npz and .npy, with ``numpy_arrays`` and ``named_arrays``; ``contents`` says what is at a path of any kind,
``verifying`` proves it whole, ``converting`` writes it as a file of ours. The rest is the format of docs/format.md, bottom to top: ``errors``, ``checksums`` and
``strict_json``; ``safetensors`` the container; ``schema`` the tensors of a layer; ``atomic`` and ``memory`` the system;
``layer_writing`` and ``layer_reading``; ``damage`` and ``single`` one file; ``manifest`` and ``directory`` many; ``opening`` the calls.
"""

from __future__ import annotations

from attncache.files.archives import PatternFile, read_patterns, sample_path
from attncache.files.errors import DamagedFileError, InUseError

__all__ = ["DamagedFileError", "InUseError", "PatternFile", "read_patterns", "sample_path"]
