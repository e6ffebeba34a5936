"""Patterns in files: caches on disk, and the archives that people keep patterns in.

``contents`` is the one reader: it says what is at a path of any kind, by its first bytes. ``opening`` has the calls that users
make, ``directory`` the cache that lives on disk, ``verifying`` proves a path whole.
Files of others: ``arrays`` one array and NumPy's files, ``torch_archive`` those of PyTorch, ``containers`` every kind of file and
folder, ``foreign`` which of the arrays are the layers. The rest is the format of docs/format.md, bottom to top: ``errors`` and
``strict_json``; ``safetensors`` the container; ``schema`` the tensors of a layer; ``atomic`` and ``bytes`` the system, to write
and to read; ``layers`` the layers of the core; ``single`` one file, ``manifest`` many.
"""

from __future__ import annotations

from attncache.files.errors import DamagedFileError, InUseError
from attncache.files.opening import PatternFile, read_patterns, sample_path

__all__ = ["DamagedFileError", "InUseError", "PatternFile", "read_patterns", "sample_path"]
