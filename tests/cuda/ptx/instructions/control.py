"""Branches, ends, barriers, and what the lanes of a warp do together: votes, shuffles, matches, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..machine import Machine, Step
from ..program import Instruction, Number, Operand, Pair, Symbol
from ..races import WARP
from ..registers import DTYPES, Mask
from .common import Array, Builder

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def branch(machine: Machine, instruction: Instruction) -> Step:
    (label,) = instruction.operands
    if not isinstance(label, Symbol) or label.name not in machine.kernel.labels:
        machine.unsupported("a branch to no label of the kernel")
    return Step(nothing, "branch", target=machine.kernel.labels[label.name])


def nothing(mask: Mask) -> None:
    """What is left to do at a branch, an end or a barrier once the flow of control has been seen to."""


def no_effect(machine: Machine, instruction: Instruction) -> Step:
    """Fences and prefetches: this model of memory has one order, and no cache."""
    return Step(nothing)


def end(machine: Machine, instruction: Instruction) -> Step:
    return Step(nothing, "exit")


def trap(machine: Machine, instruction: Instruction) -> Step:
    def run(mask: Mask) -> None:
        machine.fault("launch", "stops the kernel by trap", int(machine.lanes(mask)[0]))

    return Step(run)


def barrier(machine: Machine, instruction: Instruction) -> Step:
    """bar.sync 0 and bar.red over the whole block; bar.warp.sync over lanes of a warp."""
    modifiers = [name for name in instruction.modifiers if name not in {"cta", "aligned"}]
    if modifiers == ["warp", "sync"]:
        return warp_barrier(machine, instruction.operands[0])
    number = instruction.operands[0] if modifiers == ["sync"] else instruction.operands[1:2][0]
    if number != Number(0) or len(instruction.operands) > (1 if modifiers == ["sync"] else 3):
        machine.unsupported(f"the barrier {instruction.text}")
    if modifiers == ["sync"]:
        return Step(nothing, "barrier")
    if modifiers[:1] != ["red"] or modifiers[1] not in {"popc", "and", "or"}:
        machine.unsupported(f"the barrier {instruction.text}")
    return reducing_barrier(machine, instruction, modifiers[1])


def reducing_barrier(machine: Machine, instruction: Instruction, name: str) -> Step:
    """__syncthreads_count, _and, _or: all threads of a block get the same answer."""
    target = machine.target(instruction.operands[0])
    source = machine.source(instruction.operands[2], "pred")

    def arrive(mask: Mask) -> None:
        machine.require(source.registers, mask, "what a barrier counts")
        np.copyto(machine.vote, source.read(), where=True if mask is None else mask)

    def finish(lanes: Array) -> None:
        shape = machine.n_blocks, machine.width
        votes, here = machine.vote.reshape(shape), lanes.reshape(shape)
        if name == "popc":
            answer = (votes & here).sum(axis=1).astype(np.uint32)
        else:
            answer = (votes & here).any(axis=1) if name == "or" else (votes | ~here).all(axis=1)
        target.write(np.repeat(answer, machine.width), lanes)

    return Step(arrive, "barrier", finish=finish)


def warp_barrier(machine: Machine, members: Operand | None) -> Step:
    """__syncwarp: orders memory among the lanes of a warp."""

    def run(mask: Mask) -> None:
        lanes = machine.lanes(mask)
        warps = np.unique(lanes // WARP)
        clocks = machine.clock.reshape(-1, WARP)
        complete = np.bincount(lanes // WARP, minlength=len(clocks))[warps] == (~machine.dead).reshape(-1, WARP)[
            warps
        ].sum(axis=1)
        clocks[warps[complete]] += 1  # a barrier of fewer lanes orders nothing here: stricter than the hardware

    return Step(run, "warp", members=machine.source(members, "u32"))


def by_warp(values: Array, machine: Machine) -> Array:
    """One row per warp."""
    return np.broadcast_to(values, machine.n_lanes).reshape(-1, WARP)


def vote(machine: Machine, instruction: Instruction) -> Step:
    """vote.sync: ballot, all, any, uni."""
    sync, name, _ = instruction.modifiers
    if sync != "sync" or name not in {"ballot", "all", "any", "uni"}:
        machine.unsupported(f"the vote {instruction.text}")
    target, operand, members = instruction.operands
    source, register = machine.source(operand, "pred"), machine.target(target)
    lane_bits = np.int64(1) << np.arange(WARP)

    def run(mask: Mask) -> None:
        machine.require(source.registers, mask, "a vote")
        here = by_warp(~machine.dead if mask is None else mask, machine)
        yes = by_warp(source.read(), machine) & here
        if name == "ballot":
            answer = np.where(yes, lane_bits, 0).sum(axis=1).astype(np.uint32)
        else:
            n_yes, n_here = yes.sum(axis=1), here.sum(axis=1)
            answer = {"all": n_yes == n_here, "any": n_yes > 0, "uni": (n_yes == n_here) | (n_yes == 0)}[name]
        register.write(np.repeat(answer, WARP), mask)

    return Step(run, "warp", members=machine.source(members, "u32"))


def shuffle(machine: Machine, instruction: Instruction) -> Step:
    """shfl.sync: each lane reads another's value; of a lane that is not there, a value nobody wrote."""
    sync, mode, _ = instruction.modifiers
    if sync != "sync":
        machine.unsupported(f"the shuffle {instruction.text}")
    destination, operand, lane_operand, bounds, members = instruction.operands
    both = destination if isinstance(destination, Pair) else Pair(destination, None)  # type: ignore[arg-type]
    sources = [machine.source(each, "u32") for each in (operand, lane_operand, bounds)]
    lane = machine.thread_of % WARP

    def run(mask: Mask) -> None:
        value, step, bound = (np.broadcast_to(source.read(), machine.n_lanes) for source in sources)
        for source in sources[1:]:
            machine.require(source.registers, mask, "whom a shuffle asks")
        step, bound = (step & np.uint32(31)).astype(np.int64), bound.astype(np.int64)
        segment, clamp = bound >> 8 & 31, bound & 31
        last = (lane & segment) | (clamp & ~segment)
        first = lane & segment
        wanted = {"up": lane - step, "down": lane + step, "bfly": lane ^ step, "idx": first | (step & ~segment)}[mode]
        inside = wanted >= last if mode == "up" else wanted <= last
        asked = np.where(inside, wanted, lane) + np.arange(machine.n_lanes) // WARP * WARP
        here = ~machine.dead if mask is None else mask
        known = here[asked]
        for register in sources[0].registers:
            if not register.whole:
                known = known & register.defined[asked]
        if both.first is not None:
            target = machine.target(both.first)
            target.write(value[asked], mask)
            if not known.all(where=here):
                target.define(here, (), known)
        if both.second is not None:
            machine.target(both.second).write(inside, mask)

    return Step(run, "warp", members=machine.source(members, "u32"))


