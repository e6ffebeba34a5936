"""Loads, stores and atomic operations, with every check that an access passes: bounds, alignment, order, content."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..machine import Machine, Place, Source, Step
from ..memory import WINDOWS
from ..program import Address, Instruction, Number, Operand, Register, Symbol
from ..races import Race
from ..registers import DTYPES, Mask, RegisterFile
from .common import Array, Builder, parts, widened

# How strong, how far visible, how cached: nothing that this model of memory tells apart.
HINTS = re.compile(r"weak|volatile|relaxed|acquire|release|acq_rel|gpu|cta|sys|cluster|c[agsv]|lu|nc|wb|wt|L[12]::\w+")
WINDOW_SIZE = 1 << 36


class Access:
    """What the modifiers of a load, store or atomic say, and how to find the bytes."""

    def __init__(self, machine: Machine, instruction: Instruction, address: Operand | None, extra: set[str]) -> None:
        *modifiers, kind = instruction.modifiers
        spaces = [name.split("::")[0] for name in modifiers if name.split("::")[0] in WINDOWS]
        count = [int(name[1:]) for name in modifiers if name in {"v2", "v4", "v8"}]
        unknown = {
            name
            for name in modifiers
            if name not in extra and name not in {"v2", "v4", "v8"} and name.split("::")[0] not in WINDOWS
            and not HINTS.fullmatch(name)
        }
        if unknown or kind not in DTYPES or not isinstance(address, Address):
            machine.unsupported(f"the instruction {'.'.join(instruction.name)}")
        self.machine = machine
        self.kind, self.dtype = kind, DTYPES[kind]
        self.item, self.count = self.dtype.itemsize, count[0] if count else 1
        self.size = self.item * self.count
        self.space = spaces[0] if spaces else ""
        self.read_only_path = "nc" in modifiers
        self.base: Source | None = None
        self.offset = address.offset
        if isinstance(address.base, Symbol):
            self.offset += machine.address_of(address.base)
        elif isinstance(address.base, Number):
            self.offset += address.base.value
        else:
            wide = machine.registers[address.base.name].raw.dtype
            self.base = machine.source(address.base, f"u{8 * wide.itemsize}")

    def addresses(self, mask: Mask, lanes: Array) -> Array:
        """The address of each lane's first byte, aligned as the access asks."""
        if self.base is None:
            found = np.full(len(lanes), self.offset)
        else:
            self.machine.require(self.base.registers, mask, "an address")
            found = self.base.read().astype(np.int64)[lanes] + self.offset
        crooked = found % self.size != 0
        if crooked.any():
            first = int(crooked.argmax())
            message = f"accesses {self.size} bytes at {int(found[first]):#x}, which is no multiple of {self.size}"
            self.machine.fault("alignment", message, int(lanes[first]))
        return found

    def places(self, mask: Mask) -> list[tuple[Place, Array, Array]]:
        """(space, lanes, offsets) of the access: one space, or of a generic access each that is touched."""
        lanes = self.machine.lanes(mask)
        addresses = self.addresses(mask, lanes)
        if self.space:
            return [self.checked(self.machine.places[self.space], lanes, addresses)]
        found = []
        rest = np.ones(len(lanes), np.bool_)
        for name, window in WINDOWS.items():
            here = rest & (addresses >= window) & (addresses < window + WINDOW_SIZE) if window else None
            if here is not None and here.any():
                found.append(self.checked(self.machine.places[name], lanes[here], addresses[here] - window))
                rest &= ~here
        if rest.any():
            found.append(self.checked(self.machine.places["global"], lanes[rest], addresses[rest]))
        return found

    def checked(self, place: Place, lanes: Array, addresses: Array) -> tuple[Place, Array, Array]:
        """The offsets of addresses, all inside of what is allocated."""
        offsets = addresses - place.base
        inside = (offsets >= 0) & (offsets < place.size)
        offsets = np.where(inside, offsets, 0) + place.starts[lanes]
        inside &= place.space.inside(offsets, self.item, self.count)
        if not inside.all():
            first = int((~inside).argmax())
            address = int(addresses[first])
            message = f"accesses {self.size} bytes of {place.name} memory at {address:#x}, {place.near(address)}"
            self.machine.fault("bounds", message, int(lanes[first]))
        return place, lanes, offsets

    def order(self, place: Place, lanes: Array, race: Race | None) -> None:
        """Raise a race that the shadow found."""
        if race is not None:
            self.conflict(place, int(lanes[race.lane]), race.other, race.what, race.grain)

    def conflict(self, place: Place, lane: int, other: int, what: str, grain: int) -> None:
        assert place.shadow is not None
        address = grain * place.shadow.grain - int(place.starts[lane]) + place.base
        message = f"at {address:#x} ({place.near(address)}) meets {self.machine.thread_name(other)}, which {what} there"
        self.machine.fault("race", f"in {place.name} memory {message} with nothing to order them", lane)


