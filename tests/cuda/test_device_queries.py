"""Every query of layers on a device: the cases of tests/support/calls.py, asked there.

Sizes: around a warp and a block of threads, one long row; every dtype; patterns of every kind in support/patterns.py.
Tolerance: none, the bits of attncache.reference. The library is the emulated one, so its memory cannot be read by the CPU
without a crash; with a device, the built one as well.
Not covered: the kernels by themselves (test_emulated*.py), factored layers (test_device_factored.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncache import AttentionCache, LayerSource, TopK
from attncache.cuda import DeviceArray, queries
from attncache.reference import QUERIES
from cuda.emulated import load
from cuda.placing import put
from cuda.recording import Recorder
from tests.support import calls, strategies
from tests.support.patterns import DTYPES, KINDS, Shape, assert_same, make, meaning, strided

HOT = {"attention_from_position": (0, 1), "attention_to_position": (0, 1), "head_mean": (0,)}
SELECTING: dict[str, tuple[Any, ...]] = {"rows": (), "columns": (), "edges": (None, None), "top_k": (3,)}
DEVICE_RESULTS = {**HOT, **SELECTING}
DEVICE_TO_HOST = 2  # of cudaMemcpyKind
WAITING = {"copy_to_host", "synchronize", "synchronize_device"}


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
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_has_the_bits_of_its_meaning(name: str, kind: str, recorder: Recorder) -> None:
    dtype = list(DTYPES)[list(KINDS).index(kind) % 3]
    assert_answers(name, kind, (2, 3, 7, 37), dtype)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 3, 8), (2, 3, 33, 5), (2, 3, 2, 257)], ids=str)
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_exact_at_sizes_around_the_hardwares(
    name: str, shape: Shape, dtype: str, recorder: Recorder
) -> None:
    if name == "top_k" and shape[3] > 100 and dtype != "float16":
        shape = (2, 3, 2, 65)  # ranks float32 lines whatever they were made of; each is many launches of the emulation
    assert_answers(name, "extremes", shape, dtype)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_reads_the_strides_of_its_layer(name: str, recorder: Recorder) -> None:
    pattern = make("soft", (2, 3, 5, 9), "float16")
    args = {"attention_from_position": (0, -1), "attention_to_position": (0, -1), "top_attended_positions": (0, 1, 4)}
    for layout, view in strided(pattern).items():
        if view.strides[3] != view.itemsize:
            continue
        cache = cache_on_device([view])
        call = args.get(name, DEVICE_RESULTS.get(name, ()))
        assert_same(getattr(cache, name)(*call), meaning(name, [pattern], *call), layout)


@pytest.mark.parametrize("name", SELECTING)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_selectors_pick_what_the_reference_picks(name: str, recorder: Recorder, data: st.DataObject) -> None:
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


@pytest.mark.parametrize("name", SELECTING)
def test_no_layers_make_an_empty_layer_axis(name: str, recorder: Recorder) -> None:
    cpu = calls.small()
    for options in ({"layers": []}, {"batch": []}, {"heads": []}):
        expected = getattr(cpu, name)(*SELECTING[name], **options)
        actual = getattr(small(), name)(*SELECTING[name], **options)
        assert_same(tuple(actual), tuple(expected))


def test_a_layer_without_heads_has_a_mean_of_nan(recorder: Recorder) -> None:
    cache = cache_on_device([np.empty((1, 0, 2, 3), np.float32)])
    assert np.isnan(cache.head_mean(0)).all()
    assert cache.rows(heads=None).shape == (1, 0, 2, 3)


def test_what_needs_much_scratch_memory_is_answered_in_pieces(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = [make("soft", (2, 3, 7, 13), "float32", layer) for layer in range(3)]
    cache = cache_on_device(patterns)
    for n_bytes in (1, 4 * 13, 4 * 13 * 5, 4 * 13 * 20):
        monkeypatch.setattr(queries, "SCRATCH_BYTES", n_bytes)
        for options in ({"heads": "mean"}, {"heads": [2, 0], "batch": None, "direction": "to"}):
            recorder.calls.clear()
            assert_same(tuple(cache.top_k(4, **options)), meaning("top_k", patterns, 4, **options))
            assert len(recorder.of("top_k")) > 1


# Errors are those of the CPU: the same code finds them


@pytest.mark.parametrize(
    ("message", "place", "query"),
    calls.OUT_OF_RANGE,
    ids=[place for _, place, _ in calls.OUT_OF_RANGE],
)
def test_out_of_range_is_the_same_index_error(
    message: str, place: str, query: Callable[[AttentionCache], Any], recorder: Recorder
) -> None:
    with pytest.raises(IndexError, match=rf"^{message}"):
        query(small())
    assert not {"rows", "columns", "edges", "top_k"} & set(recorder.names())


@pytest.mark.parametrize("kind", calls.NOT_A_SELECTOR)
@pytest.mark.parametrize("name", SELECTING)
def test_a_selector_of_the_wrong_kind_is_the_same_type_error(name: str, kind: str, recorder: Recorder) -> None:
    with pytest.raises(TypeError, match="batch"):
        getattr(small(), name)(*SELECTING[name], batch=calls.NOT_A_SELECTOR[kind])


def test_layers_on_different_devices_cannot_be_selected_together(recorder: Recorder) -> None:
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


def test_a_query_leaves_the_current_device_as_it_was(recorder: Recorder) -> None:
    cache = cache_on_device([make("soft", (1, 2, 4, 6))], device=1)
    recorder.calls.clear()
    cache.rows()
    chosen = recorder.of("set_device")
    assert (chosen[0], chosen[-1]) == ((1,), (0,))


# How an answer is wanted


@pytest.mark.parametrize("name", [*HOT, "rows", "columns", "edges"])
def test_answers_are_written_into_out(name: str, recorder: Recorder) -> None:
    cache, args = small(), DEVICE_RESULTS[name]
    expected = getattr(cache, name)(*args)
    out = np.full(expected.shape, -77.5, np.float32)
    assert getattr(cache, name)(*args, out=out) is out
    assert_same(out, expected)
    assert out.flags.writeable
    for wrong in (out[..., :-1], out.astype(np.float64), "out"):
        with pytest.raises((TypeError, ValueError), match="out"):
            getattr(cache, name)(*args, out=wrong)


@pytest.mark.parametrize("name", DEVICE_RESULTS)
def test_an_answer_on_the_device_waits_for_nothing(name: str, recorder: Recorder) -> None:
    cache, args = small(), DEVICE_RESULTS[name]
    expected = getattr(cache, name)(*args)
    recorder.calls.clear()
    found = getattr(cache, name)(*args, device_result=True)
    assert not WAITING & set(recorder.names())
    assert isinstance(found, TopK if name == "top_k" else DeviceArray)
    for array, host in zip(*((each if name == "top_k" else (each,)) for each in (found, expected)), strict=True):
        assert (array.shape, array.dtype, array.device) == (host.shape, host.dtype, "cuda:0")
        assert_same(array.numpy(), np.asarray(host))


@pytest.mark.parametrize("name", DEVICE_RESULTS)
def test_the_runtime_itself_is_not_asked_to_wait(name: str, emulated: Recorder, emulated_library: Path) -> None:
    runtime = load(emulated_library)
    cache, args = small(), DEVICE_RESULTS[name]
    runtime.shim_clear()
    found = getattr(cache, name)(*args, device_result=True)
    calls = runtime.shim_calls().decode().splitlines()
    assert any(call.startswith("cudaLaunchKernel") for call in calls)
    assert not [call for call in calls if "Synchronize" in call or f"kind={DEVICE_TO_HOST}" in call]
    runtime.shim_clear()
    (found.weights if name == "top_k" else found).numpy()
    calls = runtime.shim_calls().decode().splitlines()
    assert [call for call in calls if "Synchronize" in call or f"kind={DEVICE_TO_HOST}" in call]


@pytest.mark.parametrize("name", DEVICE_RESULTS)
def test_an_answer_on_the_device_needs_a_layer_there(name: str) -> None:
    for cache in (calls.small(), AttentionCache(index="eager")):
        if cache.is_empty:
            cache.push(make("soft", (1, 2, 4, 6)))
        with pytest.raises(ValueError, match="device_result must be False for layers in CPU memory"):
            getattr(cache, name)(*DEVICE_RESULTS[name], device_result=True)
        for wrong in (1, 0, None, "yes", np.True_):
            with pytest.raises(TypeError, match="device_result must be True or False"):
                getattr(cache, name)(*DEVICE_RESULTS[name], device_result=wrong)
        getattr(cache, name)(*DEVICE_RESULTS[name], device_result=False)


@pytest.mark.parametrize("name", [*HOT, "rows", "columns", "edges"])
def test_an_answer_on_the_device_takes_no_out(name: str, recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="out must be None if device_result is True"):
        getattr(small(), name)(*DEVICE_RESULTS[name], out=np.empty(6, np.float32), device_result=True)


@pytest.mark.parametrize("name", HOT)
def test_answers_of_the_hot_calls_are_read_only(name: str, recorder: Recorder) -> None:
    assert not getattr(small(), name)(*HOT[name]).flags.writeable


def test_tokens_are_shown_with_an_answer_on_the_cpu(recorder: Recorder) -> None:
    cache = small()
    cache.tokens = list("abcdef")
    assert cache.top_k(1, layers=0, positions=0).tokens() == [cache.tokens[cache.top_attended_positions(0, 0, 1)[0][0]]]
    assert type(cache.top_k(1, device_result=True)) is TopK


# What a query cannot be asked of a device


def test_what_needs_the_bytes_of_a_layer_says_how_to_have_them(recorder: Recorder, tmp_path: Path) -> None:
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


def test_a_cache_comes_to_the_cpu_with_all_it_has(recorder: Recorder, tmp_path: Path, dtype: str) -> None:
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


def test_a_cache_shows_where_its_layers_lie(recorder: Recorder) -> None:
    cache = small()
    assert (cache.shapes, cache.dtypes, cache.kinds, cache.devices) == (
        ((1, 2, 4, 6),),
        ("float32",),
        ("dense",),
        ("cuda:0",),
    )
    assert (cache.nbytes, cache.index_nbytes) == (192, 0)
    assert repr(cache) == "AttentionCache(1 layer of [1, 2, 4, 6] float32 on cuda:0, 192 bytes)"
    cache.push(make("soft", (1, 2, 4, 6)))
    assert "on cpu, cuda:0" in repr(cache)


def test_no_index_is_built_of_a_layer_on_a_device(recorder: Recorder) -> None:
    cache = AttentionCache(index="eager")
    cache.push(put(make("soft", (1, 2, 4, 6))))
    for _ in range(50):
        cache.attention_from_position(0, 0)
        cache.rows()
    assert cache.index_nbytes == 0
    cache.drop_index()


def test_patterns_of_one_device_replace_and_join_others(recorder: Recorder) -> None:
    first, second = (make("soft", (1, 2, 4, 6), "float32", layer) for layer in range(2))
    cache, other = cache_on_device([first]), cache_on_device([second])
    cache._put_layer(1, other, 0)
    other.clear()
    assert_same(cache.rows(heads=None), meaning("rows", [first, second], heads=None))
    cache._replace_layer(0, cache_on_device([second]))
    assert_same(cache.rows(), meaning("rows", [second, second]))


def test_a_part_of_layers_on_a_device_shares_them_whole_or_asks_for_the_cpu(recorder: Recorder) -> None:
    first, second = (make("soft", (1, 2, 4, 6), "float32", layer) for layer in range(2))
    cache = cache_on_device([first, second])
    part = cache.part(layers=1, heads=slice(None), positions=None)
    assert part.devices == ("cuda:0",)
    assert_same(part.rows(heads=None), meaning("rows", [second], heads=None))
    with pytest.raises(ValueError, match=r"layer 0 lies on cuda:0; cache.cpu\(\) gives a copy"):
        cache.part(heads=0)
    assert_same(cache.cpu().part(heads=0)[1], second[:, :1].copy())


def test_a_layer_on_a_device_is_refused_with_another_number_of_heads_in_its_source(recorder: Recorder) -> None:
    cache = AttentionCache()
    pattern = put(make("soft", (1, 2, 4, 6), "float32"))
    with pytest.raises(ValueError, match="n_heads=2, got 1"):
        cache.push(pattern, source=LayerSource(heads=(0,)))
    assert cache.is_empty
    cache.push(pattern, source=LayerSource(heads=(4, 5)))
    assert cache.sources == cache.cpu().sources == (LayerSource(heads=(4, 5)),)
