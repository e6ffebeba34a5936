"""Integer arithmetic, comparisons' raw material and bits: add to prmt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..machine import Machine, Step
from ..program import Instruction
from ..registers import DTYPES, Mask
from .common import Array, Builder, computed, elementwise, only, signed

WIDER = {2: 4, 4: 8}


def bits_of(dtype: np.dtype[Any]) -> int:
    return 8 * dtype.itemsize


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers of one type."""
    size = a.dtype.itemsize
    if size < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * size}")
        return (a.astype(wide) * b.astype(wide) >> wide.type(8 * size)).astype(a.dtype)
    low = np.uint64(0xFFFF_FFFF)
    half = np.uint64(32)
    ua, ub = a.view(np.uint64), b.view(np.uint64)
    a0, a1, b0, b1 = ua & low, ua >> half, ub & low, ub >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    upper = a1 * b1 + (middle >> half) + ((a0 * b1 + (middle & low)) >> half)
    if signed(a.dtype):  # the signed product differs by what the signs add
        upper = upper - np.where(a < 0, ub, 0) - np.where(b < 0, ua, 0)
    return upper.astype(np.uint64).view(a.dtype)


def product(machine: Machine, instruction: Instruction) -> Step:
    """mul and mad, of which the sum's type is that of the product."""
    kind = only(machine, instruction, {"lo", "hi", "wide"})
    part = instruction.modifiers[0]
    dtype = DTYPES[kind]
    target, *operands = instruction.operands
    result = f"{kind[0]}{2 * bits_of(dtype)}" if part == "wide" else kind
    sources = [machine.source(operand, kind) for operand in operands[:2]]
    sources += [machine.source(operand, result) for operand in operands[2:]]
    wide = DTYPES[result]

    multiply: dict[str, Callable[[Array, Array], Array]] = {
        "lo": np.multiply,
        "hi": high_product,
        "wide": lambda a, b: a.astype(wide) * b.astype(wide),
    }

    def function(a: Array, b: Array, *c: Array) -> Array:
        value = multiply[part](a, b)
        return value + c[0] if c else value

    return computed(machine.target(target), sources, function)


def quotient(machine: Machine, instruction: Instruction) -> Step:
    """div and rem, which round toward zero; by zero is a fault, the hardware's answer is not specified."""
    kind = only(machine, instruction, set())
    divisor = machine.source(instruction.operands[2], kind)
    remainder = instruction.opcode == "rem"

    def function(a: Array, b: Array) -> Array:
        b = np.where(b == 0, b.dtype.type(1), b)
        if not signed(a.dtype):
            return a % b if remainder else a // b
        rest = np.fmod(a, b)
        return rest if remainder else (a - rest) // b

    inner = elementwise(machine, instruction, kind, function)

    def run(mask: Mask) -> None:
        zero = np.broadcast_to(divisor.read() == 0, machine.n_lanes)[machine.lanes(mask)]
        if zero.any():
            machine.fault("unsupported", "divides by zero", int(machine.lanes(mask)[zero.argmax()]))
        inner.run(mask)

    return Step(run)


def shift(machine: Machine, instruction: Instruction) -> Step:
    """shl and shr: amounts of the width or more leave zeros, or signs."""
    kind = only(machine, instruction, set())
    target, value, amount = instruction.operands
    width = bits_of(DTYPES[kind])
    left = instruction.opcode == "shl"

    def function(a: Array, count: Array) -> Array:
        clamped = np.minimum(count, width - 1).astype(a.dtype)
        moved = np.left_shift(a, clamped) if left else np.right_shift(a, clamped)
        return moved if signed(a.dtype) and not left else np.where(count >= width, a.dtype.type(0), moved)

    return computed(machine.target(target), [machine.source(value, kind), machine.source(amount, "u32")], function)


def funnel(machine: Machine, instruction: Instruction) -> Step:
    """shf: shifts the 64 bits b:a and keeps one half."""
    kind = only(machine, instruction, {"l", "r", "wrap", "clamp"})
    direction, mode = instruction.modifiers[:2]

    def function(a: Array, b: Array, count: Array) -> Array:
        amount = (count & np.uint32(31) if mode == "wrap" else np.minimum(count, np.uint32(32))).astype(np.uint64)
        both = b.astype(np.uint64) << np.uint64(32) | a
        moved = (both << amount) >> np.uint64(32) if direction == "l" else both >> amount
        if direction == "l":
            moved = np.where(amount == 32, a, moved)
        return moved.astype(np.uint32)

    return elementwise(machine, instruction, "u32" if kind == "b32" else kind, function)


def logic(table: int) -> Callable[[Array, Array, Array], Array]:
    """The function of three words whose truth table is the number, as lop3 has it."""

    def function(a: Array, b: Array, c: Array) -> Array:
        value = np.zeros_like(a & b & c)
        for row in range(8):
            if table >> row & 1:
                value = value | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
        return value

    return function


def lop3(machine: Machine, instruction: Instruction) -> Step:
    only(machine, instruction, set())
    target, a, b, c, table = instruction.operands
    sources = [machine.source(operand, "b32") for operand in (a, b, c)]
    return computed(machine.target(target), sources, logic(getattr(table, "value")))  # noqa: B009


