"""Holds the PTX interpreter's floats to the meaning of PTX: roundings, conversions, NaN, and approximations.

Covered: the four roundings against fractions, fused products that cancel, NaN and signed zeros, comparisons, every
conversion the kernels use, and that approximate functions are as wrong as the manual allows, so that nobody relies on
more. Operands: ends, subnormals, neighbours of 1, infinities, NaN, and random ones.
Not covered: float64 beyond sums and conversions, which no kernel uses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.ptx.registers import DTYPES
from cuda.written_ptx import computed, integers
from tests.support.patterns import Array, bits, rng

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 3.0, 2.0**-126, 2.0**-149, 1.5 * 2.0**-140, 2.0**127 * 1.9999999, 2.0**24 + 2,
           0.99999994, 1.0000001, -7.25, 2.0**-24, 1e10, -1e-10, math.inf, -math.inf, math.nan]  # fmt: skip


def singles(n_random: int = 12) -> Array:
    random = rng("singles", n_random)
    drawn = random.standard_normal(n_random) * np.exp2(random.integers(-30, 30, n_random))
    return np.array([*SPECIAL, *drawn], np.float32)


def rounded(exact: Fraction, mode: str, sign_of_zero: float = 1.0) -> float:
    """The float32 of an exact number, in one of the four roundings."""
    if exact == 0:
        return math.copysign(0.0, sign_of_zero)
    exponent = max(math.floor(math.log2(abs(exact))) - 1, -126)
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - 23)
    low = math.floor(exact / unit)
    rest = exact / unit - low
    up = {"rm": False, "rp": rest > 0, "rz": exact < 0 and rest > 0}.get(mode)
    if up is None:
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1)
    value = (low + up) * unit
    if abs(value) >= Fraction(2) ** 128:
        largest = float(np.finfo(np.float32).max)
        stays = mode == "rz" or (mode == "rm" and exact > 0) or (mode == "rp" and exact < 0)
        return math.copysign(largest if stays else math.inf, exact)
    return math.copysign(float(value), exact)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_fused_products_round_once(mode: str) -> None:
    finite = [value for value in singles(6).tolist() if math.isfinite(value)]
    random = rng("fma", mode)
    chosen = [finite[index] for index in random.integers(0, len(finite), 3000)]
    a, b, c = (np.array(chosen[part::3], np.float32) for part in range(3))
    with np.errstate(over="ignore"):
        c[::2] = -(a * b)[::2]  # nearly all of the product cancels
    c = np.where(np.isfinite(c), c, 1).astype(np.float32)
    got = computed(f"fma.{mode}.f32 {{0}}, {{1}}, {{2}}, {{3}}", ("f32", "f32", "f32"), a, b, c)
    for x, y, z, value in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        assert value == rounded(exact, mode), f"{x} * {y} + {z}: {value}"


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_sums_and_products_round_as_told(name: str, mode: str) -> None:
    pairs = [pair for pair in itertools.product(singles().tolist(), repeat=2) if all(map(math.isfinite, pair))]
    a, b = zip(*pairs, strict=True)
    got = computed(f"{name}.{mode}.f32 {{0}}, {{1}}, {{2}}", ("f32", "f32"), a, b)
    for x, y, value in zip(a, b, got.tolist(), strict=True):
        exact = {"add": Fraction(x) + Fraction(y), "sub": Fraction(x) - Fraction(y), "mul": Fraction(x) * Fraction(y)}
        assert value == rounded(exact[name], mode), f"{x} {name} {y}: {value}"


def test_quotients_and_roots_are_the_nearest() -> None:
    values = [value for value in singles(20).tolist() if math.isfinite(value) and value != 0]
    a, b = zip(*itertools.product(values, repeat=2), strict=True)
    got = computed("div.rn.f32 {0}, {1}, {2}", ("f32", "f32"), a, b)
    assert got.tolist() == [rounded(Fraction(x) / Fraction(y), "rn") for x, y in zip(a, b, strict=True)]
    roots = computed("sqrt.rn.f32 {0}, {1}", ("f32",), np.abs(values))
    for value, root in zip(np.abs(values).tolist(), roots, strict=True):
        below, above = (float(np.nextafter(root, np.float32(end))) for end in (-np.inf, np.inf))
        middles = [(Fraction(float(root)) + Fraction(neighbour)) / 2 for neighbour in (below, above)]
        assert middles[0] ** 2 <= Fraction(value) <= middles[1] ** 2


def test_every_nan_that_is_computed_is_the_hardware_s() -> None:
    got = computed("add.f32 {0}, {1}, {2}", ("f32", "f32"), [math.inf, math.nan, -math.nan], [-math.inf, 1, 1])
    assert got.view(np.uint32).tolist() == [0x7FFFFFFF] * 3


def test_extremes_prefer_numbers_and_order_zeros() -> None:
    a, b = zip(*itertools.product([1.0, -0.0, 0.0, math.nan, -math.inf], repeat=2), strict=True)
    pairs = list(zip(a, b, strict=True))

    def extreme(pick: Callable[..., float], x: float, y: float) -> float:
        numbers = [value for value in (x, y) if not math.isnan(value)]
        return pick(numbers, key=lambda value: (value, math.copysign(1, value))) if numbers else math.nan

    for name, pick in (("min", min), ("max", max)):
        got = computed(f"{name}.f32 {{0}}, {{1}}, {{2}}", ("f32", "f32"), a, b)
        expected = np.array([extreme(pick, *pair) for pair in pairs], np.float32)
        assert bits(got).tolist() == bits(expected).tolist()


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "num", "nan"])
def test_comparisons_of_floats(name: str) -> None:
    a, b = zip(*itertools.product([1.0, -0.0, 0.0, 2.0, math.nan, -math.inf], repeat=2), strict=True)
    x, y = np.array(a, np.float32), np.array(b, np.float32)
    unordered = np.isnan(x) | np.isnan(y)
    plain = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y,
             "num": ~unordered, "nan": unordered}[name]  # fmt: skip
    tests = [(name, plain & ~unordered if name == "ne" else plain)]
    tests += [] if name in {"num", "nan"} else [(f"{name}u", plain | unordered)]
    for each, expected in tests:
        got = computed(
            f"setp.{each}.f32 %p0, {{1}}, {{2}}; selp.u32 {{0}}, 1, 0, %p0", ("f32", "f32"), a, b, result="u32"
        )
        assert got.tolist() == expected.astype(int).tolist(), each


def test_comparisons_of_integers_combine_and_split() -> None:
    a, b = zip(*itertools.product(integers("s32", 2), repeat=2), strict=True)
    for name, meaning in {"lt": int.__lt__, "ge": int.__ge__, "ne": int.__ne__}.items():
        text = f"setp.{name}.s32 %p1|%p2, {{1}}, {{2}}; setp.gt.and.s32 %p3, {{1}}, 0, %p2; "
        text += "selp.u32 %r20, 1, 0, %p1; selp.u32 {0}, 2, 0, %p3; or.b32 {0}, {0}, %r20"
        expected = [meaning(x, y) + 2 * (not meaning(x, y) and x > 0) for x, y in zip(a, b, strict=True)]
        assert computed(text, ("s32", "s32"), a, b, result="u32").tolist() == expected
    unsigned = computed("setp.lo.u32 %p1, {1}, {2}; selp.u32 {0}, 1, 0, %p1", ("u32", "u32"), [1, 2**31], [2**31, 1])
    assert unsigned.tolist() == [1, 0]


CONVERSIONS: dict[str, tuple[str, str, Callable[[Array], Array]]] = {
    "cvt.f32.f16": ("f16", "f32", lambda a: a.astype(np.float32)),
    "cvt.rn.f16.f32": ("f32", "f16", lambda a: a.astype(np.float16)),
    "cvt.rn.f32.s64": ("s64", "f32", lambda a: np.array([rounded(Fraction(int(v)), "rn") for v in a], np.float32)),
    "cvt.rn.f32.u64": ("u64", "f32", lambda a: np.array([rounded(Fraction(int(v)), "rn") for v in a], np.float32)),
    "cvt.rn.f32.s32": ("s32", "f32", lambda a: np.array([rounded(Fraction(int(v)), "rn") for v in a], np.float32)),
    "cvt.sat.f32.f32": ("f32", "f32", lambda a: np.where(a > 0, np.minimum(a, 1), 0).astype(np.float32)),
    "cvt.rmi.f32.f32": ("f32", "f32", np.floor),
    "cvt.rni.f32.f32": ("f32", "f32", np.rint),
    "cvt.f64.f32": ("f32", "f64", lambda a: a.astype(np.float64)),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions(name: str) -> None:
    kind, result, meaning = CONVERSIONS[name]
    if kind == "f16":
        values: Any = np.arange(2**16, dtype=np.uint16).view(np.float16)[::7]
    else:
        values = integers(kind, 50) if kind[0] in "su" else singles(200)
    with np.errstate(all="ignore"):
        expected = meaning(np.array(values, DTYPES[kind]))
        got = computed(f"{name} {{0}}, {{1}}", (kind,), values, result=result)
    assert bits(got).tolist() == bits(expected).tolist()


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_floats_become_integers_clamped(mode: str, kind: str) -> None:
    values = np.array([*singles(30), 2.5, -2.5, 3e9, -3e9, 1e19, 2e19, -1e19], np.float32)
    limits = np.iinfo(DTYPES[kind])
    whole = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]

    def meaning(value: float) -> int:
        if math.isnan(value):
            return 0
        if math.isinf(value):
            return int(limits.max if value > 0 else limits.min)
        return int(min(max(whole(value), limits.min), limits.max))

    got = computed(f"cvt.{mode}.{kind}.f32 {{0}}, {{1}}", ("f32",), values, result=kind)
    assert got.tolist() == [meaning(value) for value in values.tolist()]


def test_halves_of_bfloat16_are_moved_and_rounded() -> None:
    halves = np.arange(2**16, dtype=np.uint16)[::13]
    wide = computed("mov.b32 {0}, {{0, {1}}}", ("b16",), halves, result="b32")
    assert wide.tolist() == (halves.astype(np.uint32) << 16).tolist()
    values = singles(300)
    got = computed("cvt.rn.bf16.f32 {0}, {1}", ("f32",), values, result="b16").view(ml_dtypes.bfloat16)
    assert bits(got.astype(np.float32)).tolist() == bits(values.astype(ml_dtypes.bfloat16).astype(np.float32)).tolist()


APPROXIMATE: dict[str, tuple[Callable[[Array], Array], float]] = {
    "ex2.approx.ftz.f32": (np.exp2, 2.0**-22),
    "rcp.approx.ftz.f32": (np.reciprocal, 2.0**-23),
    "sqrt.approx.f32": (np.sqrt, 2.0**-23),
    "tanh.approx.f32": (np.tanh, 2.0**-10.98),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations_keep_their_bound_and_no_more(name: str) -> None:
    function, bound = APPROXIMATE[name]
    values = rng(name).uniform(0.25, 20, 4000).astype(np.float32)
    got = computed(f"{name} {{0}}, {{1}}", ("f32",), values).astype(np.float64)
    off = np.abs(got / function(values.astype(np.float64)) - 1)
    assert off.max() <= bound
    assert off.max() > 0.8 * bound - 2.0**-24  # as wrong as the manual allows
    again = computed(f"{name} {{0}}, {{1}}", ("f32",), values[::-1])[::-1]
    assert again.tolist() == got.tolist()
