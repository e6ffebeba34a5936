"""What every instruction means: a builder per opcode makes a step out of it, or the instruction is refused by name."""

from __future__ import annotations

from collections.abc import Callable

from ..machine import Machine, Step
from ..program import Instruction, Register
from ..registers import Mask
from .accesses import ACCESSES
from .common import Builder
from .control import CONTROL
from .floats import FLOATS
from .integers import INTEGERS
from .moves import MOVES

FLOAT_TYPES = {"f32", "f64", "f16", "f16x2", "bf16", "bf16x2"}


def builder(machine: Machine, instruction: Instruction) -> Builder:
    """Who knows the instruction. add and its like have two meanings, by their type; of predicates, logic alone."""
    opcode, kind = instruction.opcode, instruction.modifiers[-1:]
    families = [ACCESSES, CONTROL, MOVES, FLOATS if FLOAT_TYPES & set(kind) else INTEGERS]
    found = next((family[opcode] for family in families if opcode in family), None)
    if found is None:
        machine.unsupported(f"the instruction {'.'.join(instruction.name)}")
    return found


def decode(machine: Machine, index: int) -> Step:
    """The step of the kernel's instruction of that index, guarded and counted."""
    machine.current = index
    instruction = machine.kernel.code[index]
    step = builder(machine, instruction)(machine, instruction)
    if instruction.guard is not None:
        register = machine.target(Register(instruction.guard.name))
        step.guard = (register, instruction.guard.negated)
    if step.kind == "plain" and step.guard is not None:
        step.run = guarded(machine, step, index)
    return step


def guarded(machine: Machine, step: Step, index: int) -> Callable[[Mask], None]:
    """The step for the threads that its guard lets through."""
    run = step.run

    def run_some(mask: Mask) -> None:
        chosen = machine.let_through(step, mask)
        if chosen.any():
            machine.covered[index] = True
            run(chosen)

    return run_some