def load(machine: Machine, instruction: Instruction) -> Step:
    """ld, of one value or a vector."""
    destination, address = instruction.operands
    access = Access(machine, instruction, address, set())
    if access.space == "param" and access.base is None:
        return load_parameter(machine, access, parts(destination))
    targets = [None if each is None else machine.target(each) for each in parts(destination)]

    def run(mask: Mask) -> None:
        for place, lanes, offsets in access.places(mask):
            if place.shadow is not None:
                threads, clocks = machine.threads[lanes], machine.clock[lanes]
                race = place.shadow.read(offsets, access.size, threads, clocks, access.read_only_path)
                access.order(place, lanes, race)
            for step, target in enumerate(targets):
                value, known = place.space.load(offsets + step * access.item, access.item)
                if target is not None:
                    put(machine, target, widened(value.view(access.dtype), target), lanes, mask, known)

    return Step(run)


def put(machine: Machine, target: RegisterFile, value: Array, lanes: Array, mask: Mask, known: Array) -> None:
    """Set a register of some threads to loaded values, which may be `known` or not."""
    target.view(value.dtype)[lanes] = value
    if known.all() and len(lanes) == len(machine.lanes(mask)):
        target.define(mask)
        return
    machine.unwritten[lanes[~known]] = machine.current
    here = np.zeros(machine.n_lanes, np.bool_)
    here[lanes] = True
    all_known = np.zeros(machine.n_lanes, np.bool_)
    all_known[lanes] = known
    target.define(here, (), all_known)


def load_parameter(machine: Machine, access: Access, operands: tuple[Operand | None, ...]) -> Step:
    """A kernel's argument, which is the same for all threads."""
    space = machine.places["param"].space
    begin = np.array([access.offset])
    if access.offset % access.item or not space.inside(begin, access.item, access.count).all():
        machine.fault("bounds", f"reads {access.size} bytes of a parameter at {access.offset}", 0)
    filled = []
    for step, operand in enumerate(operands):
        value, _ = space.load(begin + step * access.item, access.item)
        target = machine.target(operand)
        filled.append((target, widened(value.view(access.dtype), target)))

    def run(mask: Mask) -> None:
        for target, value in filled:
            target.write(value, mask)

    return Step(run)


def store(machine: Machine, instruction: Instruction) -> Step:
    """st, of one value or a vector. Only the thread's own and its block's memory may take a value nobody wrote."""
    address, origin = instruction.operands
    access = Access(machine, instruction, address, set())
    sources = [machine.source(each, access.kind) for each in parts(origin)]

    def run(mask: Mask) -> None:
        for place, lanes, offsets in access.places(mask):
            if place.name in {"const", "param"}:
                machine.fault("bounds", f"writes {place.name} memory", int(lanes[0]))
            values = [np.broadcast_to(source.read(), machine.n_lanes)[lanes] for source in sources]
            known = [known_values(machine, source, lanes) for source in sources]
            if place.name == "global":
                for source in sources:
                    machine.require(source.registers, mask, "what is stored")
            if place.shadow is not None:
                race_of_store(machine, access, place, lanes, offsets, values)
            for step, value in enumerate(values):
                place.space.store(offsets + step * access.item, value, known[step])
            settle(access, place, lanes, offsets, values)

    return Step(run)


def known_values(machine: Machine, source: Source, lanes: Array) -> Array | None:
    """Which lanes' values somebody wrote; None if all."""
    partly = [register.defined for register in source.registers if not register.whole]
    return np.logical_and.reduce([defined[lanes] for defined in partly]) if partly else None


