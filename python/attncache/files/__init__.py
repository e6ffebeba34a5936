"""Patterns in files: caches on disk, and the archives that people keep patterns in.

Files of others: ``arrays`` one array, ``numpy_arrays`` and ``containers`` all arrays of a file or folder, ``foreign`` which of
them are the layers. ``contents`` says what is at a path of any kind, ``verifying`` proves it whole, ``converting`` writes it as
a file of ours. The rest is the format of docs/format.md, bottom to top: ``errors``, ``checksums`` and
``strict_json``; ``safetensors`` the container; ``schema`` the tensors of a layer; ``atomic`` and ``memory`` the system;
``layer_writing`` and ``layer_reading``; ``damage`` and ``single`` one file; ``manifest`` and ``directory`` many; ``opening`` the calls.
"""

from __future__ import annotations

from attncache.files.contents import PatternFile, read_patterns, sample_path
from attncache.files.errors import DamagedFileError, InUseError

__all__ = ["DamagedFileError", "InUseError", "PatternFile", "read_patterns", "sample_path"]
