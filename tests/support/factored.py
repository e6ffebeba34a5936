"""Queries and keys, every option of push_qk by name, and the bound that a factored layer's weights must keep."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncache import AttentionCache, reference
from tests.support.calls import CASES
from tests.support.patterns import DTYPES, Array, assert_same, meaning, rng

Options = dict[str, Any]


def normal(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Array:
    """Normal numbers in a dtype; bfloat16 too."""
    return np.random.default_rng([*shape, seed]).standard_normal(shape, np.float32).astype(dtype)


def layer(
    seq_q: int = 40,
    seq_k: int = 40,
    *,
    batch: int = 2,
    heads: int = 6,
    key_heads: int = 2,
    head_dim: int = 24,
    dtype: Any = np.float32,
) -> tuple[Array, Array]:
    """Queries and keys of one layer."""
    return normal((batch, heads, seq_q, head_dim), dtype, 1), normal((batch, key_heads, seq_k, head_dim), dtype, 2)


def factored_of(query: Array, key: Array, **options: Any) -> AttentionCache:
    cache = AttentionCache()
    cache.push_qk(query, key, **options)
    return cache


def all_rows(cache: AttentionCache) -> Array:
    """Every weight of layer 0, [batch, head, query, key]."""
    return cache.rows(0, heads=None, batch=None)


def assert_within_bound(cache: AttentionCache, meaning: reference.Factored) -> None:
    weights = all_rows(cache).astype(np.float64)
    assert weights.shape == meaning.pattern.shape
    error = np.abs(weights - meaning.pattern)
    worst = np.unravel_index(np.argmax(error - meaning.bound), error.shape)
    assert (error <= meaning.bound).all(), f"at {worst}: {weights[worst]} for {meaning.pattern[worst]}"
    assert (weights[meaning.pattern == 0] == 0).all()
    lse = cache.lse(0).astype(np.float64)
    assert (np.isneginf(lse) == np.isneginf(meaning.lse)).all()
    finite = np.isfinite(meaning.lse)
    assert (np.abs(lse[finite] - meaning.lse[finite]) <= meaning.lse_bound[finite]).all()


def options_of(name: str, batch: int, heads: int, seq_k: int) -> Options:
    """One option of push_qk, by name, for such a layer."""
    rng = np.random.default_rng(seq_k)
    mask = rng.random((batch, seq_k)) > 0.3
    return {
        "plain": {},
        "bidirectional": {"causal": False},
        "scale": {"scale": 0.3},
        "window": {"window": 5},
        "window of one": {"window": 1},
        "window both ways": {"window": 4, "causal": False},
        "softcap": {"softcap": 2.5},
        "key mask": {"key_mask": mask},
        "left padding": {"key_mask": np.arange(seq_k) >= np.array([[0], [seq_k // 2]])[:batch]},
        "sinks": {"sinks": rng.standard_normal(heads).astype(np.float32)},
        "heavy sinks": {"sinks": np.full(heads, 90, np.float32)},
        "everything": {
            "scale": 0.7,
            "window": 9,
            "softcap": 3.0,
            "key_mask": mask,
            "sinks": rng.standard_normal(heads).astype(np.float32),
        },
    }[name]


OPTIONS = (
    "plain", "bidirectional", "scale", "window", "window of one", "window both ways", "softcap", "key mask",
    "left padding", "sinks", "heavy sinks", "everything",
)  # fmt: skip


def assert_queries_have_the_bits_of(cache: AttentionCache, rows: Array) -> None:
    """Each query of layer 0 gives what its plain NumPy meaning gives on these rows."""
    for name in reference.QUERIES:
        for args, options in CASES[name]((*rows.shape,)):  # type: ignore[arg-type]
            one_layer = _of_layer_0(name, args, options)
            expected = meaning(name, [rows], *one_layer[0], **one_layer[1])
            assert_same(getattr(cache, name)(*one_layer[0], **one_layer[1]), expected, f"{name}{one_layer}")
    assert_same(cache.get_layer(0), rows)


def _of_layer_0(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The call with every layer replaced by 0."""
    if name in ("edges", "top_k"):
        return args, {**options, "layers": 0}
    return (0, *args[1:]), options


def small_factored() -> AttentionCache:
    """One factored layer of shape [1, 2, 4, 6]."""
    return factored_of(*layer(4, 6, batch=1, heads=2, key_heads=1, head_dim=3))


SIGHTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"causal": False},
    "causal window": {"window": 4},
    "causal window of a block": {"window": 256},
    "window on both sides": {"causal": False, "window": 3},
    "cap and scale": {"softcap": 2.0, "scale": 0.7},
}


def three_texts(size: tuple[int, int], heads: tuple[int, int], dtype: str, **options: Any) -> AttentionCache:
    """A cache of one factored layer of three texts, one padded on the left, one on the right."""
    random = rng("part", size, heads, sorted(options))
    query, key = (
        random.normal(size=(3, n_heads, n, 6)).astype(DTYPES[dtype]) for n_heads, n in zip(heads, size, strict=True)
    )
    if options.pop("padding", False):
        mask = np.ones((3, size[1]), bool)
        mask[0, : size[1] // 3] = mask[1, -(size[1] // 4) :] = mask[2, size[1] // 2] = False
        options["key_mask"] = mask
    if options.pop("sinks", False):
        options["sinks"] = random.normal(size=heads[0]).astype(np.float32)
    if options.pop("lse", False):
        options["lse"] = random.normal(size=(3, heads[0], size[0])).astype(np.float32) + 3
    cache = AttentionCache()
    cache.push_qk(query, key, **options)
    return cache
