"""Arithmetic on float32 and float64, exact in the last bit; the approximate functions within what PTX promises of them.

A result that is not a number is the hardware's one: 0x7fffffff. An approximate function gives the true value moved by
an error inside its documented bound, drawn from the bits of its argument: what holds here holds for any hardware that
keeps the bounds, and what needs better than them fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..machine import Machine, Step
from ..program import Instruction
from ..registers import DTYPES
from .common import Array, Builder, elementwise, only

FLOAT32_TINY = 2.0**-126
APPROXIMATE: dict[str, tuple[Callable[..., Array], float]] = {  # the function and its relative error (PTX ISA 9.0)
    "ex2": (np.exp2, 2.0**-22),
    "lg2": (np.log2, 2.0**-22),  # absolute where the argument lies in (0.5, 2)
    "rcp": (lambda x: 1 / x, 2.0**-23),
    "sqrt": (np.sqrt, 2.0**-23),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2.0**-22.9),
    "tanh": (np.tanh, 2.0**-10.987),
    "sin": (np.sin, 2.0**-20.5),
    "cos": (np.cos, 2.0**-20.5),
    "div": (lambda x, y: x / y, 2.0**-22),
}
ROUNDINGS = {"rn", "rz", "rm", "rp"}


def canonical(value: Array) -> Array:
    """The same with the hardware's NaN for every NaN."""
    wrong = np.isnan(value)
    if wrong.any():
        bits = {4: np.uint32(0x7FFF_FFFF), 8: np.uint64(0xFFF8_0000_0000_0000)}[value.dtype.itemsize]
        value = np.where(wrong, np.array([bits]).view(value.dtype), value)
    return value


def flushed(value: Array) -> Array:
    """Subnormals as zeros of their sign: what .ftz does to operands and results."""
    tiny = np.abs(value) < np.finfo(value.dtype).tiny
    return np.where(tiny, np.copysign(value.dtype.type(0), value), value)


def saturated(value: Array) -> Array:
    """Clamped to [0, 1], NaN to 0: what .sat does."""
    return np.where(value > 0, np.minimum(value, value.dtype.type(1)), value.dtype.type(0))


def rounded(value: Array, mode: str) -> Array:
    """float64 to float32 in one of the four roundings."""
    near = value.astype(np.float32)
    if mode == "rn":
        return near
    low, high = np.float32(-np.inf), np.float32(np.inf)
    back = near.astype(np.float64)
    down = (back > value) & ((mode == "rm") | ((mode == "rz") & (value > 0)))
    up = (back < value) & ((mode == "rp") | ((mode == "rz") & (value < 0)))
    return np.where(down, np.nextafter(near, low), np.where(up, np.nextafter(near, high), near))


def to_odd(total: Array, error: Array) -> Array:
    """A rounded float64 sum and what it lost, as the neighbour with an odd last bit if it lost anything.

    Rounded to float32 after that, in any mode, it gives what the exact sum gives: float64 has more than two bits more.
    """
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)  # the exact sum lies further from zero
    return np.where(inexact, bits + np.where(away, 1, -1), bits).view(np.float64)


def exact_sum(a: Array, b: Array) -> Array:
    """The sum of two float64, rounded to odd (Knuth's two-sum finds what is lost)."""
    total = a + b
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    return to_odd(total, np.where(np.isfinite(total), error, 0))


def fused(a: Array, b: Array, c: Array, mode: str) -> Array:
    """a * b + c of float32, rounded once: the product is exact in float64."""
    return rounded(exact_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)), mode)


def directed(function: Callable[..., Array], mode: str) -> Callable[..., Array]:
    """A sum or product of float32 in a rounding other than to nearest."""

    def compute(a: Array, b: Array) -> Array:
        wide = a.astype(np.float64), b.astype(np.float64)
        return rounded(exact_sum(*wide) if function is np.add else function(*wide), mode)

    return compute


def moved(value: Array, bound: float, *arguments: Array) -> Array:
    """The value with a relative error below `bound` that depends on the arguments' bits alone."""
    mixed = np.zeros(1, np.uint32)
    for argument in arguments:
        mixed = (mixed ^ argument.view(np.uint32)) * np.uint32(2654435761)
        mixed = mixed ^ mixed >> np.uint32(15)
    share = (mixed * np.uint32(2246822519) >> np.uint32(8)).astype(np.float64) * 2.0**-23 - 1
    return value * (1 + (bound - 2.0**-24) * share)  # half a unit is left for the rounding to float32


def approximate(name: str) -> Callable[..., Array]:
    function, bound = APPROXIMATE[name]

    def compute(*arguments: Array) -> Array:
        wide = [argument.astype(np.float64) for argument in arguments]
        value = np.asarray(function(*wide))
        exact = (value == 0) | ((name == "ex2") & (np.abs(wide[0]) < FLOAT32_TINY))  # the table of special cases
        near_one = (name == "lg2") & (np.abs(value) < 1)
        with_error = np.where(near_one, value + moved(np.ones_like(value), bound, *arguments) - 1, 0)
        with_error = np.where(near_one, with_error, moved(value, bound, *arguments))
        return np.where(exact | ~np.isfinite(value), value, with_error).astype(np.float32)

    return compute


