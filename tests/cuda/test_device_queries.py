"""Every query of layers on a device: the cases of tests/support/calls.py, asked there.

Sizes: around a warp and a block of threads; every dtype; patterns of every kind in patterns.py. Tolerance: none, the bits of
attncache.reference. The library is the emulated one, so its memory cannot be read by the CPU without a crash; with a device,
the built one as well.
Not covered: the kernels by themselves (test_emulated.py), weights of factored layers (test_device_factored.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncache import AttentionCache, LayerSource
from attncache.reference import QUERIES
from cuda.placing import put
from tests.support import calls, factored, strategies
from tests.support.patterns import DTYPES, KINDS, Shape, assert_same, make, meaning, strided

pytestmark = [pytest.mark.minutes, pytest.mark.usefixtures("on_device")]
SELECTING: dict[str, tuple[Any, ...]] = {"rows": (), "columns": (), "edges": (None, None), "top_k": (3,)}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "attention_from_position": (0, 1),
    "attention_to_position": (0, 1),
    "top_attended_positions": (0, 1, 4),
    "head_mean": (0,),
    **SELECTING,
}
DENSE = [name for name, query in QUERIES.items() if "dense" in query.device]


def cache_on_device(patterns: Any, device: int = 0) -> AttentionCache:
    cache = AttentionCache()
    for pattern in patterns:
        cache.push(put(pattern, device))
    return cache


def small() -> AttentionCache:
    """The layer of calls.small() on a device."""
    return cache_on_device([make("soft", (1, 2, 4, 6))])


def assert_answers(name: str, kind: str, shape: Shape, dtype: str) -> None:
    cache = cache_on_device(calls.two_layers(kind, shape, dtype))
    for (args, options), expected in calls.meanings(name, kind, shape, dtype):
        actual = getattr(cache, name)(*args, **options)
        assert_same(actual, expected, f"{name}{args} {options} of {dtype} {kind} {shape}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DENSE)
def test_every_query_has_the_bits_of_its_meaning(name: str, kind: str) -> None:
    dtype = list(DTYPES)[list(KINDS).index(kind) % 3]
    assert_answers(name, kind, (2, 3, 7, 37), dtype)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 3, 8), (2, 3, 33, 5), (2, 3, 2, 257)], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_every_query_is_exact_at_sizes_around_the_hardwares(name: str, shape: Shape, dtype: str) -> None:
    if name == "top_k" and shape[3] > 100 and dtype != "float16":
        shape = (2, 3, 2, 65)  # ranks float32 lines whatever they were made of; each is many launches of the emulation
    assert_answers(name, "extremes", shape, dtype)


@pytest.mark.parametrize("name", DENSE)
def test_every_query_reads_the_strides_of_its_layer(name: str) -> None:
    pattern = make("soft", (2, 3, 5, 9), "float16")
    for layout, view in strided(pattern).items():
        if view.strides[3] == view.itemsize:
            answer = getattr(cache_on_device([view]), name)(*ARGUMENTS[name])
            assert_same(answer, meaning(name, [pattern], *ARGUMENTS[name]), layout)


@pytest.mark.parametrize("kind", ["dense", "factored"])
@pytest.mark.parametrize("name", QUERIES)
def test_a_query_that_a_device_has_no_kernel_for_is_refused_by_name(name: str, kind: str) -> None:
    cache = AttentionCache()
    if kind == "dense":
        cache.push(put(make("soft", (1, 2, 4, 6))))
    else:
        cache.push_qk(*map(put, factored.layer(4, 6, batch=1, heads=2, key_heads=1)))
    ask = getattr(cache, name)
    if kind in QUERIES[name].device:
        ask(*ARGUMENTS[name])
        return
    with pytest.raises(ValueError, match=r"cache\.cpu\(\)"):
        ask(*ARGUMENTS[name])
    getattr(cache.cpu(), name)(*ARGUMENTS[name])


@pytest.mark.parametrize("name", SELECTING)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_selectors_pick_what_the_reference_picks(name: str, data: st.DataObject) -> None:
    shape, kind = data.draw(strategies.shapes), data.draw(strategies.kinds)
    n_layers = data.draw(st.integers(1, 3))
    patterns = [make(kind, shape, list(DTYPES)[layer], layer) for layer in range(n_layers)]
    args: tuple[Any, ...] = (data.draw(st.integers(0, 50)),) if name == "top_k" else ()
    options: dict[str, Any] = {}
    if name == "edges":
        args = data.draw(strategies.selectors(shape[2])), data.draw(strategies.selectors(shape[3]))
    else:
        options["positions"] = data.draw(strategies.selectors(shape[3 if name == "columns" else 2]))
    picks_none = calls.picks_none
    options["layers"] = data.draw(strategies.selectors(n_layers).filter(lambda s: not picks_none(s, n_layers)))
    options["heads"] = data.draw(strategies.heads_arguments(shape[1]))
    options["batch"] = data.draw(strategies.selectors(shape[0]))
    expected = meaning(name, patterns, *args, **options)
    assert_same(getattr(cache_on_device(patterns), name)(*args, **options), expected, f"{name}{args} {options}")


def test_means_and_columns_beyond_the_scratch_of_the_library_are_ranked_in_pieces() -> None:
    patterns = [make("soft", (2, 2, 90, 110), "float32", layer) for layer in range(2)]  # 40 KB a plane of 64 KB
    cache = cache_on_device(patterns)
    for options in ({"batch": None}, {"heads": [1, 0], "direction": "to"}):
        assert_same(tuple(cache.top_k(2, **options)), meaning("top_k", patterns, 2, **options))


@pytest.mark.parametrize("name", SELECTING)
def test_no_layers_make_an_empty_layer_axis(name: str) -> None:
    cpu = calls.small()
    for options in ({"layers": []}, {"batch": []}, {"heads": []}):
        expected = getattr(cpu, name)(*SELECTING[name], **options)
        assert_same(tuple(getattr(small(), name)(*SELECTING[name], **options)), tuple(expected))


def test_a_layer_without_heads_has_a_mean_of_nan() -> None:
    cache = cache_on_device([np.empty((1, 0, 2, 3), np.float32)])
    assert np.isnan(cache.head_mean(0)).all()
    assert cache.rows(heads=None).shape == (1, 0, 2, 3)


# Errors are those of the CPU: the same code finds them


@pytest.mark.parametrize(
    ("message", "place", "query"),
    calls.OUT_OF_RANGE,
    ids=[place for _, place, _ in calls.OUT_OF_RANGE],
)
def test_out_of_range_is_the_same_index_error(message: str, place: str, query: Callable[[AttentionCache], Any]) -> None:
    with pytest.raises(IndexError, match=rf"^{message}"):
        query(small())


@pytest.mark.parametrize("kind", calls.NOT_A_SELECTOR)
@pytest.mark.parametrize("name", SELECTING)
def test_a_selector_of_the_wrong_kind_is_the_same_type_error(name: str, kind: str) -> None:
    with pytest.raises(TypeError, match="batch"):
        getattr(small(), name)(*SELECTING[name], batch=calls.NOT_A_SELECTOR[kind])


def test_layers_on_different_devices_cannot_be_selected_together() -> None:
    pattern = make("soft", (1, 2, 4, 6))
    cache = cache_on_device([pattern])
    cache.push(pattern)
    cache.push(put(pattern, device=1))
    assert cache.devices == ("cuda:0", "cpu", "cuda:1")
    for name, args in SELECTING.items():
        with pytest.raises(ValueError, match=r"one device.*layer 0 lies on cuda:0 and layer 1 on cpu"):
            getattr(cache, name)(*args)
        with pytest.raises(ValueError, match=r"one device.*layer 2 lies on cuda:1 and layer 0 on cuda:0"):
            getattr(cache, name)(*args, layers=[-1, 0])
        for layer in range(3):
            expected = meaning(name, [pattern], *args, layers=0)
            assert_same(getattr(cache, name)(*args, layers=layer), expected)
    for layer in range(3):
        assert_same(cache.head_mean(layer), meaning("head_mean", [pattern], 0))


@pytest.mark.parametrize("name", ["attention_from_position", "attention_to_position", "head_mean"])
def test_answers_of_the_hot_calls_are_read_only(name: str) -> None:
    assert not getattr(small(), name)(*ARGUMENTS[name]).flags.writeable


def test_tokens_are_shown_with_an_answer() -> None:
    cache = small()
    cache.tokens = list("abcdef")
    assert cache.top_k(1, layers=0, positions=0).tokens() == [cache.tokens[cache.top_attended_positions(0, 0, 1)[0][0]]]


# What a layer on a device is besides


def test_what_needs_the_bytes_of_a_layer_says_how_to_have_them(tmp_path: Path) -> None:
    cache = small()
    asked: dict[str, Callable[[], Any]] = {
        "item": lambda: cache[0],
        "slice": lambda: cache[:],
        "iterator": lambda: list(cache),
        "patterns": lambda: cache.patterns,
        "get_layer": lambda: cache.get_layer(0),
        "save": lambda: cache.save(tmp_path / "saved"),
        "lse": lambda: cache.lse(0),
        "get_queries": lambda: cache.get_queries(0),
        "append_qk": lambda: cache.append_qk(0, np.zeros((1, 2, 1, 4)), np.zeros((1, 2, 1, 4))),
    }
    for name, ask in asked.items():
        with pytest.raises(ValueError, match=r"must lie in CPU memory, got one on cuda:0; cache\.cpu\(\)"):
            ask()
        assert not (tmp_path / "saved").exists(), name


def test_a_cache_comes_to_the_cpu_with_all_it_has(tmp_path: Path, dtype: str) -> None:
    patterns = [make("extremes", (2, 3, 4, 6), dtype, layer) for layer in range(3)]
    cache = AttentionCache(index="off")
    cache.push(put(patterns[0]))
    cache.push(patterns[1])
    cache.push(put(patterns[2].transpose(1, 0, 2, 3)[::-1].copy().transpose(1, 0, 2, 3)[:, ::-1]))
    cache.tokens, cache.metadata = list("abcdef"), {"prompt": 3}
    host = cache.cpu()
    assert host.devices == ("cpu",) * 3
    assert_same(host.patterns, tuple(patterns))
    assert (host.tokens, host.metadata, host.index) == (cache.tokens, cache.metadata, "off")
    host.save(tmp_path / "saved.safetensors")
    assert_same(AttentionCache.load(tmp_path / "saved.safetensors").patterns, tuple(patterns))
    assert np.shares_memory(host[1], cache[1])


def test_a_cache_shows_where_its_layers_lie() -> None:
    cache = small()
    shown = (cache.shapes, cache.dtypes, cache.kinds, cache.devices)
    assert shown == (((1, 2, 4, 6),), ("float32",), ("dense",), ("cuda:0",))
    assert (cache.nbytes, cache.index_nbytes) == (192, 0)
    assert repr(cache) == "AttentionCache(1 layer of [1, 2, 4, 6] float32 on cuda:0, 192 bytes)"
    cache.push(make("soft", (1, 2, 4, 6)))
    assert "on cpu, cuda:0" in repr(cache)


def test_no_index_is_built_of_a_layer_on_a_device() -> None:
    cache = AttentionCache(index="eager")
    cache.push(put(make("soft", (1, 2, 4, 6))))
    for _ in range(50):
        cache.attention_from_position(0, 0)
        cache.rows()
    assert cache.index_nbytes == 0
    cache.drop_index()


def test_a_part_of_layers_on_a_device_shares_them_whole_or_asks_for_the_cpu() -> None:
    first, second = (make("soft", (1, 2, 4, 6), "float32", layer) for layer in range(2))
    cache = cache_on_device([first, second])
    part = cache.part(layers=1, heads=slice(None), positions=None)
    assert part.devices == ("cuda:0",)
    assert_same(part.rows(heads=None), meaning("rows", [second], heads=None))
    with pytest.raises(ValueError, match=r"layer 0 lies on cuda:0; cache.cpu\(\) gives a copy"):
        cache.part(heads=0)
    assert_same(cache.cpu().part(heads=0)[1], second[:, :1].copy())


def test_a_layer_on_a_device_is_refused_with_another_number_of_heads_in_its_source() -> None:
    cache = AttentionCache()
    pattern = put(make("soft", (1, 2, 4, 6), "float32"))
    with pytest.raises(ValueError, match="n_heads=2, got 1"):
        cache.push(pattern, source=LayerSource(heads=(0,)))
    assert cache.is_empty
    cache.push(pattern, source=LayerSource(heads=(4, 5)))
    assert cache.sources == cache.cpu().sources == (LayerSource(heads=(4, 5)),)
