"""Patterns in the memory of a CUDA device, answered there. Optional: docs/cuda.md says how it is built.

``AttentionCache.push`` and ``push_qk`` take arrays on a device by themselves; ``import attncache`` loads none of this.
"""

from attncache.cuda.library import is_available, why_not
from attncache.cuda.streams import on_stream

__all__ = ["is_available", "on_stream", "why_not"]
