"""What a cache tells of itself, how layers are got at, subclasses, and the signatures that users rely on.

Sizes: the smallest at which the rule shows. Not covered: queries (test_contracts.py), views (test_views.py).
"""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.reference import QUERIES
from tests.support.calls import small
from tests.support.patterns import Array, assert_same, cache_of, make
from tests.support.processes import assert_done


def test_an_empty_cache_is_empty() -> None:
    for cache in (AttentionCache(), AttentionCache.with_capacity(32), AttentionCache.with_capacity(0)):
        assert cache.n_layers == len(cache) == cache.nbytes == 0
        assert cache.is_empty is True
        assert cache.patterns == ()
        assert list(cache) == []
        assert cache.get_layer(0) is None
        assert cache.get_layer(-1) is None
        with pytest.raises(IndexError):
            cache[0]


def test_the_face_tells_what_is_held(dtype: str) -> None:
    cache = cache_of([make("soft", (1, 2, 4, 6), dtype), make("soft", (2, 3, 4, 5), dtype)])
    size = {"float16": 2, "bfloat16": 2, "float32": 4}[dtype]
    assert cache.n_layers == len(cache) == 2
    assert cache.is_empty is False
    assert cache.nbytes == (1 * 2 * 4 * 6 + 2 * 3 * 4 * 5) * size
    assert isinstance(cache.patterns, tuple)
    assert [p.shape for p in cache.patterns] == [(1, 2, 4, 6), (2, 3, 4, 5)]
    assert [p.shape for p in cache] == [(1, 2, 4, 6), (2, 3, 4, 5)]
    assert repr(cache).startswith("AttentionCache(2 layers")
    assert repr(cache_of([make("soft", (1, 12, 34, 56), dtype)] * 7)).startswith(
        f"AttentionCache(7 layers of [1, 12, 34, 56] {dtype}, "
    )


def test_with_capacity_refuses_what_is_no_count() -> None:
    with pytest.raises(ValueError, match="-1"):
        AttentionCache.with_capacity(-1)


def test_an_unknown_dtype_is_refused() -> None:
    for wrong in ("float64", "int8", "half", ""):
        with pytest.raises(ValueError, match="dtype"):
            AttentionCache(dtype=wrong)
    with pytest.raises(TypeError, match="dtype"):
        AttentionCache(dtype=16)  # type: ignore[arg-type]


def test_get_layer_gives_none_for_what_is_absent() -> None:
    cache = cache_of([make("soft", (1, 1, 2, 2), "float32", place) for place in range(3)])
    for absent in (3, -4, 1000, -1000, 2**100):
        assert cache.get_layer(absent) is None
    for layer in range(-3, 3):
        view = cache.get_layer(layer)
        assert view is not None
        assert_same(view, cache.patterns[layer])


def test_slices_of_a_cache_are_tuples_of_views() -> None:
    patterns = [make("soft", (1, 1, 2, 2), "float32", place) for place in range(5)]
    cache = cache_of(patterns)
    for piece in (slice(1, 3), slice(None), slice(None, None, -2), slice(-2, 100), slice(3, 1)):
        views = cache[piece]
        assert isinstance(views, tuple)
        assert_same(views, tuple(patterns[piece]))


def test_clear_empties_and_the_cache_can_be_used_again() -> None:
    cache = cache_of([make("soft", (1, 2, 3, 4))] * 3)
    assert cache.clear() is None  # type: ignore[func-returns-value]
    assert cache.is_empty
    assert cache.nbytes == 0
    assert cache.get_layer(0) is None
    with pytest.raises(IndexError, match="layer 0 is out of range for n_layers=0"):
        cache.attention_from_position(0, 0)
    pattern = make("soft", (2, 1, 5, 6), "float16")
    cache.push(pattern)
    assert_same(cache.attention_from_position(0, 4, 1), pattern[1].mean(axis=0, dtype=np.float32)[4])


