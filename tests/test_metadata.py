"""``cache.metadata``: what it takes, what comes back from a file, and what is refused before it costs anything.

Covered: names and values of every wrong kind, values that hold themselves, that share 2^60 values, that are nested to the limit
and beyond it. Not covered: metadata in a damaged file (test_malformed_caches.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.stored import tokened


def nested(n: int) -> list[Any]:
    """Lists in each other."""
    value: list[Any] = []
    for _ in range(n - 1):
        value = [value]
    return value


def twice_in_itself() -> list[Any]:
    """A list with 2^100 ways to go 100 deep."""
    value: list[Any] = []
    value += [value, value]
    return value


def shared(n: int, leaf: Any) -> Any:
    """A list of 2^n times the leaf, in n lists."""
    for _ in range(n):
        leaf = [leaf, leaf]
    return leaf


def test_metadata_that_share_come_back_as_what_they_say(tmp_path: Path) -> None:
    cache = tokened()
    cache.metadata = {"a": shared(10, {"b": (1, None)})}
    cache.save(tmp_path / "cache.safetensors")
    found = AttentionCache.load(tmp_path / "cache.safetensors").metadata["a"]
    assert found == cache.metadata["a"] == shared(10, {"b": [1, None]})


def test_metadata_as_deep_as_they_may_be_come_back(tmp_path: Path) -> None:
    cache = tokened()
    cache.metadata = {"a": nested(99)}
    cache.save(tmp_path / "cache.safetensors")
    assert AttentionCache.load(tmp_path / "cache.safetensors").metadata["a"] == nested(99)


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ([1], TypeError, "metadata must be a mapping of strings to JSON values, got list"),
        ({1: 2}, TypeError, "metadata must have names that are strings, got 1"),
        ({"a": {1, 2}}, TypeError, r"metadata\['a'\] must be a JSON value, got set"),
        ({"a": float("nan")}, ValueError, r"metadata\['a'\] must be a JSON value"),
        ({"a": nested(100)}, ValueError, r"metadata\['a'\] must be nested at most 100 deep"),
        ({"a": nested(100_000)}, ValueError, r"metadata\['a'\] must be nested at most 100 deep"),
        (
            {"a": {"b": [{1: "x"}]}},
            TypeError,
            r"metadata\['a'\] must have names that are strings in its mappings, got 1",
        ),
        ({"a": {None: 1}}, TypeError, r"metadata\['a'\] must have names that are strings in its mappings, got None"),
        ({"a": {1.5: 1}}, TypeError, r"metadata\['a'\] must have names that are strings in its mappings, got 1.5"),
        ({"a": shared(60, 1)}, ValueError, "metadata must come to at most 100,000,000 characters of JSON, with 'a'"),
        ({"a": shared(20, "x" * 200)}, ValueError, "metadata must come to at most 100,000,000 characters of JSON"),
        ({"a": shared(20, 10**3000)}, ValueError, "metadata must come to at most 100,000,000 characters of JSON"),
        ({"b": 1, "a": shared(60, {"b": ()})}, ValueError, "characters of JSON, with 'a'"),
        ({"a": [shared(99, 1)]}, ValueError, r"metadata\['a'\] must be nested at most 100 deep"),
        ({"a": twice_in_itself()}, ValueError, r"metadata\['a'\] must be nested at most 100 deep"),
    ],
)
def test_metadata_that_json_cannot_say_are_refused_at_once(metadata: Any, kind: Any, message: str) -> None:
    cache = tokened()
    with pytest.raises(kind, match=message):
        cache.metadata = metadata
    assert dict(cache.metadata) == {"n": 1}


def test_metadata_are_a_copy_that_cannot_be_written() -> None:
    given = {"list": [1, 2], "number": np.float32(0.5)}
    cache = AttentionCache()
    cache.metadata = given
    given["list"] = []
    assert dict(cache.metadata) == {"list": [1, 2], "number": 0.5}
    with pytest.raises(TypeError):
        cache.metadata["list"] = 3  # type: ignore[index]
