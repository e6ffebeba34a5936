"""PTX written by hand for the tests of the interpreter: one instruction at a time, or a kernel's body."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from cuda.ptx.launch import Device, packed
from cuda.ptx.program import SIZES
from cuda.ptx.registers import DTYPES
from tests.support.patterns import Array, rng

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"
REGISTERS = """
    .reg .pred %p<16>;
    .reg .b16 %h<16>;
    .reg .b32 %r<32>;
    .reg .f32 %f<16>;
    .reg .b64 %d<32>;
"""


def kernel(body: str, parameters: str = "", outside: str = "") -> str:
    """A module with one kernel, `k`."""
    return f"{HEAD}{outside}\n.visible .entry k({parameters})\n{{{REGISTERS}{body}\n    ret;\n}}\n"


def launch(
    text: str, *, blocks: int = 1, threads: int = 32, arguments: Sequence[int] = (), device: Device | None = None
) -> Device:
    """Runs `k`, whose parameters are integers."""
    device = device or Device()
    device.load(text)
    found = device.kernels["k"]
    values = [struct.pack("<q", value)[: each.size] for value, each in zip(arguments, found.parameters, strict=True)]
    device.launch("k", (blocks, 1, 1), (threads, 1, 1), packed(found, values))
    return device


def uploaded(device: Device, array: Array, shift: int = 0) -> int:
    """The address of a copy on the device."""
    address = device.memory.allocate(array.nbytes, "array", shift)
    device.memory.write(address, array.tobytes())
    return address


def register(kind: str, index: int) -> str:
    letter = {"pred": "%p", "f32": "%f", "f64": "%d"}.get(kind, {1: "%h", 2: "%h", 4: "%r", 8: "%d"}[SIZES[kind]])
    return f"{letter}{index}"


def computed(instruction: str, kinds: Sequence[str], *inputs: Any, result: str | None = None) -> Array:
    """What an instruction makes of arrays of those kinds; `{0}` is its result, `{1}` its first operand and so on."""
    result = result or kinds[0]
    device = Device()
    arrays = [np.ascontiguousarray(array, DTYPES[kind]) for array, kind in zip(inputs, kinds, strict=True)]
    n = len(arrays[0])
    addresses = [uploaded(device, array) for array in arrays]
    out = device.memory.allocate(n * SIZES[result])
    body = "mov.u32 %r31, %ctaid.x; mov.u32 %r30, %tid.x; mad.lo.u32 %r30, %r31, 32, %r30;"
    body += f" setp.ge.u32 %p15, %r30, {n}; @%p15 bra END;"
    for index, kind in enumerate(kinds):
        body += f" ld.param.u64 %d30, [p{index + 1}]; mul.wide.u32 %d31, %r30, {SIZES[kind]}; add.u64 %d30, %d30, %d31;"
        body += f" ld.global.{kind.replace('bf', 'b').replace('f16', 'b16')} {register(kind, index + 1)}, [%d30];"
    names = [register(result, 0), *(register(kind, index + 1) for index, kind in enumerate(kinds))]
    body += " " + instruction.format(*names) + "; "
    body += f"ld.param.u64 %d30, [p0]; mul.wide.u32 %d31, %r30, {SIZES[result]}; add.u64 %d30, %d30, %d31;"
    body += f" st.global.{result.replace('bf', 'b').replace('f16', 'b16')} [%d30], {names[0]}; END:"
    parameters = ", ".join(f".param .u64 p{index}" for index in range(len(kinds) + 1))
    launch(kernel(body, parameters), blocks=-(-n // 32), arguments=[out, *addresses], device=device)
    return np.frombuffer(device.memory.read(out, n * SIZES[result]), DTYPES[result])


def integers(kind: str, n_random: int) -> list[int]:
    """The ends of an integer type, powers of two and their neighbours, and random ones."""
    dtype = DTYPES[kind]
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    powers = [1 << place for place in range(0, 8 * dtype.itemsize, 7)]
    edges = {low, low + 1, -1, 0, 1, 2, 31, 32, 33, high - 1, high, *powers, *(power - 1 for power in powers)}
    drawn = rng(kind).integers(low, high, n_random, dtype=dtype, endpoint=True).tolist()
    return sorted(value for value in edges if low <= value <= high) + drawn
