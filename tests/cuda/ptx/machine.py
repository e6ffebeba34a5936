"""Runs a kernel for a batch of blocks: one NumPy lane per thread, all in step, the least program counter first.

Threads that differ in their program counter wait for each other at the first place where their ways meet, as the
hardware's do where the compiler says so; nothing in a correct kernel may depend on it, and what does (shared memory
without a barrier) the race check finds. Blocks are padded to whole warps; the padding never lives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from .faults import Checker, Fault
from .places import Environment, Launch, Place, Shape, global_place, own_places, smallest_access
from .program import Instruction, Number, Operand, Register, Symbol
from .races import BLOCK_TICK, WARP, Threads
from .registers import DTYPES, Mask, RegisterFile

Array: TypeAlias = npt.NDArray[Any]

MOST_TURNS = 1_000_000  # branches taken and groups formed in a batch; no test of ours comes near
ALL_LANES = (1 << WARP) - 1


@dataclass
class Source:
    """An operand that is read: its values (one per thread, or one for all) and the registers they come from."""

    read: Callable[[], Array]
    registers: tuple[RegisterFile, ...] = ()


@dataclass
class Step:
    """A decoded instruction. `kind`: plain | branch | exit | barrier | warp; the latter run in `flow`."""

    run: Callable[[Mask], None]
    kind: str = "plain"
    target: int = 0  # of a branch
    members: Source | None = None  # of a warp operation: the lanes that must come
    finish: Callable[[Array], None] | None = None  # of a barrier: what happens when all have come
    guard: tuple[RegisterFile, bool] | None = None


class Machine:
    """The state of the threads of some blocks of one launch."""

    def __init__(self, launch: Launch, environment: Environment, n_blocks: int) -> None:
        self.environment, self.kernel, self.width = environment, launch.kernel, launch.width
        self.n_blocks = n_blocks
        self.n_lanes = n_blocks * self.width
        self.block_of = np.repeat(np.arange(n_blocks), self.width)
        self.thread_of = np.tile(np.arange(self.width), n_blocks)
        self.dead = np.zeros(self.n_lanes, np.bool_)
        self.registers = {name: RegisterFile(name, kind, self.n_lanes, self.dead) for name, kind in self.used().items()}
        self.specials: dict[str, Array] = {}
        self.covered = np.zeros(len(self.kernel.code), np.bool_)
        self.current = 0  # the instruction being executed
        self.vote = np.zeros(self.n_lanes, np.bool_)  # what threads bring to a barrier that reduces
        self.grains = {space: smallest_access(self.kernel, space) for space in ("global", "shared")}
        self.begin(launch, 0)
        self.symbols = dict(environment.symbols)
        for place in self.places.values():
            self.symbols |= {} if place.variables is None else place.variables.offsets

    def begin(self, launch: Launch, seed: int) -> None:
        """Make ready for a launch of the same kernel with as many threads a block as the first one."""
        self.launch = launch
        self.random = np.random.default_rng(seed)
        memory, grain = self.environment.memory, self.grains["global"]
        self.places = {"global": global_place(launch, memory, self.n_lanes, grain), **self.own_places()}
        self.fill_specials(0)

    def own_places(self) -> dict[str, Place]:
        """Fresh memory for the blocks and threads."""
        return own_places(self.launch, self.environment, self.block_of, self.grains["shared"])

    def used(self) -> dict[str, str]:
        """The registers that the code names, and their types."""
        names: set[str] = set()

        def visit(operand: Any) -> None:
            if isinstance(operand, Register):
                names.add(operand.name)
            for part in ("parts", "first", "second", "base"):
                inner = getattr(operand, part, None)
                for each in inner if isinstance(inner, tuple) else [inner]:
                    if each is not None:
                        visit(each)

        for instruction in self.kernel.code:
            for operand in (*instruction.operands, instruction.guard):
                visit(operand)
        return {name: kind for name, kind in self.kernel.registers.items() if name in names}

    # Threads

    def start(self, first_block: int, n_blocks: int) -> None:
        """Put the threads of these blocks at the kernel's beginning; further lanes of the batch stay dead."""
        self.first_block = first_block
        self.turns = 0
        self.pc = np.zeros(self.n_lanes, np.int64)
        self.absent = (self.thread_of >= self.launch.n_threads) | (self.block_of >= n_blocks)
        self.dead[...] = self.absent
        self.waiting = np.zeros(self.n_lanes, np.bool_)  # at a barrier of the block
        self.stalled = np.zeros(self.n_lanes, np.bool_)  # at a warp operation whose lanes are not all there
        self.clock = np.zeros(self.n_lanes, np.int64)
        self.threads = (first_block + self.block_of) * self.width + self.thread_of
        for register in self.registers.values():
            register.clear()
        self.unwritten = np.full(self.n_lanes, -1)  # the load that last gave a thread a value nobody wrote
        if first_block:
            self.places |= self.own_places()
        self.fill_specials(first_block)
        self.count_alive()

    def who(self, lanes: Array) -> Threads:
        """These lanes as the race check knows them."""
        return Threads(self.threads[lanes], self.clock[lanes])

    def count_alive(self) -> None:
        self.alive_lanes = np.flatnonzero(~self.dead)

    def lanes(self, mask: Mask) -> Array:
        """The indices of the threads of a mask."""
        return self.alive_lanes if mask is None else np.flatnonzero(mask)

    def let_through(self, step: Step, mask: Mask) -> Array:
        """The threads of a mask that the step's guard lets through."""
        living = ~self.dead if mask is None else mask
        if step.guard is None:
            return living
        register, negated = step.guard
        self.require([register], mask, f"whether {self.instruction.opcode} is done")
        return living & (~register.raw if negated else register.raw)

    def fill_specials(self, first_block: int) -> None:
        """Set the special registers, by name."""

        def coordinates(index: Array, shape: Shape) -> list[Array]:
            return [index % shape[0], index // shape[0] % shape[1], index // (shape[0] * shape[1])]

        lane = self.thread_of % WARP
        values: dict[str, Any] = {"%laneid": lane, "%warpid": self.thread_of // WARP, "%nwarpid": [self.width // WARP]}
        tid, ctaid = (
            coordinates(self.thread_of, self.launch.block),
            coordinates(first_block + self.block_of, self.launch.grid),
        )
        for axis, name in enumerate("xyz"):
            values |= {f"%tid.{name}": tid[axis], f"%ctaid.{name}": ctaid[axis]}
            values |= {f"%ntid.{name}": [self.launch.block[axis]], f"%nctaid.{name}": [self.launch.grid[axis]]}
        values |= {"%lanemask_eq": 1 << lane, "%lanemask_lt": (1 << lane) - 1, "%lanemask_le": (2 << lane) - 1}
        values |= {"%lanemask_gt": ALL_LANES & -(2 << lane), "%lanemask_ge": ALL_LANES & -(1 << lane)}
        for name, value in values.items():
            filled = self.specials.setdefault(name, np.zeros(np.shape(value), np.uint32))
            filled[...] = value

    # Operands

    def target(self, operand: Operand | None) -> RegisterFile:
        assert isinstance(operand, Register), operand
        return self.registers[operand.name]

    def constant(self, number: Number, dtype: np.dtype[Any]) -> Array:
        """A literal as an array of one value."""
        if number.float_bits:
            bits = np.array([number.value], f"u{number.float_bits // 8}")
            as_float = bits.view(f"f{number.float_bits // 8}")
            return as_float.astype(dtype) if dtype.kind == "f" else bits.astype(dtype)
        if dtype.kind == "b":
            return np.array([number.value != 0])
        if dtype.kind == "f":
            return np.array([number.value], dtype)
        return np.array([number.value % (1 << 8 * dtype.itemsize)], f"u{dtype.itemsize}").view(dtype)

    def source(self, operand: Operand | None, kind: str) -> Source:
        """How to read an operand as a type; wider registers give their low bits."""
        dtype = DTYPES[kind]
        if isinstance(operand, Number):
            constant = self.constant(operand, dtype)
            return Source(lambda: constant)
        if isinstance(operand, Symbol):
            address = self.constant(Number(self.address_of(operand)), dtype)
            return Source(lambda: address)
        assert isinstance(operand, Register), operand
        if operand.name not in self.registers:
            return self.special(operand.name, dtype)
        register = self.registers[operand.name]
        if register.raw.dtype == np.bool_ and dtype.kind != "b":
            self.unsupported(f"a predicate as {kind}")
        if register.raw.itemsize == dtype.itemsize:
            view = register.view(dtype)
            return Source((lambda: ~view) if operand.negated else (lambda: view), (register,))
        raw, unsigned = register.raw, np.dtype(f"u{dtype.itemsize}")
        return Source(lambda: raw.astype(unsigned).view(dtype), (register,))

    def special(self, name: str, dtype: np.dtype[Any]) -> Source:
        if name not in self.specials:
            self.unsupported(f"the register {name}")
        values = self.specials[name]
        return Source((lambda: values) if dtype == values.dtype else (lambda: values.astype(dtype)))

    def address_of(self, symbol: Symbol) -> int:
        if symbol.name not in self.symbols:
            self.unsupported(f"the name {symbol.name}")
        return self.symbols[symbol.name] + symbol.offset

    # Faults

    def turn(self) -> None:
        """Count a branch or a new group, so that a loop that never ends is one that is found."""
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise Fault("endless", f"more than {MOST_TURNS} branches; the last at {self.where()}")

    @property
    def instruction(self) -> Instruction:
        return self.kernel.code[self.current]

    def unsupported(self, what: str) -> NoReturn:
        raise Fault("unsupported", f"{what}: {self.where()}")

    def where(self, index: int | None = None) -> str:
        instruction = self.kernel.code[self.current if index is None else index]
        source = f" ({instruction.source})" if instruction.source else ""
        return f"kernel {self.kernel.name}, PTX line {instruction.line}{source}: {instruction.text}"

    def thread_name(self, thread: int) -> str:
        """Block and thread of a number that counts through all blocks."""

        def named(index: int, shape: Shape) -> str:
            return f"({index % shape[0]}, {index // shape[0] % shape[1]}, {index // (shape[0] * shape[1])})"

        return f"block {named(thread // self.width, self.launch.grid)} thread {named(thread % self.width, self.launch.block)}"

    def fault(self, checker: Checker, message: str, lane: int) -> NoReturn:
        """Raise what is wrong with one thread at the current instruction."""
        raise Fault(checker, f"{self.thread_name(int(self.threads[lane]))} {message}; {self.where()}")

    def require(self, registers: Sequence[RegisterFile], mask: Mask, what: str) -> None:
        """Raise if a register that decides something holds a value nobody wrote."""
        for register in registers:
            if not register.whole:
                unknown = register.unknown(self.lanes(mask))
                if len(unknown):
                    lane = int(unknown[0])
                    origin = int(self.unwritten[lane])
                    read = f", which read unwritten memory at [{self.where(origin)}]" if origin >= 0 else ""
                    self.fault("uninitialised", f"{what} depends on a value nobody wrote ({register.name}){read}", lane)

    # Time

    def pass_barrier(self, blocks: Array) -> None:
        """All threads of these blocks have met: what they did before is ordered before what they do next."""
        lanes = blocks[self.block_of]
        self.clock[lanes] = (self.clock[lanes] // BLOCK_TICK + 1) * BLOCK_TICK
        self.forget_shared(blocks)

    def forget_shared(self, blocks: Array) -> None:
        place = self.places["shared"]
        assert place.shadow is not None
        if blocks.all():
            place.shadow.forget(0, len(place.space.data))
        else:
            for block in np.flatnonzero(blocks):
                place.shadow.forget(block * place.size, (block + 1) * place.size)