def match(machine: Machine, instruction: Instruction) -> Step:
    """match.any.sync: the lanes with the same value."""
    name, sync, kind = instruction.modifiers
    if (name, sync) != ("any", "sync"):
        machine.unsupported(f"the match {instruction.text}")
    target, operand, members = instruction.operands
    source, register = machine.source(operand, kind), machine.target(target)

    def run(mask: Mask) -> None:
        machine.require(source.registers, mask, "a match")
        here = by_warp(~machine.dead if mask is None else mask, machine)
        values = by_warp(source.read(), machine)
        equal = (values[:, :, None] == values[:, None, :]) & here[:, None, :]
        answer = np.where(equal, np.int64(1) << np.arange(WARP), 0).sum(axis=2)
        register.write(answer.astype(np.uint32).reshape(-1), mask)

    return Step(run, "warp", members=machine.source(members, "u32"))


def reduce_warp(machine: Machine, instruction: Instruction) -> Step:
    """redux.sync: an integer reduction over lanes."""
    sync, name, kind = instruction.modifiers
    if sync != "sync" or name not in REDUCTIONS or kind not in {"u32", "s32", "b32"}:
        machine.unsupported(f"the reduction {instruction.text}")
    target, operand, members = instruction.operands
    source, register = machine.source(operand, kind), machine.target(target)
    function, dtype = REDUCTIONS[name], DTYPES[kind]
    neutral = {"min": np.iinfo(dtype).max, "max": np.iinfo(dtype).min, "and": -1}.get(name, 0)

    def run(mask: Mask) -> None:
        machine.require(source.registers, mask, "a reduction")
        here = by_warp(~machine.dead if mask is None else mask, machine)
        values = np.where(here, by_warp(source.read(), machine), np.array([neutral]).astype(dtype))
        register.write(np.repeat(function.reduce(values, axis=1, dtype=dtype), WARP), mask)  # type: ignore[attr-defined]

    return Step(run, "warp", members=machine.source(members, "u32"))


def active(machine: Machine, instruction: Instruction) -> Step:
    """activemask: what it gives depends on the hardware's schedule, so no correct kernel here may use it."""
    machine.unsupported("activemask, whose answer depends on the schedule")


CONTROL: dict[str, Builder] = {
    "bra": branch,
    "ret": end,
    "exit": end,
    "trap": trap,
    "bar": barrier,
    "barrier": barrier,
    "vote": vote,
    "shfl": shuffle,
    "match": match,
    "redux": reduce_warp,
    "activemask": active,
    "membar": no_effect,
    "fence": no_effect,
    "prefetch": no_effect,
    "prefetchu": no_effect,
}
