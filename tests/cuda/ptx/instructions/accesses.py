"""Loads, stores and atomic operations, with every check that an access passes: bounds, alignment, order, content."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..machine import Machine, Source, Step
from ..memory import WINDOWS
from ..places import Place
from ..program import Address, Instruction, Number, Operand, Symbol
from ..races import Race
from ..registers import DTYPES, Mask, RegisterFile
from .common import Array, Builder, parts, widened

# How strong, how far visible, how cached: nothing that this model of memory tells apart.
HINTS = re.compile(r"weak|volatile|relaxed|acquire|release|acq_rel|gpu|cta|sys|cluster|c[agsv]|lu|nc|wb|wt|L[12]::\w+")
WINDOW_SIZE = 1 << 36


@dataclass(frozen=True)
class Touch:
    """The bytes of one space that an access reaches: the lanes, and each one's offset."""

    place: Place
    lanes: Array
    offsets: Array


class Access:
    """What the modifiers of a load, store or atomic say, and how to find the bytes."""

    def __init__(self, machine: Machine, instruction: Instruction, address: Operand | None, extra: set[str]) -> None:
        *modifiers, kind = instruction.modifiers
        spaces = [name.split("::")[0] for name in modifiers if name.split("::")[0] in WINDOWS]
        count = [int(name[1:]) for name in modifiers if name in {"v2", "v4", "v8"}]
        unknown = {
            name
            for name in modifiers
            if name not in extra
            and name not in {"v2", "v4", "v8"}
            and name.split("::")[0] not in WINDOWS
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

    def touches(self, mask: Mask) -> list[Touch]:
        """What the threads of a mask touch: one space, or with a generic address each in which some of them lie."""
        lanes = self.machine.lanes(mask)
        addresses = self.addresses(mask, lanes)
        if self.space:
            return [self.checked(self.machine.places[self.space], lanes, addresses)]
        found = []
        rest = np.ones(len(lanes), np.bool_)
        for name, window in WINDOWS.items():
            here = rest & (addresses >= window) & (addresses < window + WINDOW_SIZE) & (window > 0)
            if here.any():
                found.append(self.checked(self.machine.places[name], lanes[here], addresses[here] - window))
                rest &= ~here
        if rest.any():
            found.append(self.checked(self.machine.places["global"], lanes[rest], addresses[rest]))
        return found

    def checked(self, place: Place, lanes: Array, addresses: Array) -> Touch:
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
        return Touch(place, lanes, offsets)

    def order(self, touch: Touch, race: Race | None) -> None:
        """Raise a race that the shadow found."""
        if race is None:
            return
        place, lane = touch.place, int(touch.lanes[race.index])
        assert place.shadow is not None
        address = race.grain * place.shadow.grain - int(place.starts[lane]) + place.base
        where = f"in {place.name} memory at {address:#x} ({place.near(address)})"
        message = (
            f"meets {self.machine.thread_name(race.other)} {where}, which {race.did} there, and nothing orders them"
        )
        self.machine.fault("race", message, lane)


def load(machine: Machine, instruction: Instruction) -> Step:
    """ld, of one value or a vector."""
    destination, address = instruction.operands
    access = Access(machine, instruction, address, set())
    if access.space == "param" and access.base is None:
        return load_parameter(machine, access, parts(destination))
    targets = [None if each is None else machine.target(each) for each in parts(destination)]

    def run(mask: Mask) -> None:
        for touch in access.touches(mask):
            shadow = touch.place.shadow
            if shadow is not None:
                who = machine.who(touch.lanes)
                access.order(touch, shadow.read(touch.offsets, access.size, who, access.read_only_path))
            for step, target in enumerate(targets):
                value, known = touch.place.space.load(touch.offsets + step * access.item, access.item)
                if target is not None:
                    put(machine, target, touch.lanes, widened(value.view(access.dtype), target), known)

    return Step(run)


def put(machine: Machine, target: RegisterFile, lanes: Array, value: Array, known: Array) -> None:
    """Set a register of some threads to values from memory, which may be `known` or not."""
    target.view(value.dtype)[lanes] = value
    here = np.zeros(machine.n_lanes, np.bool_)
    here[lanes] = True
    if known.all():
        target.define(None if len(lanes) == len(machine.alive_lanes) else here)
        return
    machine.unwritten[lanes[~known]] = machine.current
    all_known = np.zeros(machine.n_lanes, np.bool_)
    all_known[lanes] = known
    target.define(here, (), all_known)


def load_parameter(machine: Machine, access: Access, operands: tuple[Operand | None, ...]) -> Step:
    """A kernel's argument, which is the same for all threads."""
    begin = np.array([access.offset])
    if access.offset % access.item or not machine.places["param"].space.inside(begin, access.item, access.count).all():
        machine.fault("bounds", f"reads {access.size} bytes of a parameter at {access.offset}", 0)
    targets = [(machine.target(operand), begin + step * access.item) for step, operand in enumerate(operands)]

    def run(mask: Mask) -> None:
        space = machine.places["param"].space
        for target, offset in targets:
            value, _ = space.load(offset, access.item)
            target.write(widened(value.view(access.dtype), target), mask)

    return Step(run)


def store(machine: Machine, instruction: Instruction) -> Step:
    """st, of one value or a vector. Only the thread's own and its block's memory may take a value nobody wrote."""
    address, origin = instruction.operands
    access = Access(machine, instruction, address, set())
    sources = [machine.source(each, access.kind) for each in parts(origin)]

    def run(mask: Mask) -> None:
        for touch in access.touches(mask):
            if touch.place.name in {"const", "param"}:
                machine.fault("bounds", f"writes {touch.place.name} memory", int(touch.lanes[0]))
            values = [np.broadcast_to(source.read(), machine.n_lanes)[touch.lanes] for source in sources]
            known = [known_values(source, touch.lanes) for source in sources]
            if touch.place.name == "global":
                for source in sources:
                    machine.require(source.registers, mask, "what is stored")
            order_store(machine, access, touch, values)
            for step, value in enumerate(values):
                touch.place.space.store(touch.offsets + step * access.item, value, known[step])
            settle(access, touch, values)

    return Step(run)


def known_values(source: Source, lanes: Array) -> Array | None:
    """Which lanes' values somebody wrote; None if all."""
    partly = [register.defined for register in source.registers if not register.whole]
    return np.logical_and.reduce([defined[lanes] for defined in partly]) if partly else None


def order_store(machine: Machine, access: Access, touch: Touch, values: list[Array]) -> None:
    """Check a store against earlier accesses; one that changes nothing does not conflict with a write."""
    shadow = touch.place.shadow
    if shadow is None:
        return
    same = np.ones(len(touch.lanes), np.bool_)
    for step, value in enumerate(values if shadow.written else ()):
        old, known = touch.place.space.load(touch.offsets + step * access.item, access.item)
        same &= known & (old == value.view(old.dtype))
    access.order(touch, shadow.write(touch.offsets, access.size, machine.who(touch.lanes), same))


def settle(access: Access, touch: Touch, values: list[Array]) -> None:
    """Raise if threads stored different values at one place with this very instruction."""
    shadow = touch.place.shadow
    if shadow is None:
        return
    for step, value in enumerate(values):
        offsets = touch.offsets + step * access.item
        kept, _ = touch.place.space.load(offsets, access.item)
        lost = kept != value.view(kept.dtype)
        if lost.any():
            first = int(lost.argmax())
            grain = int(offsets[first]) // shadow.grain
            access.order(touch, Race(first, grain, int(shadow.writer[grain]), "wrote"))


def exchanged(_: Array, new: Array) -> Array:
    return new


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
    "exch": exchanged,
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
        for touch in access.touches(mask):
            if touch.place.shadow is not None:
                who = machine.who(touch.lanes)
                access.order(touch, touch.place.shadow.write(touch.offsets, access.size, who, None))
            values = [np.broadcast_to(source.read(), machine.n_lanes)[touch.lanes] for source in sources]
            order = machine.random.permutation(len(touch.lanes))
            found, known = take_turns(touch, order, values, function)
            if target is not None:
                put(machine, target, touch.lanes, widened(found, target), known)

    return Step(run)


def take_turns(touch: Touch, order: Array, values: list[Array], function: Callable[..., Any]) -> tuple[Array, Array]:
    """What each lane found before its turn, and whether somebody wrote that."""
    dtype, space = values[0].dtype, touch.place.space
    turns = order[np.argsort(touch.offsets[order], kind="stable")]  # by place, and there in the drawn order
    places = touch.offsets[turns]
    begins = np.flatnonzero(np.r_[True, places[1:] != places[:-1]])
    lengths = np.diff(np.r_[begins, len(places)])
    found, known = np.zeros(len(places), dtype), np.zeros(len(places), np.bool_)
    if function is np.add and dtype.kind in "iu":  # all turns at once
        given = values[0][turns]
        before = np.cumsum(given, dtype=dtype) - given
        old, known[turns] = space.load(places, dtype.itemsize)
        found[turns] = old.view(dtype) + before - np.repeat(before[begins], lengths)
        last = begins + lengths - 1
        space.store(places[last], found[turns[last]] + given[last], known[turns[last]])
        return found, known
    for turn in range(int(lengths.max())):
        now = turns[(begins + turn)[lengths > turn]]
        old, known[now] = space.load(touch.offsets[now], dtype.itemsize)
        found[now] = old.view(dtype)
        new = function(found[now], *(value[now] for value in values)).astype(dtype)
        space.store(touch.offsets[now], new, known[now])
    return found, known


ACCESSES: dict[str, Builder] = {"ld": load, "ldu": load, "st": store, "atom": atomic, "red": atomic}
