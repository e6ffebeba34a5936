"""AttentionCache: the patterns of a model's layers, and every question about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from attncache import _core
from attncache.adapters.attentions import attention_layers
from attncache.adapters.named import errors_named
from attncache.adapters.transformer_lens import LayerProjections, hooked_layers
from attncache.array_input import ArrayInput, StoredDType, checked_copy, is_on_device, read_array, stored_dtype
from attncache.axes import Axes
from attncache.factored import QUERY, factored_layer, longer_layer, queries_and_keys
from attncache.layer_source import LayerSource, checked_layer_source, layers_in_words
from attncache.notices import PatternWarning, warn_user
from attncache.pattern_check import unlike_weights, with_positions_first
from attncache.progress import Meter, Progress, checked_progress
from attncache.scoring import Options
from attncache.selections import Selections, Selector, Weights
from attncache.text import readable_bytes
from attncache.tokens import QUERIES, Tokens, checked_tokens

if TYPE_CHECKING:
    from attncache.files.contents import Origin
    from attncache.files.directory import DiskCache


class AttentionCache(Selections):
    """Stores post-softmax attention patterns layer by layer and answers questions about them.

    A layer is one array of shape [batch, head, query, key]; layers are numbered in the order of their pushes and may
    differ in shape. Attention *from* a position is a row of a pattern, attention *to* a position is a column.
    Negative layers, positions, heads and batches count from the end.

    Any number of threads may use one cache at once; each answer is of the layers of one moment.

    Args:
        dtype: what layers are stored as: None keeps the dtype of each pushed pattern (float64 becomes float32),
            "float16", "bfloat16" or "float32" converts it.
        index: when to keep the head mean of a layer (and its transpose) in float32, so that mean rows and columns become
            views: "auto" builds it as soon as the queries so far have cost as much as building it would, "eager" with
            each push, "off" never. It takes 8 bytes for each (query, key), which is 4 / n_heads of a float16 layer, and
            never changes a bit of an answer.

    Raises:
        TypeError, ValueError: dtype or index is none of these.

    >>> cache = AttentionCache()
    >>> cache.push(np.full((1, 2, 3, 3), 1 / 3, np.float32))
    >>> cache
    AttentionCache(1 layer of [1, 2, 3, 3] float32, 72 bytes)
    """

    def __init__(
        self, dtype: npt.DTypeLike | StoredDType | None = None, *, index: Literal["off", "auto", "eager"] = "auto"
    ) -> None:
        super().__init__()
        self._dtype = stored_dtype(dtype)
        self._set_index_policy(index)
        self._tokens: Tokens | None = None
        self._query_tokens: Tokens | None = None
        self._metadata: Mapping[str, Any] = MappingProxyType({})
        self._has_warned = False
        self._origin: Origin | None = None  # where the cache was opened from, while it is still what is there

    @classmethod
    def with_capacity(
        cls,
        n_layers: int,
        dtype: npt.DTypeLike | StoredDType | None = None,
        *,
        index: Literal["off", "auto", "eager"] = "auto",
    ) -> AttentionCache:
        """An empty cache with room for that many layers before its list must grow.

        Args:
            n_layers: how many layers to make room for; more may be pushed.
            dtype, index: as for AttentionCache.

        Raises:
            ValueError: n_layers is negative. TypeError: it is not an int.
        """
        if isinstance(n_layers, bool) or not hasattr(n_layers, "__index__"):
            raise TypeError(f"n_layers must be an int, got {type(n_layers).__name__}")
        if n_layers < 0:
            raise ValueError(f"n_layers must be at least 0, got {n_layers}")
        cache = cls(dtype, index=index)
        cache._reserve(n_layers)
        return cache

    @classmethod
    def from_attentions(
        cls,
        attentions: Any,
        *,
        dtype: npt.DTypeLike | StoredDType | None = None,
        index: Literal["off", "auto", "eager"] = "auto",
        tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        query_tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        axes: str | Sequence[str] | None = None,
        check: bool = True,
    ) -> AttentionCache:
        """A cache of the attentions that a Hugging Face model returned, or of any patterns in the order of the layers.

        Args:
            attentions: one pattern per layer, [batch, head, query, key] or [head, query, key], as a sequence
                (``outputs.attentions``, or the decoder's, encoder's or cross attentions), where None is a layer without
                attention, or as a mapping of layer numbers, or of names that differ in one number; or one such sequence
                per step of ``generate``, which become one pattern per layer over prompt and answer, zeros to the right
                of each row; or the output that has them as ``attentions``; or one array of all layers, also a dataset
                of h5py or zarr: [layer, batch, head, query, key], or one layer. Tensors may require grad, and are copied
                from other devices.
            dtype, index: as for AttentionCache.
            tokens, query_tokens: the cache's.
            axes: the names of the axes of each array, such as "layer head query key" or a sequence of names; several
                arrays are then the layers, or the batch items where layers are named. None is as above.
            check: as for ``push``.

        Layers that a mapping numbers, or that are left where others are None, have their numbers in ``sources``.

        Raises:
            TypeError: attentions is none of these, or an entry is not a pattern.
            ValueError: there are no attentions, because the model was not asked for them or computed them in a fused
                kernel such as SDPA; axes does not fit, or is needed for one array of unclear axes; steps are of a beam
                search or of several texts, or do not show where in the text their keys are; the attentions are of
                windows or blocks, without an axis of all keys; a pattern or tokens do not fit.

        >>> prompt = np.array([[[[1.0, 0.0], [0.5, 0.5]]]], np.float32)
        >>> answer = np.array([[[[0.25, 0.25, 0.5]]]], np.float32)
        >>> cache = AttentionCache.from_attentions(((prompt,), (answer,)), tokens=["the", "cat", "sat"])
        >>> cache[0]
        array([[[[1.  , 0.  , 0.  ],
                 [0.5 , 0.5 , 0.  ],
                 [0.25, 0.25, 0.5 ]]]], dtype=float32)
        """
        cache = cls(dtype, index=index)
        for layer in attention_layers(attentions, axes):
            cache.push(layer.pattern, check=check, source=layer.source)
        cache.tokens, cache.query_tokens = tokens, query_tokens
        return cache

    @classmethod
    def from_transformer_lens(
        cls,
        activation_cache: Any,
        *,
        dtype: npt.DTypeLike | StoredDType | None = None,
        index: Literal["off", "auto", "eager"] = "auto",
        tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        scale: float | None = None,
        causal: bool = True,
        window: int | Sequence[int | None] | None = None,
        softcap: float | None = None,
        key_mask: Any = None,
        axes: str | Sequence[str] | None = None,
        check: bool = True,
    ) -> AttentionCache:
        """A cache of the patterns, or of the queries and keys, that TransformerLens recorded.

        A layer whose pattern is there is stored as it is; one without becomes a factored layer of its queries and
        keys, which the options from ``scale`` on describe.

        Args:
            activation_cache: an ActivationCache or any mapping with the keys ``blocks.N.attn.hook_pattern`` or
                ("pattern", N): [batch, head, query, key]; or ``hook_rot_q`` and ``hook_rot_k``, or in models without
                rotary embedding ``hook_q`` and ``hook_k``: [batch, position, head, d_head]. The batch axis may be
                missing.
            dtype, index: as for AttentionCache.
            tokens: the cache's ``tokens``.
            scale: as for ``push_qk``: what scores are multiplied by, where TransformerLens divides by ``attn_scale``.
            causal, softcap, key_mask: as for ``push_qk``.
            window: as for ``push_qk``; a sequence has one for each layer.
            axes: the names of the axes of each pattern, such as "query key head"; None is as above.
            check: as for ``push``.

        The number of each layer is in ``sources``.

        Raises:
            TypeError: activation_cache is not a mapping, or an entry is not an array.
            ValueError: no layer is there, or one has only one half of its queries and keys; axes does not fit a pattern;
                or those before rotary embedding, or of a model that adds a bias to its scores; or as for ``push``,
                ``push_qk`` and ``tokens``.

        >>> cache = AttentionCache.from_transformer_lens({("pattern", 0): np.full((8, 3, 3), 1 / 3, np.float32)})
        >>> cache.shapes
        ((1, 8, 3, 3),)
        """
        cache = cls(dtype, index=index)
        options = {"scale": scale, "causal": causal, "softcap": softcap, "key_mask": key_mask}
        for layer in hooked_layers(activation_cache, axes, window):
            if isinstance(layer, LayerProjections):
                with errors_named(layer.name):
                    cache.push_qk(layer.query, layer.key, window=layer.window, source=layer.source, **options)
            else:
                cache.push(layer.pattern, check=check, source=layer.source)
        cache.tokens = tokens
        return cache

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        mmap: bool = True,
        *,
        verify: bool = False,
        index: Literal["off", "auto", "eager"] = "auto",
        names: str | None = None,
        axes: Axes | None = None,
        check: bool = True,
    ) -> AttentionCache:
        """Open a cache that ``save`` or ``create`` wrote, without reading more than its header, or read a file of others.

        Every view is read-only and lies in the mapped file: a query reads the pages that it needs, so files may be larger
        than memory, and any number of processes may have one open. What is pushed to the cache afterwards stays in
        memory and never changes the file. Do not shorten a mapped file: the system then ends the process (SIGBUS);
        ``save`` never does, it replaces files. A cache on disk pickles as its path and a hash of its contents.

        Args:
            path: a file, or a directory of ``create``, whose layers are those at this moment; or anything else that
                ``attncache.files.read_patterns`` reads, of which safetensors and ``.pt`` files are mapped.
            mmap: whether to map; False reads all layers into memory and compares them with their checksums, as is wise
                for files that others may change or have sent.
            verify: whether to compare a mapped file with its checksums too, which reads all of it once.
            index: as for AttentionCache; an index in the file is used unless "off".
            names, axes: as for ``read_patterns``, of a file of others: which of its arrays are the layers, such as
                "attentions.{}", and which of their axes is which, such as "layer head query key".
            check: as for ``push``, of files by others alone.

        Raises:
            FileNotFoundError: nothing is there, or a folder that holds nothing to load, as before ``create`` is done.
            OSError: the path cannot be read. attncache.files.DamagedFileError, a ValueError: the file breaks a rule of
                its format or is damaged; the message says where. ValueError: it is no file of attention, or it is not
                clear which of its arrays and axes are which. MemoryError: no memory to read it. ImportError: it needs
                h5py, which is not installed. TypeError: an argument is of the wrong kind.

        >>> import tempfile
        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache.save(f"{folder}/run.safetensors")
        ...     AttentionCache.load(f"{folder}/run.safetensors").rows(0, 1)
        array([0.25, 0.75], dtype=float32)
        """
        from attncache.files import opening  # noqa: PLC0415 (the package first: several threads may be the first here)

        return opening.load(path, mmap=mmap, verify=verify, index=index, names=names, axes=axes, check=check)

    @classmethod
    def create(
        cls,
        directory: str | PathLike[str],
        dtype: npt.DTypeLike | StoredDType | None = None,
        *,
        index: Literal["off", "auto", "eager"] = "auto",
    ) -> DiskCache:
        """A cache whose layers live in a directory, new or continued: each push is on disk when it returns.

        Memory holds one layer at a time; queries read the mapped files. Readers (``load``) see the layers before or after
        a push, never half of one. There is one writer at a time, until ``close``, the end of a ``with`` or of the
        process.

        Args:
            directory: new (made with the folders above it), empty, or one that ``create`` made; its layers are then here
                again, and what a killed writer left is removed.
            dtype, index: as for AttentionCache.

        Raises:
            attncache.files.InUseError, an OSError: another writer has it open. OSError: it cannot be made or read.
            ValueError: it holds other files. attncache.files.DamagedFileError: a file in it is damaged.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with AttentionCache.create(f"{folder}/run", "float16") as cache:
        ...         cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        ...     with AttentionCache.create(f"{folder}/run") as cache:
        ...         cache.shapes, cache.dtypes
        (((1, 1, 2, 2),), ('float16',))
        """
        from attncache.files import directory as caches  # noqa: PLC0415

        return caches.DiskCache(directory, dtype, index=index)

    def save(self, path: str | PathLike[str], *, index: bool = False) -> None:
        """Write the cache as one safetensors file (docs/format.md), which replaces what was there.

        Args:
            path: the file; there is the old or the new one at any moment, whatever happens meanwhile.
            index: whether to write the index of dense layers and the sums of factored ones too, computed if need be, so
                that a loaded cache need not compute them.

        Raises:
            OSError: it cannot be written; the old file is as it was. attncache.files.InUseError, an OSError: another
                ``save`` is writing it. TypeError: an argument is of the wrong kind. ValueError: tokens and metadata come
                to more than the 100 MB that a header may have; or a layer lies on a device, ``cpu()`` copies it.

        >>> import tempfile
        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache.save(f"{folder}/run.safetensors")
        ...     AttentionCache.load(f"{folder}/run.safetensors").shapes
        ((1, 1, 2, 2),)
        """
        from attncache.files import opening  # noqa: PLC0415

        opening.save(self, path, index=index)

    def __reduce__(self) -> tuple[Any, ...]:
        from attncache.files import opening  # noqa: PLC0415

        if self._origin is None:
            raise TypeError(
                "a cache in memory cannot be pickled, only one that was opened from disk and not changed since: "
                "save it, load it, and pickle that"
            )
        return opening.reopened, (*self._origin, self.index)

    def push(
        self, pattern: Any, copy: bool | None = None, *, check: bool = True, source: LayerSource | None = None
    ) -> None:
        """Append a layer.

        Args:
            pattern: float16, bfloat16, float32 or float64 array of shape [batch, head, query, key]: a NumPy array of
                any strides and byte order, a torch CPU tensor, a nested list, or anything that offers ``__array__``,
                the buffer protocol or DLPack in CPU memory. Or an array on a CUDA device, such as a torch tensor, where
                its layer then stays and is answered (docs/cuda.md): float16, bfloat16 or float32, contiguous along the
                keys.
            copy: None copies if the dtype or layout asks for it, or if the array or the memory that it is a view of
                can still be written; False borrows the memory and keeps its owner alive (who then must not change it); True always copies. An array on a
                device is always borrowed, so True is refused.
            check: whether to look at a few rows and warn, once per cache, with attncache.PatternWarning if they hold
                negative numbers or sum to more than 1. Layers on a device are not looked at.
            source: where the layer comes from, kept in ``sources``; None where that is not known.

        Raises:
            TypeError: pattern is not an array of floats. ValueError: it has other than four axes, lies on a device that
                cannot be used or would have to be converted there; copy is False and a copy would be needed; or source
                names another number of heads. MemoryError: no memory for the copy. The cache is unchanged after any of these.

        Narrowing rounds once to nearest even and keeps subnormals, as NumPy's ``astype`` does.

        >>> cache = AttentionCache(dtype="float16")
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> cache.dtypes
        ('float16',)
        """
        copy = checked_copy(copy)
        if is_on_device(pattern):
            from attncache.cuda.layers import layer_of_pattern  # noqa: PLC0415

            layer: _core.Layer = layer_of_pattern(self._dtype, pattern, copy)
            checked_layer_source(source, layer.shape[1])
        else:
            given = read_array(pattern)
            checked_layer_source(source, given.array.shape[1])
            if check:
                self._warn_once(unlike_weights(given, self.n_layers))
            layer = self._made(given, copy)
        self._take(layer, source)

    def push_qk(
        self,
        query: Any,
        key: Any,
        *,
        scale: float | None = None,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        key_mask: Any = None,
        lse: Any = None,
        sinks: Any = None,
        copy: bool | None = None,
        source: LayerSource | None = None,
    ) -> None:
        """Append a factored layer: queries and keys, from which every query computes exact softmax weights on demand.

        It takes (heads * seq_q + key heads * seq_k) * head_dim items instead of heads * seq_q * seq_k, and answers every
        query as a dense layer does. A weight is e^score / sum of e^score over the visible keys (and the sink) of a row;
        a score is scale * dot(query, key), then softcap * tanh(score / softcap) if there is a cap. A row without a
        visible key is all zeros. A bias of each (query, key) cannot be expressed: push the dense pattern. docs/factored.md
        has the costs and the error bound.

        Args:
            query: float16, bfloat16 or float32 array of shape [batch, head, query, item], after rotary embedding.
            key: the same of shape [batch, key head, key, item]; head h reads key head h // (heads / key heads). Both may
                lie on one CUDA device, contiguous along the items; columns are then not answered there.
            scale: factor of the scores; None is item ** -0.5.
            causal: whether query i sees no key beyond i + seq_k - seq_q (the last query sees the last key).
            window: None, or how far a query sees, as transformers counts: the last ``window`` keys, its own included, if
                causal; otherwise the keys at most ``window`` away on either side.
            softcap: None, or the cap of the scores (before the mask).
            key_mask: None, or bool (or 0 and 1) array [batch, key]; False hides a key from every query.
            lse: None, or float array [batch, head, query]: the natural logarithms of the rows' sums, after scale and with
                sinks, as flash attention returns them. Without it a row's sum is computed when it is needed, and all sums
                (once, and kept) when a column is asked for.
            sinks: None, or float array [head]: a learned score that takes part in a row's sum and has no key.
            copy: as for ``push``, for queries and keys alike.
            source: as for ``push``.

        Raises:
            TypeError: query or key is not an array of floats, or an option is of the wrong kind. ValueError: the shapes do
                not fit, an option is out of its range, or both lse and sinks are given. MemoryError: no memory for the copy. The cache is unchanged after any of these.

        >>> cache = AttentionCache()
        >>> cache.push_qk(np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 1, 3, 4), np.float32))
        >>> cache.rows(0, 1)
        array([0.5, 0.5, 0. ], dtype=float32)
        """
        self._warn_once(with_positions_first(query, key, causal=causal))
        options = Options(scale, causal, window, softcap, key_mask, lse, sinks)
        if is_on_device(query) or is_on_device(key):
            from attncache.cuda.layers import layer_of_factors  # noqa: PLC0415

            layer: _core.Layer = layer_of_factors(self._dtype, query, key, options, copy=copy)
            checked_layer_source(source, layer.shape[1])
        else:
            queries = read_array(query, QUERY)
            checked_layer_source(source, queries.array.shape[1])
            layer = factored_layer(self._dtype, queries, key, options, copy=copy)
        self._take(layer, source)

    def append_qk(self, layer: int, query: Any, key: Any, *, key_mask: Any = None) -> None:
        """Add positions at the end of a factored layer, as a model does that generates.

        Takes time in proportion to the new positions (amortised); views and answers from before stay as they are.

        Args:
            layer: index of the layer; negative counts from the end.
            query: float array of shape [batch, head, n, item], after rotary embedding.
            key: float array of shape [batch, key head, n, item].
            key_mask: None, or bool (or 0 and 1) array [batch, n] of the new keys.

        Raises:
            IndexError: there is no such layer. ValueError: it is dense, lies on a device or was pushed with lse, or the
                shapes do not fit. TypeError: query or key is not an array of floats. The layer is unchanged after any of these.

        >>> cache = AttentionCache()
        >>> cache.push_qk(np.zeros((1, 1, 2, 4), np.float32), np.zeros((1, 1, 2, 4), np.float32))
        >>> cache.append_qk(0, np.zeros((1, 1, 1, 4), np.float32), np.zeros((1, 1, 1, 4), np.float32))
        >>> cache.shapes
        ((1, 1, 3, 3),)
        """
        before, after = longer_layer(self, layer, query, key, key_mask)
        if not self._replace(before, after):
            raise ValueError("layer was changed or removed by another thread while it was appended to")
        self._origin = None

    def get_queries(self, layer: int) -> npt.NDArray[Any]:
        """The queries of a factored layer.

        Args:
            layer: index of the layer; negative counts from the end.

        Returns:
            Read-only array of shape [batch, head, query, item] that shares the cache's memory and keeps it alive; after
            ``append_qk`` it need not be contiguous.

        Raises:
            IndexError: there is no such layer. ValueError: it is dense, or lies on a device. TypeError: layer is not an
                int. ImportError: it is bfloat16 and ml_dtypes is not installed.

        >>> cache = AttentionCache()
        >>> cache.push_qk(np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 1, 3, 4), np.float32))
        >>> cache.get_queries(0).shape, cache.get_keys(0).shape
        ((1, 2, 3, 4), (1, 1, 3, 4))
        """
        return queries_and_keys(self, layer).projections[0]

    def get_keys(self, layer: int) -> npt.NDArray[Any]:
        """The keys of a factored layer, as ``get_queries``: read-only, of shape [batch, key head, key, item].

        Args:
            layer: index of the layer; negative counts from the end.

        Returns:
            As ``get_queries``.

        Raises:
            As ``get_queries``.

        >>> cache = AttentionCache()
        >>> cache.push_qk(np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 1, 3, 4), np.float32))
        >>> cache.get_keys(0).flags.writeable
        False
        """
        return queries_and_keys(self, layer).projections[1]

    def lse(self, layer: int, *, progress: Progress = None) -> Weights:
        """The natural logarithm of each row's sum of e^score, sinks included, of a factored layer.

        The first call computes the sums of all rows in one blocked, parallel pass and keeps them (8 bytes a row); columns
        need them. Ctrl-C ends the pass within a second and leaves the layer as it was.

        Args:
            layer: index of the layer; negative counts from the end.
            progress: True for a bar on stderr once it takes longer than a second, or a callable that is told (done, total)
                about ten times a second; None and False for neither.

        Returns:
            Read-only float32 array of shape [batch, head, query]; -inf for a row without visible keys. Bounded: within
            D_max + (seq_k / 256 + 60 + its size) 2^-24 of the exact value; D_max as in docs/factored.md.

        Raises:
            IndexError: there is no such layer. ValueError: it is dense, or lies on a device. TypeError: layer is not an
                int, or progress is none of these.

        >>> cache = AttentionCache()
        >>> cache.push_qk(np.zeros((1, 1, 2, 4), np.float32), np.zeros((1, 1, 2, 4), np.float32))
        >>> cache.lse(0).round(4)
        array([[[0.    , 0.6931]]], dtype=float32)
        """
        checked_progress(progress)
        asked = queries_and_keys(self, layer)
        if progress is not True:
            return asked.lse(progress or None)
        meter = Meter(True)
        meter.begin("summing rows", 100, "percent")
        try:
            return asked.lse(meter.percent)
        finally:
            meter.close()

    @property
    def sources(self) -> tuple[LayerSource | None, ...]:
        """Where each layer comes from in the model that computed it; None where that is not known.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0]]]], source=LayerSource("model.layers.5.self_attn", layer=5))
        >>> cache.push([[[[1.0]]]])
        >>> cache.sources
        (LayerSource(module='model.layers.5.self_attn', layer=5), None)
        """
        return self._sources

    def _warn_once(self, message: str | None) -> None:
        """Warn that something pushed is odd, if it is and the first in this cache."""
        if message is not None and not self._has_warned:
            self._has_warned = True
            warn_user(message, PatternWarning)

    def _made(self, given: ArrayInput, copy: bool | None) -> _core.Layer:
        """The dense layer that this cache stores of an array."""
        stored = self._dtype or given.own_dtype
        return _core.Layer.dense(given.array, given.dtype, stored, given.borrows(stored, copy), self.index == "eager")

    def _take(self, layer: _core.Layer, source: LayerSource | None = None, at: int | None = None) -> None:
        """Make a layer the next one, or the one at a place that there is, and keep where it comes from."""
        if at is None:
            self._append(layer, source)
        else:
            self._put(at, layer, source)
        self._origin = None

    def part(
        self,
        *,
        layers: Selector = None,
        heads: Selector = None,
        batch: Selector = None,
        positions: Selector = None,
        kind: Literal["self", "cross", "encoder", "decoder", "vision", "audio", "text"] | None = None,
    ) -> AttentionCache:
        """A cache of a part of this one, in memory, whose weights have the same bits.

        Layers that are whole in the part are shared with their index. Of a dense layer, a part that is one C-contiguous
        block (neighbouring batch items; of one item, neighbouring heads) is shared too, and any other is copied. Of a factored layer, queries and keys are shared where the chosen indices ascend in even steps. So a
        part of a mapped file stays in the file. Tokens and sources are those of the part, metadata stay.

        Args:
            layers: which layers, as for ``rows``; of all, or of those of ``kind``.
            heads: which heads of each layer, as for ``rows``, but that an int keeps its axis; so with those that follow.
            batch: which batch items.
            positions: which places of the text: keys at these places, and the queries that stand at them (query i at
                i + seq_k - seq_q). Of a factored layer that is causal or has a window they must be neighbours in
                ascending order. A factored row that sees keys that are left out keeps its sum, as with ``lse``: its
                weights then sum to less than 1, as those of a dense row, and it takes no ``append_qk``. Such sums are
                computed if they are not known.
            kind: None for all, "self" or "cross" for such attention, or the stack whose self-attention it is, as
                ``sources`` say; ``part(kind="decoder")`` has the layers of transformers' ``decoder_attentions``,
                ``part(kind="cross")`` those of ``cross_attentions``.

        Returns:
            A new AttentionCache with the same dtype and index policy.

        Raises:
            IndexError: an index is out of range. TypeError: a selector is of the wrong kind. ValueError: no layer is of
                that kind; positions of cross-attention; positions that cannot be chosen of a factored layer, or no head
                of it; or more than layers is chosen of a layer on a device: ``cpu()`` copies it.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]]], source=LayerSource(layer=3))
        >>> part = cache.part(heads=1)
        >>> part.rows(0, -1), part.sources
        (array([0.5, 0.5], dtype=float32), (LayerSource(module='', layer=3, heads=[1]),))
        >>> np.shares_memory(part[0], cache[0])
        True
        """
        from attncache.parts import part_of  # noqa: PLC0415 (it imports this module)

        return part_of(self, layers=layers, heads=heads, batch=batch, positions=positions, kind=kind)

    def cpu(self) -> AttentionCache:
        """A cache in memory with the same layers, tokens and metadata: those on a device are copied, the others shared.

        What needs the bytes of a layer (its view, ``save``, columns of queries and keys) is asked of this one.

        Returns:
            A new cache with the same dtype and index policy.

        Raises:
            MemoryError: no memory for the copies.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> cache.cpu().devices
        ('cpu',)
        """
        copy = AttentionCache(self._dtype, index=self.index)
        for layer, source in self._sourced:
            copy._append(layer.cpu(), source)
        copy._tokens, copy._query_tokens, copy._metadata = self._tokens, self._query_tokens, self._metadata
        return copy

    def clear(self) -> None:
        """Forget all layers, the tokens and the metadata; views stay valid, and memory is freed with the last of these.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0]]]])
        >>> cache.clear()
        >>> cache.is_empty
        True
        """
        _core.Store._clear(self)
        self._tokens, self._metadata, self._origin = None, MappingProxyType({}), None
        self._query_tokens = None

    def drop_index(self) -> None:
        """Free the indexes of all layers; views of them stay valid. Under "auto" they are built again when they pay.

        >>> cache = AttentionCache(index="eager")
        >>> cache.push(np.full((1, 2, 3, 3), 1 / 3, np.float32))
        >>> cache.index_nbytes
        72
        >>> cache.drop_index()
        >>> cache.index_nbytes
        0
        """
        _core.Store._drop_index(self)

    @property
    def tokens(self) -> Tokens | None:
        """The text of each key: None, a tuple of ``seq_k`` strings, or one such tuple per batch item.

        May be set to any sequence of strings, or one sequence per batch item; None forgets them. ``top_k`` then says
        which token each position is. Later pushes are not checked against the tokens, so that a prompt may grow.

        Raises:
            TypeError: set to something else. ValueError: their number is not that of the keys (or, for one sequence
                per batch item, of the batch items) of every layer. The tokens are unchanged after any of these.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> cache.tokens = ["the", "cat"]
        >>> cache.tokens
        ('the', 'cat')
        >>> cache.top_k(2, layers=0)
        TopK of shape [2, 2]: position, token, weight
        [0]  0 the 1.000  1 cat 0.000
        [1]  1 cat 0.750  0 the 0.250
        """
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: Sequence[str] | Sequence[Sequence[str]] | None) -> None:
        self._describe(checked_tokens(tokens, self.shapes), self._query_tokens, self._metadata)

    @property
    def query_tokens(self) -> Tokens | None:
        """The text of each query where it is not that of the keys, as in cross-attention; else None.

        May be set as ``tokens``, to one string per query; None forgets them. ``top_k`` with direction "to" shows them.
        Without them a query has the token of the key it is aligned with, the last query with the last key, but none in
        a layer that ``sources`` calls "cross" or that has more queries than keys.

        Raises:
            TypeError: set to something else. ValueError: their number is not that of the queries (or, for one sequence
                per batch item, of the batch items) of every layer. They are unchanged after any of these.

        >>> cache = AttentionCache()
        >>> cache.push([[[[0.25, 0.75]]]])
        >>> cache.tokens, cache.query_tokens = ["le", "chat"], ["cat"]
        >>> cache.top_k(1, layers=0, direction="to").tokens()
        [['cat'], ['cat']]
        """
        return self._query_tokens

    @query_tokens.setter
    def query_tokens(self, tokens: Sequence[str] | Sequence[Sequence[str]] | None) -> None:
        self._describe(self._tokens, checked_tokens(tokens, self.shapes, QUERIES), self._metadata)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Notes about the patterns: a read-only mapping of names to JSON values, saved with the cache.

        May be set to any mapping of strings to JSON values (strings, numbers but NaN and infinities, booleans,
        None, and lists and string mappings of these, nested at most 100 deep); it is copied. To change a value that is
        nested in it, set all of it anew.

        Raises:
            TypeError: set to something else, or to values that are not JSON. ValueError: NaN, an infinity or values
                nested too deep, or more than 100 MB of JSON. The metadata are unchanged after any of these.

        >>> cache = AttentionCache()
        >>> cache.metadata = {"model": "SmolLM2-135M", "prompt": 17}
        >>> cache.metadata["prompt"]
        17
        """
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: Mapping[str, Any]) -> None:
        from attncache.files import strict_json  # noqa: PLC0415 (json costs time at import)

        self._describe(self._tokens, self._query_tokens, strict_json.checked_metadata(metadata))

    def _describe(self, tokens: Tokens | None, query_tokens: Tokens | None, metadata: Mapping[str, Any]) -> None:
        """Take over checked tokens and metadata."""
        self._tokens, self._query_tokens, self._metadata, self._origin = tokens, query_tokens, metadata, None

    @property
    def path(self) -> Path | None:
        """The file or folder that the cache was opened from; None if it was not, or has been changed since."""
        return None if self._origin is None else self._origin.path

    @property
    def patterns(self) -> tuple[npt.NDArray[Any], ...]:
        """The read-only views of all layers, as ``get_layer`` gives them."""
        return self[:]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        # Of the layers there are now, one pattern at a time: that of a factored one is computed when it is reached.
        return (layer.pattern() for layer, _ in self._sourced)

    def __repr__(self) -> str:
        now = self._sourced  # whatever other threads push and clear
        layers = "1 layer" if len(now) == 1 else f"{len(now)} layers"
        if words := layers_in_words([source for _, source in now]):
            layers += f" ({words})"
        forms = {(layer.kind, *layer.shape, layer.dtype) for layer, _ in now}
        if len(forms) == 1:
            kind, *shape, dtype = forms.pop()
            layers += f" of {shape} {dtype}" if kind == "dense" else f" of {shape} as {dtype} queries and keys"
        elif forms:
            layers += f" of {len(forms)} shapes and dtypes"
        if (devices := {layer.device for layer, _ in now}) - {"cpu"}:
            layers += f" on {', '.join(sorted(devices))}"
        size = readable_bytes(self.nbytes)
        if self.index_nbytes:
            size += f" of which {readable_bytes(self.index_nbytes)} index"
        return f"{type(self).__name__}({layers}, {size})"
