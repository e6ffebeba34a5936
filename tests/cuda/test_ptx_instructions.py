"""Holds the PTX interpreter's integers to the meaning of PTX, against Python's; the parser, and refusals by name.

Operands are ends, powers of two and their neighbours, and random ones; pairs and triples of a few dozen.
Not covered: floats (test_ptx_floats.py); memory, races, barriers and warps (test_ptx_checks.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from cuda.ptx.faults import Fault
from cuda.ptx.launch import Device
from cuda.ptx.parser import parse
from cuda.ptx.registers import DTYPES
from cuda.written_ptx import computed, integers, kernel, launch
from tests.support.patterns import rng


def wrapped(value: int, kind: str) -> int:
    width = 8 * DTYPES[kind].itemsize
    value &= (1 << width) - 1
    return value - (1 << width) if kind[0] == "s" and value >> (width - 1) else value


def unsigned(value: int, width: int) -> int:
    return value & ((1 << width) - 1)


def field(a: int, position: int, length: int, width: int, signed: bool) -> int:
    """bfe, as the manual has it, bit by bit."""
    position, length = position & 255, length & 255
    sign_place = min(position + length - 1, width - 1)
    sign = signed and length > 0 and bool(a >> sign_place & 1)
    result = 0
    for place in range(width):
        inside = place < length and position + place < width
        result |= (a >> (position + place) & 1 if inside else int(sign)) << place
    return result


def inserted(a: int, b: int, position: int, length: int, width: int) -> int:
    """bfi, bit by bit."""
    result = b
    for place in range(length & 255):
        at = (position & 255) + place
        if at < width:
            result = result & ~(1 << at) | (a >> place & 1) << at
    return result


def permuted(a: int, b: int, selector: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    chosen = [selector >> 4 * place & 15 for place in range(4)]
    made = [(255 if source[c & 7] & 128 else 0) if c & 8 else source[c & 7] for c in chosen]
    return int.from_bytes(bytes(made), "little")


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


TWO: dict[str, tuple[tuple[str, str], str, Callable[[int, int], int]]] = {
    # kinds of the operands, kind of the result, meaning
    "add.s32": (("s32", "s32"), "s32", lambda a, b: a + b),
    "sub.u64": (("u64", "u64"), "u64", lambda a, b: a - b),
    "mul.lo.s32": (("s32", "s32"), "s32", lambda a, b: a * b),
    "mul.hi.s32": (("s32", "s32"), "s32", lambda a, b: a * b >> 32),
    "mul.hi.u32": (("u32", "u32"), "u32", lambda a, b: a * b >> 32),
    "mul.hi.s64": (("s64", "s64"), "s64", lambda a, b: a * b >> 64),
    "mul.hi.u64": (("u64", "u64"), "u64", lambda a, b: a * b >> 64),
    "mul.wide.s16": (("s16", "s16"), "s32", lambda a, b: a * b),
    "mul.wide.u32": (("u32", "u32"), "u64", lambda a, b: a * b),
    "mul.wide.s32": (("s32", "s32"), "s64", lambda a, b: a * b),
    "min.s32": (("s32", "s32"), "s32", min),
    "max.u64": (("u64", "u64"), "u64", max),
    "and.b32": (("b32", "b32"), "b32", lambda a, b: a & b),
    "xor.b64": (("b64", "b64"), "b64", lambda a, b: a ^ b),
    "shl.b32": (("b32", "u32"), "b32", lambda a, n: a << min(n, 64)),
    "shl.b64": (("b64", "u32"), "b64", lambda a, n: a << min(n, 64)),
    "shr.u32": (("u32", "u32"), "u32", lambda a, n: a >> min(n, 64)),
    "shr.s32": (("s32", "u32"), "s32", lambda a, n: a >> min(n, 64)),
    "shr.s64": (("s64", "u32"), "s64", lambda a, n: a >> min(n, 64)),
}
THREE: dict[str, tuple[tuple[str, str, str], str, Callable[[int, int, int], int]]] = {
    "mad.lo.s32": (("s32", "s32", "s32"), "s32", lambda a, b, c: a * b + c),
    "mad.hi.u32": (("u32", "u32", "u32"), "u32", lambda a, b, c: (a * b >> 32) + c),
    "mad.wide.s32": (("s32", "s32", "s64"), "s64", lambda a, b, c: a * b + c),
    "mad.lo.u64": (("u64", "u64", "u64"), "u64", lambda a, b, c: a * b + c),
    "sad.s32": (("s32", "s32", "u32"), "u32", lambda a, b, c: abs(a - b) + c),
    "bfe.u32": (("u32", "u32", "u32"), "u32", lambda a, p, n: field(a, p, n, 32, False)),
    "bfe.s32": (("s32", "u32", "u32"), "s32", lambda a, p, n: field(a, p, n, 32, True)),
    "bfe.s64": (("s64", "u32", "u32"), "s64", lambda a, p, n: field(a, p, n, 64, True)),
    "bfe.u64": (("u64", "u32", "u32"), "u64", lambda a, p, n: field(a, p, n, 64, False)),
    "prmt.b32": (("b32", "b32", "b32"), "b32", permuted),
    "shf.l.wrap.b32": (("b32", "b32", "u32"), "b32", lambda a, b, n: (b << 32 | a) << (n & 31) >> 32),
    "shf.r.wrap.b32": (("b32", "b32", "u32"), "b32", lambda a, b, n: (b << 32 | a) >> (n & 31)),
    "shf.l.clamp.b32": (("b32", "b32", "u32"), "b32", lambda a, b, n: (b << 32 | a) << min(n, 32) >> 32),
    "shf.r.clamp.b32": (("b32", "b32", "u32"), "b32", lambda a, b, n: (b << 32 | a) >> min(n, 32)),
    "slct.u32.s32": (("u32", "u32", "s32"), "u32", lambda a, b, c: a if c >= 0 else b),
}
ONE: dict[str, tuple[str, str, Callable[[int], int]]] = {
    "neg.s32": ("s32", "s32", lambda a: -a),
    "abs.s64": ("s64", "s64", abs),
    "not.b32": ("b32", "b32", lambda a: ~a),
    "cnot.b32": ("b32", "b32", lambda a: int(a == 0)),
    "popc.b32": ("b32", "u32", int.bit_count),
    "popc.b64": ("b64", "u32", int.bit_count),
    "clz.b32": ("b32", "u32", lambda a: 32 - a.bit_length()),
    "clz.b64": ("b64", "u32", lambda a: 64 - a.bit_length()),
    "brev.b32": ("b32", "b32", lambda a: int(f"{a:032b}"[::-1], 2)),
    "brev.b64": ("b64", "b64", lambda a: int(f"{a:064b}"[::-1], 2)),
    "bfind.u32": ("u32", "s32", lambda a: a.bit_length() - 1),
    "bfind.s32": ("s32", "s32", lambda a: (a if a >= 0 else ~a).bit_length() - 1),
    "cvt.u16.u32": ("u32", "u16", lambda a: a),
    "cvt.s64.s32": ("s32", "s64", lambda a: a),
    "cvt.u64.u32": ("u32", "u64", lambda a: a),
    "cvt.u32.u64": ("u64", "u32", lambda a: a),
    "cvt.sat.u8.s32": ("s32", "u16", lambda a: min(max(a, 0), 255)),
}


def assert_integers(name: str, kinds: tuple[str, ...], result: str, meaning: Callable[..., int], most: int) -> None:
    choices = [integers(kind, 4) for kind in kinds]
    operands = list(itertools.product(*choices))
    operands = [operands[index] for index in rng(name).permutation(len(operands))[:most]]
    places = ", ".join(f"{{{index}}}" for index in range(len(kinds) + 1))
    got = computed(f"{name} {places}", kinds, *zip(*operands, strict=True), result=result)
    expected = [wrapped(meaning(*each), result) for each in operands]
    wrong = [(each, int(g), e) for each, g, e in zip(operands, got, expected, strict=True) if int(g) != e]
    assert not wrong, f"{len(wrong)} wrong, first {wrong[0]} (operands, got, expected)"


@pytest.mark.parametrize("name", ONE)
def test_integers_of_one_operand(name: str) -> None:
    kind, result, meaning = ONE[name]
    assert_integers(name, (kind,), result, meaning, 200)


@pytest.mark.parametrize("name", TWO)
def test_integers_of_two_operands(name: str) -> None:
    assert_integers(name, *TWO[name], 1000)


@pytest.mark.parametrize("name", THREE)
def test_integers_of_three_operands(name: str) -> None:
    assert_integers(name, *THREE[name], 3000)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_division_rounds_toward_zero(kind: str) -> None:
    pairs = [(a, b) for a in integers(kind, 3) for b in integers(kind, 3) if b]
    a, b = zip(*pairs, strict=True)
    quotients = [wrapped(toward_zero(x, y), kind) for x, y in pairs]
    assert computed(f"div.{kind} {{0}}, {{1}}, {{2}}", (kind, kind), a, b).tolist() == quotients
    rests = [wrapped(x - toward_zero(x, y) * y, kind) for x, y in pairs]
    assert computed(f"rem.{kind} {{0}}, {{1}}, {{2}}", (kind, kind), a, b).tolist() == rests


def test_division_by_zero_is_a_fault() -> None:
    with pytest.raises(Fault, match="divides by zero"):
        computed("div.s32 {0}, {1}, {2}", ("s32", "s32"), [1, 2], [1, 0])


@pytest.mark.parametrize("table", [0x00, 0xE8, 0x96, 0xCA, 0xFF])
def test_lop3_follows_its_table(table: int) -> None:
    operands = rng(table).integers(0, 2**32, (3, 64), dtype=np.uint32)
    got = computed(f"lop3.b32 {{0}}, {{1}}, {{2}}, {{3}}, {table}", ("b32", "b32", "b32"), *operands)
    rows = (operands[0][:, None] >> np.arange(32) & 1) * 4 + (operands[1][:, None] >> np.arange(32) & 1) * 2
    rows = rows + (operands[2][:, None] >> np.arange(32) & 1)
    assert got.tolist() == ((table >> rows & 1) << np.arange(32)).sum(axis=1).tolist()


def test_bfi_inserts_bits() -> None:
    random = rng("bfi")
    a, b = random.integers(0, 2**32, (2, 500), dtype=np.uint32)
    position, length = random.integers(0, 45, (2, 500))
    got = computed("bfi.b32 {0}, {1}, {2}, {3}, {4}", ("b32", "b32", "u32", "u32"), a, b, position, length)
    whole = zip(a.tolist(), b.tolist(), position.tolist(), length.tolist(), strict=True)
    assert got.tolist() == [inserted(*each, 32) for each in whole]


def test_an_unknown_instruction_is_refused_by_name() -> None:
    for instruction, name in (
        ("dp4a.s32.s32 %r1, 1, 2, 3", "dp4a.s32.s32"),
        ("add.cc.u32 %r1, 1, 2", "add.cc.u32"),
        ("fma.rn.f64 %d1, %d1, %d1, %d1", "fma.rn.f64"),
        ("activemask.b32 %r1", "activemask"),
        ("mov.u32 %r1, %clock", "%clock"),
        ("bar.sync 1", "bar.sync 1"),
    ):
        with pytest.raises(Fault, match=name.replace(".", r"\.")) as caught:
            launch(kernel(f"    {instruction};"))
        assert caught.value.checker == "unsupported"


def test_the_parser_reads_scopes_guards_and_variables() -> None:
    body = """
    .shared .align 16 .b8 tile[64];
    mov.u32 %r1, 5;   // comment; with semicolon
    { .reg .b32 %r1; mov.u32 %r1, 7; }
    setp.eq.u32 %p1, %r1, 5;
L: @!%p1 bra L;
    """
    module = parse(kernel(body, ".param .align 8 .b8 p[24]", ".const .align 4 .b8 c[4] = {1, 2, 3, 4};"))
    found = module.kernels["k"]
    assert [parameter.size for parameter in found.parameters] == [24]
    assert [(each.name, each.size, each.align) for each in found.variables] == [("tile", 64, 16)]
    assert [(each.name, each.content) for each in module.variables] == [("c", b"\1\2\3\4")]
    assert found.labels == {"L": 3}
    assert found.code[0].operands[0] != found.code[1].operands[0]
    assert found.code[3].guard is not None
    assert found.code[3].guard.negated
    launch(kernel(body.replace("@!%p1 bra L;", "@!%p1 bra L; ")))


def test_a_device_counts_what_was_reached() -> None:
    device = Device()
    launch(kernel("    mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 100; @%p1 bra E; mov.u32 %r1, 0; E:"), device=device)
    assert device.coverage() == {"k": (4, 5)}
    assert "mov.u32 %r1, 0" in device.unreached("k")[0]
