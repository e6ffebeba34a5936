"""Which threads run next, and where: branches, exits, barriers of a block, meetings of a warp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .machine import WARP, Machine, Step
from .registers import Mask

Array: TypeAlias = npt.NDArray[Any]
FAR = np.iinfo(np.int64).max


def run(machine: Machine, steps: Sequence[Step]) -> None:
    """Run the machine's threads until all have ended."""
    with np.errstate(all="ignore"):
        while advance(machine, steps):
            machine.turn()


def advance(machine: Machine, steps: Sequence[Step]) -> bool:
    """Let the threads with the least program counter go on until their ways part or meet others'; False at the end."""
    runnable = ~(machine.dead | machine.waiting | machine.stalled)
    if not runnable.any():
        return release(machine, steps)
    places = np.where(runnable, machine.pc, FAR)
    pc = int(places.min())
    group = places == pc
    others = places[~group]
    limit = int(others.min()) if len(others) else FAR
    n_group = int(np.count_nonzero(group))
    mask: Mask = None if n_group == len(machine.alive_lanes) else group
    while pc < limit:
        step = steps[pc]
        machine.current = pc
        if step.kind == "plain":
            step.run(mask)
            if step.guard is None:
                machine.covered[pc] = True
            pc += 1
        elif step.kind == "branch":
            taken = machine.let_through(step, mask)
            n_taken = int(np.count_nonzero(taken))
            machine.covered[pc] = True
            machine.turn()
            if 0 < n_taken < n_group:
                machine.pc[group] = pc + 1
                machine.pc[taken] = step.target
                return True
            pc = step.target if n_taken else pc + 1
        elif step.kind == "warp" and step.members is not None and meet(machine, step, group, mask):
            pc += 1
        else:
            machine.pc[group] = pc
            stop(machine, step, mask, group)
            return True
    machine.pc[group] = pc
    return True


def stop(machine: Machine, step: Step, mask: Mask, group: Array) -> None:
    """Do what ends a group's run: an exit, a barrier, a warp operation that still waits for lanes."""
    index = machine.current
    if step.kind == "exit":
        ending = machine.let_through(step, mask)
        machine.covered[index] |= bool(ending.any())
        machine.pc[group] = index + 1
        machine.dead[ending] = True
        machine.count_alive()
    elif step.kind == "barrier":
        arriving = machine.let_through(step, mask)
        machine.covered[index] |= bool(arriving.any())
        machine.pc[group & ~arriving] = index + 1
        step.run(arriving)
        machine.waiting |= arriving
    else:
        meet_or_wait(machine, step)


def meet(machine: Machine, step: Step, group: Array, mask: Mask) -> bool:
    """Do a warp operation at once if every lane it names is in the group; else False, with nothing done."""
    if step.guard is not None or machine.stalled.any():
        return False
    if not complete(machine, step, group).all(where=group):
        return False
    machine.covered[machine.current] = True
    step.run(mask)
    return True


def complete(machine: Machine, step: Step, here: Array) -> Array:
    """By lane: whether all living lanes of its warp that it names are here."""
    assert step.members is not None
    machine.require(step.members.registers, here, "which lanes take part")
    named = np.broadcast_to(step.members.read(), machine.n_lanes).astype(np.int64)
    bits = np.int64(1) << (machine.thread_of % WARP)
    outside = here & (named & bits == 0)
    if outside.any():
        lane = int(outside.argmax())
        machine.fault("warp", f"is not among the lanes that it names ({int(named[lane]):#x})", lane)
    missing = np.where(here | machine.dead, 0, bits).reshape(-1, WARP).sum(axis=1)
    return (named & np.repeat(missing, WARP)) == 0


def meet_or_wait(machine: Machine, step: Step) -> None:
    """Gather all that have come to this warp operation; complete ones go on, the others wait."""
    index = machine.current
    here = (machine.pc == index) & ~machine.dead & ~machine.waiting
    if step.guard is not None:
        machine.unsupported("a warp operation under a guard")
    going = here & complete(machine, step, here)
    if going.any():
        machine.covered[index] = True
        step.run(None if np.count_nonzero(going) == len(machine.alive_lanes) else going)
    machine.stalled &= ~going
    machine.pc[going] = index + 1
    machine.stalled |= here & ~going


def release(machine: Machine, steps: Sequence[Step]) -> bool:
    """Nobody can go on: open the barriers that all have reached, or say who waits in vain."""
    if not len(machine.alive_lanes):
        return False
    if machine.stalled.any():
        lane = int(machine.stalled.argmax())
        machine.current = int(machine.pc[lane])
        machine.fault("warp", "waits for lanes of its warp that never come", lane)
    shape = machine.n_blocks, machine.width
    waiting = machine.waiting.reshape(shape)
    blocks = waiting.any(axis=1)
    ended = (machine.dead & ~machine.absent).reshape(shape)
    for block in np.flatnonzero(blocks & ended.any(axis=1)):
        gone, lane = (int(which[block].argmax()) + block * machine.width for which in (ended, waiting))
        machine.current = int(machine.pc[lane])
        machine.fault(
            "barrier", f"waits at a barrier for {machine.thread_name(machine.threads[gone])}, which ended", lane
        )
    first = machine.pc[np.repeat(waiting.argmax(axis=1) + np.arange(machine.n_blocks) * machine.width, machine.width)]
    apart = machine.waiting & (machine.pc != first)
    if apart.any():
        lane = int(apart.argmax())
        machine.current = int(machine.pc[lane])
        message = f"waits at this barrier while others of its block wait at [{machine.where(int(first[lane]))}]"
        machine.fault("barrier", message, lane)
    machine.pass_barrier(blocks)
    for index in np.unique(machine.pc[machine.waiting]):
        lanes = machine.waiting & (machine.pc == index)
        finish = steps[index].finish
        if finish is not None:
            machine.current = int(index)
            finish(lanes)
    machine.pc[machine.waiting] += 1
    machine.waiting[...] = False
    return True
