"""The parsed form of PTX: modules, kernels, instructions and operands, all plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

SIZES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1} | {
    f"{kind}{bits}": bits // 8 for kind in ("b", "u", "s", "f") for bits in (16, 32, 64)
}
SIZES |= {"bf16": 2, "f16x2": 4, "bf16x2": 4, "b128": 16}


@dataclass(frozen=True)
class Register:
    """A virtual or special register; `negated` only of predicates."""

    name: str
    negated: bool = False


@dataclass(frozen=True)
class Number:
    """A literal: an integer, or the bits of a float and their width."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True)
class Symbol:
    """The address of a variable, or a label."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    """What stands in brackets: a register, symbol or number, and an offset in bytes."""

    base: Register | Symbol | Number
    offset: int = 0


@dataclass(frozen=True)
class Pack:
    """Operands in braces: {a, b, c, d}; None for a part that is thrown away."""

    parts: tuple[Operand | None, ...]


@dataclass(frozen=True)
class Pair:
    """Two destinations: a|b."""

    first: Register | None
    second: Register | None


Operand: TypeAlias = "Register | Number | Symbol | Address | Pack | Pair"


@dataclass(frozen=True)
class Instruction:
    """One instruction; `name` with its modifiers, split at the dots."""

    name: tuple[str, ...]
    operands: tuple[Operand | None, ...]
    guard: Register | None
    line: int
    source: str  # file:line of the CUDA source, if the PTX tells
    text: str

    @property
    def opcode(self) -> str:
        return self.name[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return self.name[1:]


@dataclass(frozen=True)
class Variable:
    """Memory that a module or kernel declares. `size` 0: given at the launch."""

    name: str
    space: str
    size: int
    align: int
    content: bytes = b""


@dataclass
class Kernel:
    """An .entry: what it is given, what it declares, what it does."""

    name: str
    parameters: list[Variable]
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    max_threads: int = 1024  # of a block


@dataclass
class Module:
    """A PTX file."""

    target: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
