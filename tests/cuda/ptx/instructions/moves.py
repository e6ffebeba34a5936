"""Moves, selections, comparisons and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..machine import Machine, Source, Step
from ..memory import WINDOWS
from ..program import Instruction, Operand, Pair, Register
from ..registers import DTYPES, Mask, RegisterFile
from .common import Array, Builder, computed, only, parts, signed, widened
from .floats import canonical, flushed, rounded, saturated


def unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda a, b: ~unordered(a, b),
    "nan": unordered,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
ROUNDINGS = {"rn", "rz", "rm", "rp"}


def move(machine: Machine, instruction: Instruction) -> Step:
    """mov: one value, or several packed into one, or one taken apart."""
    kind = only(machine, instruction, set())
    target, source = instruction.operands
    if len(parts(target)) > 1:
        return unpack(machine, parts(target), machine.source(source, kind), kind)
    register = machine.target(target)
    if len(parts(source)) > 1:
        return pack(machine, register, parts(source), kind)
    return computed(register, [machine.source(source, kind)], lambda value: value)


def pack(machine: Machine, register: RegisterFile, operands: tuple[Operand | None, ...], kind: str) -> Step:
    """The operands one after another, the first in the lowest bits."""
    dtype = np.dtype(f"u{DTYPES[kind].itemsize}")
    width = 8 * dtype.itemsize // len(operands)
    sources = [machine.source(operand, f"b{width}") for operand in operands]

    def function(*values: Array) -> Array:
        packed = values[0].astype(dtype)
        for place, value in enumerate(values[1:], 1):
            packed = packed | value.astype(dtype) << dtype.type(width * place)
        return packed

    return computed(register, sources, function)


def unpack(machine: Machine, operands: tuple[Operand | None, ...], source: Source, kind: str) -> Step:
    dtype = np.dtype(f"u{DTYPES[kind].itemsize}")
    width = 8 * dtype.itemsize // len(operands)
    narrow = np.dtype(f"u{width // 8}")
    targets = [
        (machine.target(operand), width * place) for place, operand in enumerate(operands) if operand is not None
    ]

    def run(mask: Mask) -> None:
        value = source.read().view(dtype)
        for register, place in targets:
            register.write((value >> dtype.type(place)).astype(narrow), mask, source.registers)

    return Step(run)


def convert_address(machine: Machine, instruction: Instruction) -> Step:
    """cvta: between generic addresses and those of a space; a shared or local address is an offset in its window."""
    kind = only(machine, instruction, {"to", *WINDOWS, "shared::cta"})
    space = instruction.modifiers[-2].split("::")[0]
    window = np.uint64(WINDOWS[space])
    target, source = instruction.operands
    dtype = DTYPES[kind]
    if "to" in instruction.modifiers:
        return computed(machine.target(target), [machine.source(source, kind)], lambda a: (a - window).astype(dtype))
    return computed(machine.target(target), [machine.source(source, kind)], lambda a: (a + window).astype(dtype))


def select(machine: Machine, instruction: Instruction) -> Step:
    """selp: the value that is not chosen need not be known."""
    kind = only(machine, instruction, set())
    target, first, second, condition = instruction.operands
    register = machine.target(target)
    one, other, chosen = machine.source(first, kind), machine.source(second, kind), machine.source(condition, "pred")

    def run(mask: Mask) -> None:
        choice = chosen.read()
        value = np.where(choice, one.read(), other.read())
        sources = (*one.registers, *other.registers)
        if all(each.whole for each in sources):
            register.write(value, mask, chosen.registers)
            return
        known = np.where(choice, known_lanes(machine, one), known_lanes(machine, other))
        register.write(value, mask)
        register.define(mask, chosen.registers, known)

    return Step(run)


def known_lanes(machine: Machine, source: Source) -> Array:
    known = np.ones(machine.n_lanes, np.bool_)
    for register in source.registers:
        if not register.whole:
            known &= register.defined
    return known


def select_by_sign(machine: Machine, instruction: Instruction) -> Step:
    """slct: the first value where the third is at least 0."""
    kind, by = instruction.modifiers[-2:]
    target, first, second, third = instruction.operands
    sources = [machine.source(first, kind), machine.source(second, kind), machine.source(third, by)]
    return computed(machine.target(target), sources, lambda a, b, c: np.where(c >= 0, a, b))


def comparison(name: str, floating: bool) -> Callable[[Array, Array], Array] | None:
    """The comparison of a name; of floats, with u at its end, true for NaN too."""
    name = UNSIGNED_NAMES.get(name, name)
    if name in ORDERED:
        return ORDERED[name] if floating or name != "ne" else np.not_equal
    if floating and name.endswith("u") and name[:-1] in ORDERED:
        ordered = ORDERED[name[:-1]]
        return lambda a, b: ordered(a, b) | unordered(a, b)
    return None


def compare(machine: Machine, instruction: Instruction) -> Step:
    """setp and set: a comparison, perhaps combined with a predicate."""
    *names, kind = instruction.modifiers
    result = names.pop() if instruction.opcode == "set" else "pred"
    flush = "ftz" in names
    names = [name for name in names if name != "ftz"]
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(names[1]) if names[1:] else None
    test = comparison(names[0], DTYPES[kind].kind == "f")
    if test is None or len(names) > 1 + (combine is not None):
        machine.unsupported(f"the comparison of {'.'.join(instruction.name)}")
    target, first, second, *third = instruction.operands
    sources = [machine.source(operand, kind) for operand in (first, second)]
    sources += [machine.source(operand, "pred") for operand in third]
    true = {"pred": np.bool_(True), "f32": np.float32(1)}.get(result)
    true = DTYPES[result].type(-1 if signed(DTYPES[result]) else 2**32 - 1) if true is None else true

    def function(a: Array, b: Array, *c: Array) -> Array:
        holds = test(flushed(a), flushed(b)) if flush else test(a, b)
        holds = combine(holds, c[0]) if combine is not None and c else holds
        return holds if result == "pred" else np.where(holds, true, true.dtype.type(0))

    if not isinstance(target, Pair):
        return computed(machine.target(target), sources, function)
    if combine is not None:
        machine.unsupported("setp with two results and a combination")
    halves = [(target.first, function), (target.second, lambda a, b: ~function(a, b))]
    steps = [computed(machine.target(half), sources, each) for half, each in halves if half is not None]

    def run(mask: Mask) -> None:
        for step in steps:
            step.run(mask)

    return Step(run)


def to_float32(value: Array, kind: str) -> Array:
    """Any float type as float32; bfloat16 is its upper half."""
    if kind == "bf16":
        return (value.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return value.astype(np.float32)


def to_bfloat16(value: Array, mode: str) -> Array:
    bits = value.view(np.uint32)
    up = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) if mode == "rn" else np.uint32(0)
    result = (bits + up) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), result).astype(np.uint16)


def clamped_integer(value: Array, dtype: np.dtype[Any]) -> Array:
    """A float without a fraction as an integer: beyond the type's ends the end, NaN as 0."""
    limits = np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max)
    inside = np.where((value > low) & (value < high), value, 0).astype(dtype)
    result = np.where(value >= high, dtype.type(limits.max), np.where(value <= low, dtype.type(limits.min), inside))
    return np.where(np.isnan(value), dtype.type(0), result)


