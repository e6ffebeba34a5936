"""What the families of instructions share: a step that computes a register, and the modifiers that may be ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..machine import Machine, Source, Step
from ..program import Instruction, Operand
from ..registers import DTYPES, Mask, RegisterFile

Array: TypeAlias = npt.NDArray[Any]
Builder: TypeAlias = Callable[[Machine, Instruction], Step]


def signed(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "i"


def widened(value: Array, register: RegisterFile) -> Array:
    """The value as the register holds it: sign-extended if signed, zero-extended otherwise."""
    if value.dtype.itemsize == register.raw.itemsize:
        return value
    if value.dtype.itemsize > register.raw.itemsize:
        raise ValueError(f"a {value.dtype} does not fit register {register.name}")
    kind = "i" if signed(value.dtype) else "u"
    bits = value if value.dtype.kind in "iu" else value.view(f"u{value.dtype.itemsize}")
    return bits.astype(f"{kind}{register.raw.itemsize}")


def computed(target: RegisterFile, sources: Iterable[Source], function: Callable[..., Any]) -> Step:
    """A step that sets a register to a function of its sources."""
    reads = [source.read for source in sources]
    registers = tuple(register for source in sources for register in source.registers)
    if len(reads) == 2:
        first, second = reads

        def run(mask: Mask) -> None:
            target.write(function(first(), second()), mask, registers)
    else:

        def run(mask: Mask) -> None:
            target.write(function(*[read() for read in reads]), mask, registers)

    return Step(run)


def elementwise(machine: Machine, instruction: Instruction, kind: str, function: Callable[..., Any]) -> Step:
    """A step whose operands, all of one type, are the function's arguments."""
    target, *operands = instruction.operands
    sources = [machine.source(operand, kind) for operand in operands]
    return computed(machine.target(target), sources, function)


def only(machine: Machine, instruction: Instruction, allowed: set[str]) -> str:
    """The type, which is the last modifier, once all others are known to be among `allowed`."""
    *modifiers, kind = instruction.modifiers
    unknown = set(modifiers) - allowed
    if unknown or kind not in DTYPES:
        machine.unsupported(f"the instruction {'.'.join(instruction.name)}")
    return kind


def parts(operand: Operand | None) -> tuple[Operand | None, ...]:
    """The operands in braces, or the one that stands alone."""
    inner = getattr(operand, "parts", None)
    return inner if inner is not None else (operand,)
