"""Bugs to plant into a copy of the CUDA sources: the edits, and what must see each of them.

An edit names a file, text that stands in it exactly once, and what to put there; a source that has moved on fails the
edit, not the check. `STATIC` is for the checks of compiled code, `EMULATED` for the emulation by g++.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plant:
    """One bug: the edits that make it, and words or the name of a check that must report it."""

    edits: tuple[tuple[str, str, str], ...]
    seen_by: str
    source: str = "rows.cu"


ONE_READ = "const uint4 read = __ldg(reinterpret_cast<const uint4*>(items));"
FOUR_READS = "const auto* const at = reinterpret_cast<const unsigned*>(items); const uint4 read = make_uint4(__ldg(at), __ldg(at + 1), __ldg(at + 2), __ldg(at + 3));"
ONE_WRITE = "__stwb(reinterpret_cast<float4*>(out + i),"
DIVISION = "return __fdiv_rn(sum, static_cast<float>(n_heads));"
ADDITION = "return __fadd_rn(sum, weight);"

STATIC = {
    "a vector load becomes four": Plant((("items.cuh", ONE_READ, FOUR_READS),), "narrow"),
    "registers are spilled": Plant(
        (("rows.cu", "__launch_bounds__(kThreads)", "__launch_bounds__(kThreads, 16)"),), "local_memory"
    ),
    "an array lies in local memory": Plant(
        (("edges.cu", "float weight[1];", "float weight[1]; volatile float kept[8]; kept[h % 8] = sum;"),),
        "local_memory",
        "edges.cu",
    ),
    "too many registers": Plant(
        (("rows.cu", "constexpr int kItems = 8;", "constexpr int kItems = 32;"),), "over_budget"
    ),
    "too much shared memory": Plant(
        (("columns.cu", "constexpr int kTile = 1024;", "constexpr int kTile = 8192;"),), "over_budget", "columns.cu"
    ),
    "a product is fused": Plant((("selection.cuh", ADDITION, "return fmaf(weight, 1.5F, sum);"),), "inexact"),
    "a sum may be fused": Plant((("selection.cuh", ADDITION, "return sum + weight * 1.5F;"),), "inexact_when_allowed"),
    "a quotient is approximate": Plant(
        (("selection.cuh", DIVISION, "return __fdividef(sum, static_cast<float>(n_heads));"),), "inexact"
    ),
    "a product is fused in machine code": Plant(
        (
            ("selection.cuh", DIVISION, "return sum;"),
            ("selection.cuh", ADDITION, "return fmaf(weight, 1.5F, sum);"),
        ),
        "fused",
    ),
    "inline assembly": Plant(
        (("rows.cu", "float sums[kReads][kCount];", 'asm("");\n    float sums[kReads][kCount];'),), "not_plain"
    ),
}