def convert(machine: Machine, instruction: Instruction) -> Step:
    """cvt between integers and floats of all widths."""
    *modifiers, to, kind = instruction.modifiers
    known = ROUNDINGS | set(TO_INTEGER) | {"ftz", "sat"}
    target, operand = instruction.operands
    if (
        set(modifiers) - known
        or kind not in DTYPES
        or to not in DTYPES
        or "f16x2" in {to, kind}
        or not isinstance(target, Register)
    ):
        machine.unsupported(f"the conversion {'.'.join(instruction.name)}")
    register = machine.target(target)
    function = conversion(set(modifiers), to, kind)
    if function is None:
        machine.unsupported(f"the rounding of {'.'.join(instruction.name)}")
    return computed(register, [machine.source(operand, kind)], lambda value: widened(function(value), register))


def conversion(modifiers: set[str], to: str, kind: str) -> Callable[[Array], Array] | None:
    """What a cvt does to a value, or None if it is not known."""
    dtype = DTYPES[to]
    floating = {"f16", "bf16", "f32", "f64"}
    whole = next((TO_INTEGER[name] for name in modifiers & set(TO_INTEGER)), None)
    mode = next(iter(modifiers & ROUNDINGS), "rn")
    if kind not in floating and to not in floating:
        if "sat" not in modifiers:
            return lambda value: value.astype(dtype)
        limits = np.iinfo(dtype)
        return lambda value: np.clip(value.astype(object), limits.min, limits.max).astype(dtype)
    if kind not in floating:
        return (lambda value: value.astype(dtype)) if mode == "rn" and to in {"f32", "f64"} else None
    if to not in floating:
        if whole is None:
            return None
        return lambda value: clamped_integer(whole(value if kind == "f64" else to_float32(value, kind)), dtype)
    return float_conversion(modifiers, to, kind, mode, whole)


def float_conversion(
    modifiers: set[str], to: str, kind: str, mode: str, whole: Callable[[Array], Array] | None
) -> Callable[[Array], Array] | None:
    if to == "f64" or (kind == "f64" and to != "f32") or (to in {"f16", "bf16"} and mode not in {"rn", "rz"}):
        return (lambda value: value.astype(np.float64)) if (kind, to) == ("f32", "f64") and whole is None else None
    if to == "f16" and mode != "rn":
        return None

    def function(value: Array) -> Array:
        single = rounded(value, mode) if kind == "f64" else to_float32(value, kind)
        single = flushed(single) if "ftz" in modifiers else single
        single = single if whole is None else whole(single)
        single = saturated(single) if "sat" in modifiers else canonical(single)
        if to == "f32":
            return single
        return single.astype(np.float16) if to == "f16" else to_bfloat16(single, mode)

    return function


MOVES: dict[str, Builder] = {
    "mov": move,
    "cvta": convert_address,
    "selp": select,
    "slct": select_by_sign,
    "setp": compare,
    "set": compare,
    "cvt": convert,
}