class Named(AttentionCache):
    """A subclass with a constructor and a query of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(dtype="float16")
        self.name = name

    def attention_from_position(self, layer: int, position: int, batch: int = 0) -> Array:
        return super().attention_from_position(layer, position, batch) * np.float32(2)


def test_subclasses_work() -> None:
    cache = Named("mine")
    pattern = make("soft", (1, 2, 3, 4))
    cache.push(pattern)
    assert cache.name == "mine"
    assert cache[0].dtype == np.float16
    assert isinstance(cache, AttentionCache)
    mean = pattern.astype(np.float16)[0].mean(axis=0, dtype=np.float32)
    assert_same(cache.attention_from_position(0, 1), mean[1] * np.float32(2))
    assert_same(cache.attention_to_position(0, 1), np.ascontiguousarray(mean[:, 1]))
    assert_same(cache.rows(0), mean)


class Forgetful(AttentionCache):
    """A subclass that does not call the constructor of its base."""

    def __init__(self) -> None:
        pass


EVERY_CALL: dict[str, tuple[Any, ...]] = {
    "attention_from_position": (0, 0),
    "attention_to_position": (0, 0),
    "top_attended_positions": (0, 0, 1),
    "head_mean": (0,),
    "rows": (),
    "columns": (),
    "edges": (0, 0),
    "top_k": (1,),
    "get_layer": (0,),
    "clear": (),
    "__len__": (),
    "__getitem__": (0,),
    "__iter__": (),
    "__repr__": (),
}


@pytest.mark.parametrize("name", EVERY_CALL)
def test_a_subclass_that_forgets_its_base_and_a_stranger_are_type_errors(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(Forgetful(), name)(*EVERY_CALL[name])
    if not name.startswith("__"):
        with pytest.raises(TypeError):
            getattr(AttentionCache, name)(object(), *EVERY_CALL[name])


USES_WITHOUT_CONSTRUCTOR = """
import sys
import numpy as np
from attncache import AttentionCache
junk = [np.full(size, -7, np.int64) for size in range(1, 200) for _ in range(20)]
del junk  # what is allocated next may hold anything
name, args = sys.argv[1], eval(sys.argv[2])
for _ in range(50):
    try:
        answer = getattr(AttentionCache.__new__(AttentionCache), name)(*args)
        assert answer is None or answer == 0 or name == "__iter__", answer
    except (TypeError, IndexError, ValueError, AttributeError) as error:
        assert "vector" not in str(error), error
        assert "n_layers=" not in str(error) or "n_layers=0" in str(error), error
print("done")
"""


@pytest.mark.parametrize("name", ["attention_from_position", "top_k", "get_layer", "clear", "__len__", "__iter__"])
def test_a_cache_made_without_its_constructor_reads_no_wild_memory(name: str, tmp_path: Path) -> None:
    assert_done(tmp_path, USES_WITHOUT_CONSTRUCTOR, name, repr(EVERY_CALL[name]))


def test_copying_and_pickling_work_or_are_a_type_error() -> None:
    cache = small()
    for way in (copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))):
        try:
            other = way(cache)
        except TypeError:
            continue
        assert_same(other.patterns, cache.patterns)


class Plain(AttentionCache):
    """A subclass without a constructor."""


def test_subclasses_keep_their_type_in_with_capacity() -> None:
    assert type(Plain.with_capacity(3)) is Plain


PUBLIC = [*QUERIES, "push", "get_layer", "clear", "with_capacity", "__init__", "__getitem__", "__len__", "__iter__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_method_has_a_signature_and_a_docstring(name: str) -> None:
    method = getattr(AttentionCache, name)
    inspect.signature(method)
    if not name.startswith("__"):
        assert method.__doc__
        assert method.__doc__.strip()


def test_the_first_arguments_keep_their_places() -> None:
    def parameters(name: str) -> list[tuple[str, Any]]:
        found = inspect.signature(getattr(AttentionCache, name)).parameters.values()
        return [(p.name, p.default) for p in found if p.name not in ("self", "cls") and p.kind != p.KEYWORD_ONLY]

    nothing = inspect.Parameter.empty
    assert parameters("push") == [("pattern", nothing), ("copy", None)]
    assert parameters("__init__")[0] == ("dtype", None)
    assert parameters("get_layer") == [("layer", nothing)]
    assert len(parameters("with_capacity")) >= 1