def smaller(a: Array, b: Array) -> Array:
    """The lesser number; a NaN loses against a number, -0 is less than +0."""
    least = np.fmin(a, b)
    return np.where((a == 0) & (b == 0) & (np.signbit(a) | np.signbit(b)), a.dtype.type(-0.0), least)


def larger(a: Array, b: Array) -> Array:
    greatest = np.fmax(a, b)
    return np.where((a == 0) & (b == 0) & ~(np.signbit(a) & np.signbit(b)), a.dtype.type(0.0), greatest)


def with_nan(function: Callable[..., Array]) -> Callable[..., Array]:
    """A minimum or maximum in which a NaN wins."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), function(a, b))


def toggled_sign(a: Array) -> Array:
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    return (a.view(unsigned) ^ unsigned.type(1 << (8 * a.dtype.itemsize - 1))).view(a.dtype)


def cleared_sign(a: Array) -> Array:
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    return (a.view(unsigned) & unsigned.type((1 << (8 * a.dtype.itemsize - 1)) - 1)).view(a.dtype)


def exact_function(opcode: str, kind: str, mode: str) -> Callable[..., Any] | None:
    """The correctly rounded function of an opcode, or None."""
    plain: dict[str, Callable[..., Any]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    if opcode in plain:
        if mode == "rn":
            return plain[opcode]
        if kind == "f32":
            function = plain[opcode]
            return (lambda a, b: directed(np.add, mode)(a, -b)) if opcode == "sub" else directed(function, mode)
    if opcode in {"fma", "mad"} and kind == "f32":
        return lambda a, b, c: fused(a, b, c, mode)
    if mode == "rn":
        return {"div": np.divide, "rcp": lambda a: a.dtype.type(1) / a, "sqrt": np.sqrt}.get(opcode)
    return None


def arithmetic(machine: Machine, instruction: Instruction) -> Step:
    """Everything with a rounding or an approximation."""
    kind = only(machine, instruction, ROUNDINGS | {"ftz", "sat", "approx", "full"})
    modifiers = set(instruction.modifiers)
    opcode = instruction.opcode
    if kind not in {"f32", "f64"}:
        machine.unsupported(f"the type of {'.'.join(instruction.name)}")
    if modifiers & {"approx", "full"}:
        function = approximate(opcode) if kind == "f32" else None
    else:
        function = exact_function(opcode, kind, next(iter(modifiers & ROUNDINGS), "rn"))
    if function is None:
        machine.unsupported(f"the rounding of {'.'.join(instruction.name)}")
    return finished(machine, instruction, kind, function)


def finished(machine: Machine, instruction: Instruction, kind: str, function: Callable[..., Any]) -> Step:
    """The function with what .ftz and .sat do before and after it."""
    flush, saturate = "ftz" in instruction.modifiers, "sat" in instruction.modifiers

    def compute(*arguments: Array) -> Array:
        value = canonical(function(*(map(flushed, arguments) if flush else arguments)))
        value = saturated(value) if saturate else value
        return flushed(value) if flush else value

    return elementwise(machine, instruction, kind, compute)


def extreme(machine: Machine, instruction: Instruction) -> Step:
    """min and max."""
    kind = only(machine, instruction, {"ftz", "NaN"})
    function = smaller if instruction.opcode == "min" else larger
    return finished(machine, instruction, kind, with_nan(function) if "NaN" in instruction.modifiers else function)


def signs(machine: Machine, instruction: Instruction) -> Step:
    """neg, abs and copysign, which touch one bit."""
    kind = only(machine, instruction, {"ftz"})
    if "ftz" in instruction.modifiers or DTYPES[kind].kind != "f":
        machine.unsupported(f"the instruction {'.'.join(instruction.name)}")
    functions = {"neg": toggled_sign, "abs": cleared_sign, "copysign": lambda a, b: np.copysign(b, a)}
    return elementwise(machine, instruction, kind, functions[instruction.opcode])


def test(machine: Machine, instruction: Instruction) -> Step:
    """testp: what class a float is of."""
    kind = only(machine, instruction, {"finite", "infinite", "number", "notanumber", "normal", "subnormal"})
    tiny = np.finfo(DTYPES[kind]).tiny
    functions: dict[str, Callable[[Array], Array]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    return elementwise(machine, instruction, kind, functions[instruction.modifiers[0]])


FLOATS: dict[str, Builder] = dict.fromkeys(("add", "sub", "mul", "div", "fma", "mad", *APPROXIMATE), arithmetic)
FLOATS |= {"min": extreme, "max": extreme, "neg": signs, "abs": signs, "copysign": signs, "testp": test}