def extract(machine: Machine, instruction: Instruction) -> Step:
    """bfe: `length` bits from `position`, sign-extended if signed."""
    kind = only(machine, instruction, set())
    target, value, position, length = instruction.operands
    width = bits_of(DTYPES[kind])
    unsigned = DTYPES[f"u{width}"]

    def function(a: Array, position: Array, length: Array) -> Array:
        start = np.minimum(position & np.uint32(255), width).astype(np.int64)
        count = np.minimum(length & np.uint32(255), width).astype(np.int64)
        end = np.minimum(start + count, width)
        bits = a.view(unsigned)
        clamped = np.minimum(start, width - 1).astype(unsigned)
        field = np.where(start >= width, unsigned.type(0), bits >> clamped)
        kept = np.minimum(end - start, width)
        mask = np.where(
            kept >= width, ~unsigned.type(0), (unsigned.type(1) << kept.astype(unsigned)) - unsigned.type(1)
        )
        field = field & mask
        if signed(a.dtype):
            sign_place = np.clip(end - 1, 0, width - 1).astype(unsigned)
            negative = ((bits >> sign_place) & unsigned.type(1)).astype(np.bool_) & (count > 0)
            field = np.where(negative, field | ~mask, field)
        return np.where(count == 0, unsigned.type(0), field).astype(unsigned).view(a.dtype)

    sources = [machine.source(value, kind), machine.source(position, "u32"), machine.source(length, "u32")]
    return computed(machine.target(target), sources, function)


def insert(machine: Machine, instruction: Instruction) -> Step:
    """bfi: the low `length` bits of a in place of those of b from `position`."""
    kind = only(machine, instruction, set())
    target, a, b, position, length = instruction.operands
    dtype = DTYPES[kind]
    width = bits_of(dtype)

    def function(a: Array, b: Array, position: Array, length: Array) -> Array:
        start = np.minimum(position & np.uint32(255), width)
        count = np.minimum(length & np.uint32(255), width - start)
        ones = ~dtype.type(0)
        low = np.where(count >= width, ones, (dtype.type(1) << count.astype(dtype)) - dtype.type(1)).astype(dtype)
        place = np.minimum(start, width - 1).astype(dtype)
        mask = np.where(count == 0, dtype.type(0), low << place)
        return (a << place & mask) | (b & ~mask)

    sources = [machine.source(a, kind), machine.source(b, kind)]
    sources += [machine.source(position, "u32"), machine.source(length, "u32")]
    return computed(machine.target(target), sources, function)


def count_ones(a: Array) -> Array:
    return np.bitwise_count(a).astype(np.uint32)


def leading_zeros(a: Array) -> Array:
    width = bits_of(a.dtype)
    smeared = a.copy()
    step = 1
    while step < width:
        smeared |= smeared >> a.dtype.type(step)
        step *= 2
    return (width - np.bitwise_count(smeared)).astype(np.uint32)


def highest_bit(a: Array) -> Array:
    """bfind: the place of the highest bit that differs from the sign, or all ones."""
    if signed(a.dtype):
        a = np.where(a < 0, ~a, a)
    bits = a.view(f"u{a.dtype.itemsize}")
    found = bits_of(bits.dtype) - 1 - leading_zeros(bits).astype(np.int64)
    return np.where(bits == 0, -1, found).astype(np.int32).view(np.uint32)


def reversed_bits(a: Array) -> Array:
    bits = np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").reshape(-1).view(a.dtype)


def to_word(function: Callable[[Array], Array]) -> Builder:
    """An operation of one operand whose result is 32 bits wide."""

    def build(machine: Machine, instruction: Instruction) -> Step:
        kind = only(machine, instruction, set())
        target, operand = instruction.operands
        return computed(machine.target(target), [machine.source(operand, kind)], function)

    return build


def permute(machine: Machine, instruction: Instruction) -> Step:
    """prmt in its general mode: each result byte is one of the eight of b:a, or its sign."""
    if instruction.modifiers != ("b32",):
        machine.unsupported(f"the mode of {'.'.join(instruction.name)}")

    def function(a: Array, b: Array, selector: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.zeros_like(both)
        for place in range(4):
            choice = (selector >> np.uint32(4 * place) & np.uint32(15)).astype(np.uint64)
            byte = both >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            sign = np.where(byte >= 128, np.uint64(255), np.uint64(0))
            result |= np.where(choice >= 8, sign, byte) << np.uint64(8 * place)
        return result.astype(np.uint32)

    return elementwise(machine, instruction, "u32", function)


def simple(function: Callable[..., Any]) -> Builder:
    def build(machine: Machine, instruction: Instruction) -> Step:
        return elementwise(machine, instruction, only(machine, instruction, set()), function)

    return build


INTEGERS: dict[str, Builder] = {
    "add": simple(np.add),
    "sub": simple(np.subtract),
    "min": simple(np.minimum),
    "max": simple(np.maximum),
    "neg": simple(np.negative),
    "abs": simple(np.abs),
    "sad": simple(lambda a, b, c: c + np.where(a < b, b - a, a - b)),
    "mul": product,
    "mad": product,
    "div": quotient,
    "rem": quotient,
    "and": simple(np.bitwise_and),
    "or": simple(np.bitwise_or),
    "xor": simple(np.bitwise_xor),
    "not": simple(np.invert),
    "cnot": simple(lambda a: (a == 0).astype(a.dtype)),
    "shl": shift,
    "shr": shift,
    "shf": funnel,
    "lop3": lop3,
    "bfe": extract,
    "bfi": insert,
    "brev": simple(reversed_bits),
    "popc": to_word(count_ones),
    "clz": to_word(lambda a: leading_zeros(a.view(f"u{a.dtype.itemsize}"))),
    "bfind": to_word(highest_bit),
    "prmt": permute,
}
