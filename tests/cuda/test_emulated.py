"""The kernels' own sources, run thread by thread on the CPU, against reference.py, bit by bit; nothing races.

Covered: rows, columns, edges and top-k by equality for every dtype and kind of pattern; sizes around 8, 16, 32, 64, 128
and 256; layouts with any strides, any alignment of input and result, repeated and reversed indices, several layers of
several dtypes; every 16-bit item; k from 1 to the line, lines to thousands; batches, heads, queries and keys that lie
gigabytes apart (in addresses, not in memory), so that no 32 bits hold an offset. Factored rows within the bound that reference.factored computes, nothing more, and their means by equality. The library is built
with grids of at most five blocks and 64 KiB of scratch (emulated.LIMITS), so strides over grids and parts are the rule.
Not covered: results of more than 2^31 items (8 GiB to write), top-k of lines longer than 2^32, masks and given sums of
more than 2^31 items, which have no strides; what only hardware has (memory ordering between warps, speed), see
docs/cuda.md.

test_planted.py runs this file against libraries with planted bugs, so the cheap and general cases come first.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import attncache
from attncache import reference
from cuda import emulated
from cuda.calls import Device, Failed
from cuda.compilers import NO_GXX, OTHER_LIBRARY, find_gxx
from cuda.header import BAD_ARGUMENT, TOO_LARGE
from tests.support import factored
from tests.support.patterns import DTYPES, KINDS, SIZES, Array, Shape, assert_same, make, meaning, spread, strided

pytestmark = pytest.mark.minutes  # CI runs it in the stage of CUDA

LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 511, 1000, 2049, 4099)
# Bytes, and items of 2 and of 4 bytes, that need more than 32 bits; what is left of them in 32 is nobody's memory.
FAR = 17 << 30


@pytest.fixture(scope="session")
def device(emulated_library: Path) -> Device:
    return Device(emulated.load(emulated_library))


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(device: Device) -> Any:
    device.library.shim_clear()
    before = device.library.shim_live_bytes()
    yield
    assert device.library.shim_live_bytes() == before
    assert device.library.shim_words() == b"", "a kernel failed"


def assert_asked(query: str, device: Device, patterns: list[Array], *lists: list[int], **options: Any) -> None:
    """rows, columns or edges of all batch items have the bits of the reference, for each head and for their mean."""
    for heads in (None, "mean"):
        chosen = lists if query == "edges" else (None, *lists)
        expected = meaning(query, patterns, *chosen, heads=heads, batch=None)
        batches = range(patterns[0].shape[0])
        got = device.ask(query, patterns, *lists, batches=batches, mean=heads == "mean", **options)
        assert_same(got.reshape(expected.shape), expected, f"{query}, heads {heads}, {options}")


assert_rows = partial(assert_asked, "rows")
assert_columns = partial(assert_asked, "columns")
assert_edges = partial(assert_asked, "edges")


def assert_top_k(device: Device, lines: Array, k: int, shift: int = 0) -> None:
    positions = reference.heaviest(lines, k)
    expected = positions, np.take_along_axis(lines, positions, axis=-1)
    assert_same(device.top_k(lines, k, shift), expected, f"the {k} heaviest of {lines.shape}")


def assert_top_k_rows(device: Device, patterns: list[Array], positions: Sequence[int], k: int, **options: Any) -> None:
    heads, batches = options.get("heads"), options.get("batches", [0])
    expected = meaning("top_k", patterns, k, None, list(positions), heads=heads, batch=batches)
    got = device.top_k_rows(patterns, positions, k, **options)
    shaped = tuple(each.reshape(got[0].shape) for each in expected)
    assert_same(got, shaped, f"the {k} heaviest of rows of {patterns[0].shape}, {options}")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_head_means_have_the_bits_of_the_reference(kind: str, dtype: str, device: Device) -> None:
    for seq_k in SIZES:
        assert_rows(device, [make(kind, (2, 3, 5, seq_k), dtype)], [4, 0, 0, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_columns_have_the_bits_of_the_reference(kind: str, dtype: str, device: Device) -> None:
    for seq_q in (1, 7, 31, 32, 33, 129):
        pattern = make(kind, (2, 3, seq_q, 40), dtype)
        assert_columns(device, [pattern], [39, 0, 0])
        assert_columns(device, [pattern], list(range(40)))


@pytest.mark.parametrize("kind", KINDS)
def test_edges_have_the_bits_of_the_reference(kind: str, dtype: str, device: Device) -> None:
    pattern = make(kind, (2, 3, 9, 200), dtype)
    assert_edges(device, [pattern], [8, 0, 0], [199, 3, 3, 0])
    assert_edges(device, [pattern], [1], list(range(200)))


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_has_order_ties_and_nan_of_the_reference(kind: str, device: Device) -> None:
    for length in LENGTHS:
        lines = make(kind, (1, 1, 3, length))[0, 0]
        for k in sorted({1, 2, 10, 31, 32, 33, 255, 256, 257, length // 2, length - 1, length}):
            if 0 < k <= length:
                assert_top_k(device, lines, k)


def test_top_k_takes_any_k_of_a_line(device: Device) -> None:
    lines = np.concatenate([make(kind, (1, 1, 1, 300))[0, 0] for kind in KINDS])
    for k in [*range(70), *range(250, 262), *range(290, 301)]:
        assert_top_k(device, lines, k)


@pytest.mark.parametrize("k", [1, 9, 40, 511, 512, 513])  # a tournament takes 512 at most
def test_top_k_on_both_sides_of_the_tournaments_bound(k: int, device: Device) -> None:
    for length in (513, 1023, 1025):
        lines = np.concatenate([make(kind, (1, 1, 1, length))[0, 0] for kind in KINDS])
        assert_top_k(device, lines, k)


@pytest.mark.parametrize("length", [7, 8, 9, 1023, 1024, 1025, 8185, 8191, 8192, 8193, 16_391, 40_000])
def test_top_k_of_lines_that_begin_anywhere_and_end_within_a_piece(length: int, dtype: str, device: Device) -> None:
    for kind in ("ties", "extremes"):
        pattern = make(kind, (1, 1, 2, length), dtype)
        for shift in (0, 4, 8, 14):
            if shift % pattern.itemsize == 0:
                assert_top_k_rows(device, [pattern], [1, 0], min(9, length), shift=shift)


def test_top_k_of_lines_longer_than_a_tournament_takes(device: Device) -> None:
    line = make("extremes", (1, 1, 1, 262_144), "float16")
    line[0, 0, 0, [3, 8, 9, 100, 101, 262_143]] = np.inf
    for length in (262_136, 262_137):  # the longest, and one more
        assert_top_k_rows(device, [line[..., :length]], [0], 12)
        assert_top_k_rows(device, [line[..., -length:]], [0], 12)


def test_top_k_of_causal_rows_that_are_mostly_zero(dtype: str, device: Device) -> None:
    pattern = np.tril(np.broadcast_to(make("soft", (1, 1, 12, 700), dtype), (1, 1, 12, 700)))
    pattern[..., 690:] = -pattern[..., 690:]  # zeros of both signs
    for k in (1, 5, 40, 600):
        assert_top_k_rows(device, [pattern], range(12), k)


@pytest.mark.parametrize("rest", [np.nan, -np.inf, np.inf, -0.0])
def test_top_k_of_lines_with_fewer_numbers_than_k(rest: float, dtype: str, device: Device) -> None:
    pattern = np.full((1, 1, 2, 333), rest, DTYPES[dtype])
    pattern[0, 0, 0, [5, 100, 332]] = 0.5, 0.0, 0.5
    pattern[0, 0, 1, [0, 331]] = -np.inf, np.nan
    for k in (1, 2, 3, 4, 40, 333):
        assert_top_k_rows(device, [pattern], [0, 1], k)


@pytest.mark.parametrize("k", [7, 600])
def test_top_k_of_rows_picks_layers_batches_heads_and_queries(k: int, device: Device) -> None:
    layers = [make("ties", (2, 3, 4, 700), dtype, i) for i, dtype in enumerate(("float16", "float32", "bfloat16"))]
    layers.append(strided(layers[0])["heads inside queries"])
    layers.append(make("soft", (2, 3, 4, 711), "float16")[..., 3:703])
    assert_top_k_rows(device, layers, [3, 0, 3], k, batches=[1, 0], heads=[2, 0])


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 2.0**-149])
def test_top_k_of_equal_weights_is_the_first_positions(value: float, device: Device) -> None:
    lines = np.full((2, 1000), value, np.float32)
    for k in (1, 255, 256, 257, 999, 1000):
        positions, weights = device.top_k(lines, k)
        assert_same(positions, np.tile(np.arange(k), (2, 1)))
        assert_same(weights, lines[:, :k])


def test_top_k_keeps_equal_zeros_of_both_signs_in_place(device: Device) -> None:
    lines = make("signed_zeros", (1, 1, 2, 600))[0, 0]
    positions, weights = device.top_k(lines, 600)
    assert_same(positions, np.tile(np.arange(600), (2, 1)))
    assert_same(weights, lines)


def test_top_k_orders_weights_that_differ_in_any_one_bit(device: Device) -> None:
    bits = np.uint32(1) << np.arange(31, dtype=np.uint32)
    lines = np.stack([bits, 0x3F800000 ^ bits, 0x80000000 | bits, 0x3F7FFFFF & ~bits]).view(np.float32)
    for k in (1, 16, 31):
        assert_top_k(device, lines, k)


def test_more_lines_than_blocks(device: Device) -> None:
    lines = make("ties", (1, 1, 50, 30))[0, 0]
    assert_top_k(device, lines, 7)
    many = make("extremes", (1, 1, 20, 2000))[0, 0]
    assert_top_k(device, many, 1999)


@pytest.mark.parametrize("bits", ["float16", "bfloat16"])
def test_every_16_bit_item_is_widened_exactly(bits: str, device: Device) -> None:
    dtype = np.float16 if bits == "float16" else ml_dtypes.bfloat16
    items = np.arange(65536, dtype=np.uint16).view(dtype)
    pattern = items.reshape(1, 1, 16, 4096)
    with np.errstate(all="ignore"):
        expected = pattern.astype(np.float32)
    assert_same(device.ask("rows", [pattern], range(16))[0], expected)
    assert_same(device.ask("rows", [pattern], range(16), shift=2)[0], expected)
    assert_same(device.ask("columns", [pattern], range(4096))[0, :, 0].T.reshape(16, 4096), expected[0, 0])


@pytest.mark.parametrize("shape", [(2, 3, 5, 48), (2, 3, 5, 37)], ids=str)
def test_any_strides_of_batches_heads_and_queries(shape: Shape, dtype: str, device: Device) -> None:
    pattern = make("extremes", shape, dtype)
    layouts = {name: layout for name, layout in strided(pattern).items() if layout.strides[3] == layout.itemsize}
    layouts["backwards in all but keys"] = np.ascontiguousarray(pattern[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    layouts["the same heads"] = np.broadcast_to(pattern[:, :1], shape)
    layouts["part of longer rows"] = make("soft", (*shape[:3], 64), dtype)[..., 8 : 8 + shape[3]]
    assert len(layouts) >= 5
    for layout in layouts.values():
        assert_rows(device, [layout], [4, 0, 2])
        assert_columns(device, [layout], [shape[3] - 1, 0, 5])
        assert_edges(device, [layout], [4, 0], [shape[3] - 1, 7, 8])


@pytest.mark.parametrize("shift", [2, 4, 6, 8, 12, 14])
def test_any_alignment_of_an_item(shift: int, dtype: str, device: Device) -> None:
    for seq_k in (24, 33, 1056):
        pattern = make("extremes", (1, 3, 4, seq_k), dtype)
        if shift % pattern.itemsize:
            continue
        assert_rows(device, [pattern], [3, 1], shift=shift)
        assert_rows(device, [pattern], [3, 1], shift=shift, out_shift=4)
        assert_rows(device, [pattern], [3, 1], out_shift=shift // 4 * 4)
        assert_columns(device, [pattern], [3, 1, 2], shift=shift, out_shift=4)
        assert_edges(device, [pattern], [3], [3, 1, 2], shift=shift, out_shift=4)
    assert_top_k(device, make("ties", (1, 1, 2, 301))[0, 0], 300, shift=shift // 4 * 4)


@pytest.mark.parametrize("axis", range(3), ids=("batches", "heads", "queries"))
def test_rows_are_read_16_bytes_at_a_time_only_if_every_stride_allows_it(axis: int, dtype: str, device: Device) -> None:
    pattern = spread(make("extremes", (2, 2, 2, 24), dtype), axis)
    assert [stride % 16 for stride in pattern.strides[:3]] == [8 if i == axis else 0 for i in range(3)]
    assert_rows(device, [pattern], [1, 0])
    query, key = factored.layer(3, 2, heads=2, key_heads=2, dtype=pattern.dtype)
    got = device.factored_rows(query, spread(key, axis), range(3), batches=[0, 1])
    assert_within_bound(got, reference.factored(query, key), f"axis {axis}")


@pytest.mark.parametrize("axis", range(3), ids=("batches", "heads", "queries"))
def test_items_of_an_axis_that_lie_gigabytes_apart(axis: int, device: Device) -> None:
    pattern = make("extremes", (2, 2, 3, 24), "float16")
    assert_rows(device, [pattern], [2, 0, 1], apart=(axis, FAR))
    assert_columns(device, [pattern], [23, 0], apart=(axis, FAR))
    assert_edges(device, [pattern], [2, 0], [23, 0], apart=(axis, FAR))
    assert_top_k_rows(device, [pattern], [2, 0, 1], 5, apart=(axis, FAR), heads=[1, 0], batches=[1, 0])


def test_keys_of_a_row_that_is_gigabytes_long(device: Device) -> None:
    pattern = make("extremes", (2, 2, 3, 2), "float16")
    keys = [FAR // 2, 0]
    for mean in (False, True):
        options: dict[str, Any] = {"batches": [0, 1], "mean": mean, "apart": (3, FAR)}
        expected = meaning("columns", [pattern], None, [1, 0], heads="mean" if mean else None, batch=None)
        got = device.ask("columns", [pattern], keys, **options)
        assert_same(got.reshape(expected.shape), expected, f"columns, mean {mean}")
        expected = meaning("edges", [pattern], [2, 0], [1, 0], heads="mean" if mean else None, batch=None)
        got = device.ask("edges", [pattern], [2, 0], keys, **options)
        assert_same(got.reshape(expected.shape), expected, f"edges, mean {mean}")


def test_rows_longer_than_a_tile(dtype: str, device: Device) -> None:
    for seq_k in (1023, 1024, 1025, 2056, 4099):
        assert_rows(device, [make("extremes", (1, 5, 2, seq_k), dtype)], [1, 0])


def test_columns_longer_than_a_tile_of_any_width(device: Device) -> None:
    pattern = make("extremes", (1, 2, 1100, 70), "float16")
    for n_keys in (1, 2, 3, 5, 9, 17, 32, 33, 70):
        assert_columns(device, [pattern], list(range(70 - n_keys, 70))[::-1])


@pytest.mark.parametrize(
    "shape", [(2, 3, 132, 136), (1, 9, 64, 64), (1, 2, 36, 40), (1, 2, 35, 40), (1, 2, 36, 41)], ids=str
)
def test_columns_of_keys_in_sequence_from_any_first_key(shape: Shape, dtype: str, device: Device) -> None:
    pattern = make("extremes", shape, dtype)
    for first in (0, 1, 4, 8):
        for last in (first + 31, first + 32, shape[3] - 1, shape[3]):
            if last <= shape[3]:
                assert_columns(device, [pattern], list(range(first, last)))
    assert_columns(device, [pattern], list(range(shape[3])), out_shift=4)
    assert_columns(device, [pattern], [*range(32), 31])
    assert_columns(device, [pattern], list(range(shape[3]))[::-1])


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17])
def test_any_number_of_heads(n_heads: int, dtype: str, device: Device) -> None:
    for seq_k in (40, 41):  # 16 bytes a read, and one item
        pattern = make("signed_zeros", (1, n_heads, 36, seq_k), dtype)
        assert_rows(device, [pattern], [35, 0])
        assert_columns(device, [pattern], list(range(40)))
        assert_columns(device, [pattern], [39, 0])


def test_heads_on_their_own_longer_than_a_tile(dtype: str, device: Device) -> None:
    for seq_k in (4095, 4096, 4104, 8200):
        assert_rows(device, [make("extremes", (1, 2, 2, seq_k), dtype)], [1, 0])


def test_listed_heads_are_added_in_the_order_of_the_list(dtype: str, device: Device) -> None:
    pattern = make("extremes", (1, 6, 3, 40), dtype)
    for heads in ([5, 0, 3], [0, 3, 5], [2, 2, 2], [4], [0, 1, 2, 3, 4, 5, 0, 1, 2]):
        expected = meaning("rows", [pattern], 0, None, heads=("mean", heads), batch=0)
        got = device.ask("rows", [pattern], [0, 1, 2], heads=heads, mean=True)
        assert_same(got[0, 0, 0], expected, f"heads {heads}")
        each = device.ask("columns", [pattern], [7, 1], heads=heads)
        assert_same(each[0, 0], meaning("columns", [pattern], 0, [7, 1], heads=heads, batch=0))


def test_the_mean_of_no_heads_is_nan(device: Device) -> None:
    pattern = make("soft", (1, 2, 3, 10))
    assert np.isnan(device.ask("rows", [pattern], [0, 1], heads=[], mean=True)).all()
    assert np.isnan(device.ask("columns", [pattern], [0, 1], heads=[], mean=True)).all()
    assert np.isnan(device.ask("edges", [pattern], [0, 1], [5], heads=[], mean=True)).all()
    rows = device.factored_rows(*factored.layer(5, 5), range(5), heads=[], mean=True)
    assert rows.shape == (1, 1, 5, 5)
    assert np.isnan(rows).all()


def test_layers_of_several_dtypes_answer_together(device: Device) -> None:
    layers = [make("extremes", (2, 3, 4, 72), dtype, i) for i, dtype in enumerate(("float16", "float32", "bfloat16"))]
    layers.append(strided(layers[0])["heads inside queries"])
    layers.append(spread(layers[2], 1))  # bfloat16 as the layer before, and not to be read 16 bytes at a time
    layers[3:3] = [layers[2]]
    assert_columns(device, layers, list(range(72)))
    assert_rows(device, layers, [3, 0])
    assert_columns(device, layers, [71, 0])
    assert_edges(device, layers, [3, 0], [71, 0, 1])


def test_the_answers_are_those_of_the_cpu(device: Device, dtype: str) -> None:
    pattern = make("extremes", (2, 4, 30, 50), dtype)
    cache = attncache.AttentionCache()
    cache.push(pattern)
    queries = list(range(30))
    assert_same(device.ask("rows", [pattern], queries, batches=[1], mean=True)[0, 0, 0], cache.head_mean(0, batch=1))
    expected = cache.columns(0, [9, 3], heads=None, batch=1)
    assert_same(device.ask("columns", [pattern], [9, 3], batches=[1])[0, 0], expected)
    top = cache.top_k(7, layers=0, heads=None, batch=0)
    rows = device.ask("rows", [pattern], queries)[0, 0].reshape(-1, 50)
    assert_same(device.top_k_rows([pattern], queries, 7)[0].reshape(top.positions.shape), top.positions)
    positions, weights = device.top_k(rows, 7)
    assert_same(positions.reshape(top.positions.shape), top.positions)
    assert_same(weights.reshape(top.weights.shape), top.weights)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)], ids=str)
def test_empty_axes_give_empty_answers_without_a_launch(shape: Shape, device: Device) -> None:
    pattern = np.zeros(shape, np.float32)
    batches, positions = range(shape[0]), range(min(1, shape[2]))
    device.ask("rows", [pattern], positions, batches=batches)
    device.ask("columns", [pattern], range(min(1, shape[3])), batches=batches)
    device.ask("edges", [pattern], positions, range(min(1, shape[3])), batches=batches)
    assert b"cudaLaunchKernel" not in device.library.shim_calls()


def test_empty_requests_give_empty_answers_without_a_launch(device: Device) -> None:
    pattern = make("soft", (1, 2, 3, 4))
    for patterns, options in (([], {}), ([pattern], {"batches": []}), ([pattern], {"heads": []})):
        assert device.ask("rows", patterns, [], **options).size == 0
        assert device.ask("columns", patterns, [], **options).size == 0
        assert device.ask("edges", patterns, [], [], **options).size == 0
    assert device.ask("rows", [pattern], []).shape == (1, 1, 2, 0, 4)
    assert device.top_k(np.zeros((3, 5), np.float32), 0)[0].shape == (3, 0)
    assert device.top_k_rows([pattern], [], 2)[0].shape == (1, 1, 2, 0, 2)
    assert device.top_k_rows([pattern], [1], 0)[0].shape == (1, 1, 2, 1, 0)
    assert device.top_k(np.zeros((3, 0), np.float32), 0)[0].shape == (3, 0)
    assert device.top_k(np.zeros((0, 5), np.float32), 2)[0].shape == (0, 2)
    assert device.factored_rows(*factored.layer(5, 5), []).shape == (1, 6, 0, 5)
    assert b"cudaLaunchKernel" not in device.library.shim_calls()


def assert_within_bound(got: Array, expected: reference.Factored, context: str) -> None:
    error = np.abs(got.astype(np.float64) - expected.pattern)
    wrong = np.argwhere(~((error <= expected.bound) | (np.isnan(got) & np.isnan(expected.pattern))))
    assert len(wrong) == 0, f"{context}: {len(wrong)} of {got.size} are off, first at {wrong[0]}"
    assert (got[expected.pattern == 0] == 0).all(), context


@pytest.mark.parametrize("option", factored.OPTIONS)
def test_factored_rows_lie_within_the_written_bound_for_every_option(option: str, device: Device) -> None:
    for seq_q, seq_k in ((1, 1), (33, 33), (1, 40), (5, 300), (30, 7), (3, 513), (2, 2100)):
        query, key = factored.layer(seq_q, seq_k)
        options = factored.options_of(option, 2, 6, seq_k)
        got = device.factored_rows(query, key, range(seq_q), batches=[0, 1], **options)
        assert_within_bound(got, reference.factored(query, key, **options), f"{option} {seq_q} x {seq_k}")


@pytest.mark.parametrize("head_dim", [1, 2, 3, 4, 7, 8, 9, 16, 24, 33, 64, 72, 128, 130, 256, 257, 264, 520])
def test_factored_rows_lie_within_the_bound_for_every_head_dim(head_dim: int, dtype: str, device: Device) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key = factored.layer(5, 70, batch=1, heads=3, key_heads=1, head_dim=head_dim, dtype=kind)
    expected = reference.factored(query, key)
    for shift in (0, key.itemsize, 16):
        assert_within_bound(device.factored_rows(query, key, range(5), shift=shift), expected, f"shift {shift}")


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (2, 1), (3, 3), (4, 2), (9, 3), (12, 1), (17, 1)])
def test_heads_in_groups_read_their_key_head(heads: int, key_heads: int, device: Device) -> None:
    query, key = factored.layer(6, 30, batch=1, heads=heads, key_heads=key_heads)
    got = device.factored_rows(query, key, range(6))
    assert_within_bound(got, reference.factored(query, key), f"{heads} heads, {key_heads} key heads")
    assert_same(got, device.factored_rows(query, np.repeat(key, heads // key_heads, axis=1), range(6)))


def test_factored_rows_come_in_the_order_of_the_lists_with_the_same_bits(device: Device) -> None:
    query, key = factored.layer(9, 300, heads=6, key_heads=3)
    whole = device.factored_rows(query, key, range(9), batches=[0, 1], softcap=4.0)
    chosen = device.factored_rows(query, key, [8, 0, 0, 5], batches=[1, 0, 1], heads=[5, 0, 3, 1, 5], softcap=4.0)
    assert_same(chosen, whole[[1, 0, 1]][:, [5, 0, 3, 1, 5]][:, :, [8, 0, 0, 5]])


def test_one_query_of_one_head_has_the_bits_that_it_has_among_many(dtype: str, device: Device) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key = factored.layer(9, 300, batch=1, heads=6, key_heads=2, head_dim=40, dtype=kind)
    many = device.factored_rows(query, key, range(9), window=90, softcap=3.0)
    for head, position in ((0, 0), (3, 8), (5, 4)):
        one = device.factored_rows(query, key, [position], heads=[head], window=90, softcap=3.0)
        assert_same(one[0, 0, 0], many[0, head, position])


@pytest.mark.parametrize("n_lines", [1, 3, 4, 5, 7, 8, 9, 16, 17])
def test_every_number_of_lines_of_a_key_head_makes_its_bundles(n_lines: int, device: Device) -> None:
    query, key = factored.layer(1, 130, batch=1, heads=n_lines, key_heads=1)
    assert_within_bound(device.factored_rows(query, key, [0]), reference.factored(query, key), "heads")
    query, key = factored.layer(n_lines, 130, batch=1, heads=2, key_heads=2)
    assert_within_bound(device.factored_rows(query, key, range(n_lines)), reference.factored(query, key), "queries")


def test_key_heads_with_many_and_with_few_heads_make_their_bundles(device: Device) -> None:
    query, key = factored.layer(3, 40, batch=1, heads=12, key_heads=4)
    whole = device.factored_rows(query, key, range(3))
    heads = [11, 3, 4, 5, 4, 3, 5, 0, 4]  # six of key head 1, one of key heads 0 and 3, none of key head 2
    assert_same(device.factored_rows(query, key, range(3), heads=heads), whole[:, heads])


@pytest.mark.parametrize("seq_k", [1, 127, 128, 129, 255, 256, 257, 2047, 2048, 2049, 2052])
def test_keys_around_the_ends_of_steps_blocks_and_tiles(seq_k: int, device: Device) -> None:
    query, key = factored.layer(2, seq_k, batch=1, heads=6, key_heads=2)
    for options in ({}, {"causal": False}):
        expected = reference.factored(query, key, **options)
        assert_within_bound(device.factored_rows(query, key, [0, 1], **options), expected, f"{options}")


@pytest.mark.parametrize("window", [1, 7, 100, 128, 129, 256, 400])
def test_windows_that_leave_parts_of_blocks(window: int, device: Device) -> None:
    query, key = factored.layer(600, 600, batch=1, heads=4, key_heads=2, head_dim=8)
    positions = [0, 127, 128, 255, 256, 300, 511, 599]
    for causal in (True, False):
        expected = reference.factored(query, key, window=window, causal=causal)
        expected = replace(expected, pattern=expected.pattern[:, :, positions], bound=expected.bound[:, :, positions])
        got = device.factored_rows(query, key, positions, window=window, causal=causal)
        assert_within_bound(got, expected, f"causal {causal}")
        for i, position in enumerate(positions):
            one = device.factored_rows(query, key, [position], window=window, causal=causal)
            assert_same(one[:, :, 0], got[:, :, i])


def test_means_of_factored_rows_are_the_means_of_their_heads(device: Device) -> None:
    query, key = factored.layer(40, 300, heads=6, key_heads=2, head_dim=8)  # comes in parts: 7 KB a position
    for heads in ([0, 1, 2, 3, 4, 5], [5, 0], [3]):
        each = device.factored_rows(query, key, range(40), batches=[1, 0], heads=heads)
        mean = device.factored_rows(query, key, range(40), batches=[1, 0], heads=heads, mean=True)
        assert_same(mean[:, 0], np.stack([reference.mean_of_heads(item) for item in each]))


def test_given_normalisers_are_used(device: Device) -> None:
    query, key = factored.layer(12, 300)
    lse = reference.factored(query, key).lse.astype(np.float32)
    lse[0, 0, 3], lse[0, 1, 2], lse[1, 2, 5] = np.nan, np.inf, -np.inf
    lse[1, 0, :] += 1
    expected = reference.factored(query, key, lse=lse)
    got = device.factored_rows(query, key, range(12), batches=[0, 1], lse=lse)
    assert_within_bound(got, expected, "lse")
    assert np.isnan(got[0, 0, 3]).all()
    assert (got[0, 1, 2] == 0).all()
    assert (got[1, 2, 5] == 0).all()


def test_weights_far_beyond_given_normalisers_stop_at_e_to_the_88th(device: Device) -> None:
    query, key = factored.layer(5, 30, batch=1)
    lse = np.full(query.shape[:3], -100, np.float32)
    expected = reference.factored(query, key, lse=lse)
    assert expected.pattern.max() == np.exp(88)
    assert_within_bound(device.factored_rows(query, key, range(5), lse=lse), expected, "lse of -100")


@pytest.mark.parametrize("axis", range(3), ids=("batches", "heads", "queries and keys"))
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_factors_that_lie_gigabytes_apart(axis: int, dtype: str, device: Device) -> None:
    query, key = factored.layer(2, 3, heads=2, key_heads=2, dtype=np.dtype(dtype))
    for mean in (False, True):
        options: dict[str, Any] = {"batches": [1, 0], "heads": [1, 0], "mean": mean}
        near = device.factored_rows(query, key, [1, 0], **options)
        assert_same(device.factored_rows(query, key, [1, 0], apart=(axis, FAR), **options), near, f"mean {mean}")


def test_blocks_of_keys_that_lie_gigabytes_apart(device: Device) -> None:
    query, key = factored.layer(1, 260, batch=1, heads=2, key_heads=1)
    apart = 2, 17 << 20  # 4.25 GiB from block to block
    assert_same(device.factored_rows(query, key, [0], apart=apart), device.factored_rows(query, key, [0]))


@pytest.mark.parametrize("causal", [False, True])
def test_windows_of_billions_of_keys_hide_nothing(causal: bool, device: Device) -> None:
    query, key = factored.layer(5, 300)
    expected = device.factored_rows(query, key, range(5), causal=causal)
    for window in (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40):
        got = device.factored_rows(query, key, range(5), causal=causal, window=window)
        assert_same(got, expected, f"window {window}")


def test_queries_billions_before_the_first_key_see_nothing(device: Device) -> None:
    query, key = factored.layer(1, 30, batch=1)
    many = np.broadcast_to(query, (*query.shape[:2], 2**33, query.shape[3]))
    got = device.factored_rows(many, key, [0, 5, 2**32 + 3, 2**33 - 1])
    assert (got[:, :, :3] == 0).all()
    assert_same(got[:, :, 3:], device.factored_rows(query, key, [0]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_sees_nan_is_nan_everywhere(value: float, device: Device) -> None:
    query, key = factored.layer(300, 300, batch=1, heads=2, key_heads=1, head_dim=4)
    key[0, 0, 270] = value
    query = np.abs(query)
    got = device.factored_rows(query, key, [0, 269, 270, 299])
    assert not np.isnan(got[:, :, :2]).any()
    assert np.isnan(got[:, :, 2:]).all()


def test_hidden_keys_may_hold_anything_and_rows_without_visible_keys_are_zeros(device: Device) -> None:
    query, key = factored.layer(10, 20, batch=2, heads=2, key_heads=1)
    key[0, :, 15] = np.nan
    mask = np.ones((2, 20), np.bool_)
    mask[0, 15] = False
    mask[1] = False
    got = device.factored_rows(query, key, range(10), batches=[0, 1], key_mask=mask)
    assert np.isfinite(got[0]).all()
    assert (got[0, :, :, 15] == 0).all()
    assert (got[1] == 0).all()
    early = device.factored_rows(*factored.layer(9, 4), range(9))  # the first five queries see no key
    assert (early[:, :, :5] == 0).all()
    assert (early[:, :, 5:].sum(axis=-1) > 0.99).all()


def test_large_scores_overflow_nothing(device: Device) -> None:
    query, key = factored.layer(4, 300, head_dim=8)
    for scale in (30.0, 1000.0, 1e-30):
        got = device.factored_rows(query, key, range(4), scale=scale)
        assert_within_bound(got, reference.factored(query[:1], key[:1], scale=scale), f"scale {scale}")


def status_of(device: Device, name: str, *arguments: Any, **options: Any) -> int:
    with pytest.raises(Failed) as raised:
        getattr(device, name)(*arguments, **options)
    return raised.value.status


def test_indices_outside_their_axes_are_refused(device: Device) -> None:
    pattern = make("soft", (1, 2, 3, 4))
    for position in (-1, 3):
        assert status_of(device, "ask", "rows", [pattern], [position]) == BAD_ARGUMENT
        assert status_of(device, "ask", "edges", [pattern], [position], [0]) == BAD_ARGUMENT
    for position in (-1, 4):
        assert status_of(device, "ask", "columns", [pattern], [position]) == BAD_ARGUMENT
        assert status_of(device, "ask", "edges", [pattern], [0], [position]) == BAD_ARGUMENT
    assert status_of(device, "ask", "rows", [pattern], [0], heads=[2]) == BAD_ARGUMENT
    assert status_of(device, "ask", "rows", [pattern], [0], batches=[1]) == BAD_ARGUMENT
    assert status_of(device, "ask", "rows", [pattern, pattern[:, :1]], [0]) == BAD_ARGUMENT
    assert status_of(device, "top_k", np.zeros((2, 3), np.float32), 4) == BAD_ARGUMENT
    assert status_of(device, "top_k_rows", [pattern], [0], 5) == BAD_ARGUMENT
    assert status_of(device, "top_k_rows", [pattern], [3], 2) == BAD_ARGUMENT
    assert status_of(device, "factored_rows", *factored.layer(3, 3), [3]) == BAD_ARGUMENT
    assert b"cudaLaunchKernel" not in device.library.shim_calls()


def test_sizes_beyond_64_bits_are_refused(device: Device) -> None:
    size = ctypes.c_int64
    huge = device.library.attncache_cuda_top_k(None, size(2**40), size(2**40), size(1), None, None, None)
    assert huge == TOO_LARGE


def test_this_file_passes_under_sanitizers(tmp_path: Path) -> None:
    if find_gxx() is None:
        pytest.skip(NO_GXX)
    sanitizers = ("address", "undefined")
    library = emulated.build(tmp_path, sanitize=sanitizers)
    assert b"__asan_report" in library.read_bytes()
    environment = {**os.environ, OTHER_LIBRARY: str(library), **emulated.preloaded(sanitizers)}
    asked = "not bfloat16 and not under_sanitizers"  # the first is read as float16 is, the second is this test
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-m", "", "-k", asked]
    command = [sys.executable, "-m", "pytest", *options, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
