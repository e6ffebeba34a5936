// The docstrings of the hot calls. The text before "--" is what inspect.signature reads.
#pragma once

namespace attncache::python::docs {

constexpr const char* kAttentionFromPosition = R"(attention_from_position($self, layer, position, batch=0, *, out=None)
--

What one query position attends to, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    position: query position in [-seq_q, seq_q).
    batch: batch item.
    out: None, or a writable C-contiguous float32 array of shape [seq_k] to write into and return; of a layer
        on a device it may lie there (docs/cuda.md).

Returns:
    Read-only float32 array of shape [seq_k], a view of the index if that is built. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)[position]``. Bounded on factored layers.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int. ValueError: out does not fit.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.attention_from_position(0, 1)
array([0.25, 0.75], dtype=float32)
)";

constexpr const char* kAttentionToPosition = R"(attention_to_position($self, layer, position, batch=0, *, out=None)
--

Who attends to one key position, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    position: key position in [-seq_k, seq_k).
    batch: batch item.
    out: None, or a writable C-contiguous float32 array of shape [seq_q] to write into and return; of a layer
        on a device it may lie there (docs/cuda.md).

Returns:
    Read-only float32 array of shape [seq_q], a view of the index if that is built. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)[:, position]``. Bounded on factored layers.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int. ValueError: out does not fit.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.attention_to_position(0, 0)
array([1.  , 0.25], dtype=float32)
)";

constexpr const char* kTopAttendedPositions = R"(top_attended_positions($self, layer, from_position, k, batch=0)
--

The k key positions that one query attends to most, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    from_position: query position in [-seq_q, seq_q).
    k: how many; more than seq_k gives all of them.
    batch: batch item.

Returns:
    List of (position, weight), heaviest first, equal weights to the lower position, NaN last. Exact
    on stored patterns; of factored layers the order is exact and the weights are bounded.

Raises:
    IndexError: an index is out of range. ValueError: k is negative. TypeError: not an int.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.top_attended_positions(0, 1, k=1)
[(1, 0.75)]
)";

constexpr const char* kHeadMean = R"(head_mean($self, layer, batch=0, *, out=None)
--

The mean over heads of a whole layer.

Args:
    layer: index of the layer; negative counts from the end.
    batch: batch item.
    out: None, or a writable C-contiguous float32 array of shape [seq_q, seq_k] to write into and return; of a layer
        on a device it may lie there (docs/cuda.md).

Returns:
    Read-only float32 array of shape [seq_q, seq_k], a view of the index if that is built. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)``. Bounded on factored layers.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int. ValueError: out does not fit.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.head_mean(0)
array([[1.  , 0.  ],
       [0.25, 0.75]], dtype=float32)
)";

constexpr const char* kGetLayer = R"(get_layer($self, layer)
--

The pattern of one layer, or None if there is no such layer.

Args:
    layer: index of the layer; negative counts from the end.

Returns:
    Read-only array of shape [batch, head, query, key] that shares the cache's memory and keeps it alive. A factored
    layer has no such memory: its pattern is computed each time, block by block, as a new float32 array of
    4 * batch * head * query * key bytes.

Raises:
    TypeError: layer is not an int. ValueError: the layer lies on a device; cache.cpu() copies it. ImportError: it is
        bfloat16 and ml_dtypes is not installed.

>>> AttentionCache().get_layer(0) is None
True
)";

constexpr const char* kLength = R"(__len__($self, /)
--

The number of layers.)";

constexpr const char* kGetItem = R"(__getitem__($self, layer, /)
--

The view of one layer as in get_layer, but IndexError if absent; a slice gives a tuple of views.)";

}  // namespace attncache::python::docs