def race_of_store(
    machine: Machine, access: Access, place: Place, lanes: Array, offsets: Array, values: list[Array]
) -> None:
    """Check a store against earlier accesses; one that changes nothing does not conflict with a write."""
    assert place.shadow is not None
    same = None
    if place.shadow.written:
        same = np.ones(len(lanes), np.bool_)
        for step, value in enumerate(values):
            old, known = place.space.load(offsets + step * access.item, access.item)
            same &= known & (old == value.view(old.dtype))
    threads, clocks = machine.threads[lanes], machine.clock[lanes]
    access.order(place, lanes, place.shadow.write(offsets, access.size, threads, clocks, same))


def settle(access: Access, place: Place, lanes: Array, offsets: Array, values: list[Array]) -> None:
    """Raise if threads stored different values at one place with this very instruction."""
    if place.shadow is None:
        return
    for step, value in enumerate(values):
        kept, _ = place.space.load(offsets + step * access.item, access.item)
        lost = kept != value.view(kept.dtype)
        if lost.any():
            first = int(lost.argmax())
            grain = int(offsets[first] + step * access.item) // place.shadow.grain
            access.conflict(place, int(lanes[first]), int(place.shadow.writer[grain]), "wrote", grain)


def wrapped_increment(old: Array, limit: Array) -> Array:
    return np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1))


def wrapped_decrement(old: Array, limit: Array) -> Array:
    return np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))


ATOMICS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "inc": wrapped_increment,
    "dec": wrapped_decrement,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
}


def atomic(machine: Machine, instruction: Instruction) -> Step:
    """atom and red: the threads take their turns in an order drawn anew each time."""
    operands = list(instruction.operands)
    target = machine.target(operands[0]) if instruction.opcode == "atom" and operands[0] is not None else None
    address, *inputs = operands[1:] if instruction.opcode == "atom" else operands
    names = set(instruction.modifiers) & set(ATOMICS)
    access = Access(machine, instruction, address, names | {"noftz"})
    if len(names) != 1 or access.count != 1 or access.kind in {"f16", "bf16", "f16x2", "bf16x2"}:
        machine.unsupported(f"the instruction {'.'.join(instruction.name)}")
    function = ATOMICS[names.pop()]
    sources = [machine.source(each, access.kind) for each in inputs]

    def run(mask: Mask) -> None:
        for source in sources:
            machine.require(source.registers, mask, "what is combined")
        for place, lanes, offsets in access.places(mask):
            if place.shadow is not None:
                threads, clocks = machine.threads[lanes], machine.clock[lanes]
                race = place.shadow.write(offsets, access.size, threads, clocks, None, atomic=True)
                access.order(place, lanes, race)
            values = [np.broadcast_to(source.read(), machine.n_lanes)[lanes] for source in sources]
            old, known = take_turns(machine, place, offsets, values, function, access.dtype)
            if target is not None:
                put(machine, target, widened(old, target), lanes, mask, known)

    return Step(run)


def take_turns(
    machine: Machine, place: Place, offsets: Array, values: list[Array], function: Callable[..., Any], dtype: Any
) -> tuple[Array, Array]:
    """What each lane found before its turn, and whether somebody wrote that."""
    order = machine.random.permutation(len(offsets))
    sorted_order = order[np.argsort(offsets[order], kind="stable")]
    keys = offsets[sorted_order]
    begins = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    turn = np.arange(len(keys)) - np.repeat(begins, np.diff(np.r_[begins, len(keys)]))
    found, known = np.zeros(len(offsets), dtype), np.zeros(len(offsets), np.bool_)
    if function is np.add and dtype.kind in "iu":  # all turns at once
        totals = np.cumsum(values[0][sorted_order], dtype=dtype)
        before = totals - values[0][sorted_order]
        old, written = place.space.load(keys, dtype.itemsize)
        found[sorted_order] = old.view(dtype) + before - np.repeat(before[begins], np.diff(np.r_[begins, len(keys)]))
        known[sorted_order] = written
        last = np.r_[begins[1:], len(keys)] - 1
        final = found[sorted_order[last]] + values[0][sorted_order[last]]
        place.space.store(keys[last], final, written[last])
        return found, known
    for round_ in range(int(turn.max(initial=-1)) + 1):
        now = sorted_order[turn == round_]
        old, written = place.space.load(offsets[now], dtype.itemsize)
        found[now], known[now] = old.view(dtype), written
        new = function(found[now], *(value[now] for value in values)).astype(dtype)
        place.space.store(offsets[now], new, written)
    return found, known


ACCESSES: dict[str, Builder] = {"ld": load, "ldu": load, "st": store, "atom": atomic, "red": atomic}
