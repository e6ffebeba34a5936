"""The static checks themselves: each says in words what is wrong with a compiled kernel, or with the sources."""

from __future__ import annotations

import re
from pathlib import Path

from cuda.budgets import KERNELS
from cuda.machine_code import Kernel

WITHOUT_DIVISION = (
    "selection.cuh",
    "return __fdiv_rn(sum, static_cast<float>(n_heads));",
    "return n_heads == 0 ? 0.0F : sum;",
)
FORBIDDEN = {
    "inline assembly": r"\basm\b|__asm",
    "cooperative groups": r"cooperative_groups",
    "launch syntax, which g++ cannot read": r"<<<",
    "device-side printing": r"\bprintf\b",
}
PLAIN_ADDITION = r"(add|sub|mul)\.(?!rn\.)(\w+\.)*f(32|64|16|16x2|bf16)\b"  # no rounding named: may be fused
INEXACT = r"fma\.|mad\.(\w+\.)*f|\w+\.(\w+\.)*(approx|ftz|full)\b|" + PLAIN_ADDITION


def without_comments(text: str) -> str:
    """Source text with comments left out."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)


def not_plain(folder: Path) -> list[str]:
    """What sources use that the emulation and the promise of plain CUDA forbid."""
    return [
        f"{path.name}: {what}"
        for path in sorted(folder.glob("*.cu*"))
        for what, pattern in FORBIDDEN.items()
        if re.search(pattern, without_comments(path.read_text(encoding="utf-8")))
    ]


def local_memory(kernel: Kernel) -> list[str]:
    """Spills, stack and instructions that reach local memory."""
    reached = kernel.counts(r"(ld|st)\.local|(LDL|STL)\b")
    if (kernel.needs.stack, kernel.needs.spilled, *reached) == (0, 0, 0, 0):
        return []
    return [f"{kernel.name}: {kernel.needs}, instructions that reach local memory: {reached}"]


def over_budget(kernel: Kernel, architecture: int) -> list[str]:
    """Registers and shared memory beyond what the table allows."""
    budget, needs = KERNELS[kernel.name], kernel.needs
    return [
        f"{kernel.name} on sm_{architecture}: {what} {used}, budget {allowed}"
        for what, used, allowed in (
            ("registers", needs.registers, budget.registers),
            ("shared bytes", needs.shared, budget.shared),
        )
        if used > allowed
    ]


def narrow(kernel: Kernel) -> list[str]:
    """Fewer 16-byte loads or stores, in PTX or in machine code, than the kernel means."""
    budget = KERNELS[kernel.name]
    loads = kernel.counts(r"ld\.global\S*\.(v4\.[bfu]32|v2\.[bfu]64)|LDG\S*\.128")
    stores = kernel.counts(r"st\.global\S*\.(v4\.[bfu]32|v2\.[bfu]64)|STG\S*\.128")
    return [
        f"{kernel.name}: {found} {what} of 16 bytes in {where}, meant: at least {meant}"
        for what, both, meant in (("loads", loads, budget.wide_loads), ("stores", stores, budget.wide_stores))
        for where, found, is_read in zip(("PTX", "machine code"), both, (True, bool(kernel.sass)), strict=True)
        if is_read and found < meant
    ]


def inexact(kernel: Kernel) -> list[str]:
    """PTX that fuses, approximates, flushes or leaves ptxas free to fuse."""
    return [f"{kernel.name}: {line}" for line in kernel.ptx if re.match(INEXACT, line)]


def long_division(kernel: Kernel) -> list[str]:
    """PTX that divides 64 bits, which devices do in a hundred instructions."""
    return [f"{kernel.name}: {line}" for line in kernel.ptx if re.match(r"(div|rem)\.[su]64", line)]


def divides(kernel: Kernel) -> bool:
    """Whether it divides floats, which machine code does with fused products."""
    return kernel.counts(r"(div|rcp)\.\S*f32")[0] > 0


def fused(kernel: Kernel) -> list[str]:
    """Fused products in machine code."""
    return [f"{kernel.name}: {line}" for line in kernel.sass if re.match(r"(FFMA|DFMA|HFMA2\.(?!MMA)\S*BF16)", line)]
