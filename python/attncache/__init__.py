"""attncache: a store and query engine for the attention patterns of transformers.

>>> from attncache import AttentionCache
>>> cache = AttentionCache()
>>> cache.push(pattern)                      # [batch, head, query, key], after softmax, once per layer
>>> cache.attention_from_position(0, -1)     # what the last query attends to, mean over heads
>>> cache.top_k(5, positions=-1)             # its five heaviest keys, in all layers at once
"""

from attncache import simd
from attncache._core import __version__, get_num_threads, set_num_threads
from attncache.adapters.capture import capture
from attncache.adapters.capture.forwards import capture_runs
from attncache.cache import AttentionCache
from attncache.factored import pattern_from_qk
from attncache.layer_source import LayerSource
from attncache.notices import CaptureWarning, PatternWarning
from attncache.results import TopK
from attncache.runs.directory import Runs, open_runs
from attncache.runs.map_runs import RunErrors, map_runs

__all__ = [
    "AttentionCache",
    "CaptureWarning",
    "LayerSource",
    "PatternWarning",
    "RunErrors",
    "Runs",
    "TopK",
    "__version__",
    "capture",
    "capture_runs",
    "get_num_threads",
    "map_runs",
    "open_runs",
    "pattern_from_qk",
    "set_num_threads",
    "simd",
]
