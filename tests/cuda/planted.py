"""Bugs to plant into a copy of the CUDA sources: the edits, and what must see each of them.

An edit names a file, text that stands in it exactly once, and what to put there; a source that has moved on fails the
edit, not the check. `STATIC` is for the checks of compiled code, `EMULATED` for the emulation by g++.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plant:
    """One bug: its edits, the check of `checks` (or a pattern in the words of the emulation) that must report it, what is compiled."""

    edits: tuple[tuple[str, str, str], ...]
    seen_by: str
    source: str = "rows.cu"
    tests: str = ""  # of the emulation that are enough to see it, as pytest's -k
    may_fuse: bool = False  # compiled without the flag that keeps products and sums apart


ONE_READ = "const uint4 read = __ldg(reinterpret_cast<const uint4*>(items));"
FOUR_READS = """const auto* const at = reinterpret_cast<const unsigned*>(items);
        const uint4 read = make_uint4(__ldg(at), __ldg(at + 1), __ldg(at + 2), __ldg(at + 3));"""
ONE_WRITE = "__stcs(reinterpret_cast<float4*>(out + i),"
FOUR_WRITES = (
    "const auto four = [](float* at, float4 v) { at[0] = v.x; at[1] = v.y; at[2] = v.z; at[3] = v.w; }; four(out + i,"
)
RESIDENT = "__launch_bounds__(kThreads, 6) means_kernel"
DIVISION = "return __fdiv_rn(sum, static_cast<float>(n_heads));"
ADDITION = "return __fadd_rn(sum, weight);"
NO_DIVISION = ("selection.cuh", DIVISION, "return n_heads == 0 ? 0.0F : sum;")

STATIC = {
    "a vector load becomes four": Plant((("items.cuh", ONE_READ, FOUR_READS),), "narrow"),
    "a vector store becomes four": Plant((("items.cuh", ONE_WRITE, FOUR_WRITES),), "narrow"),
    "registers are spilled": Plant((("rows.cu", RESIDENT, RESIDENT.replace("6", "16")),), "local_memory"),
    "an array lies in local memory": Plant(
        (
            (
                "edges.cu",
                "float weight[1];",
                "volatile float kept[8];\n        kept[h % 8] = sum;\n        float weight[1];",
            ),
        ),
        "local_memory",
        "edges.cu",
    ),
    "too many registers": Plant(
        (
            ("rows.cu", RESIDENT, RESIDENT.replace("6", "1")),
            ("rows.cu", "8 / kWide<Item>, kWide<Item>>", "32 / kWide<Item>, kWide<Item>>"),
        ),
        "over_budget",
    ),
    "too much shared memory": Plant(
        (("columns.cu", "constexpr int kTile = 1024;", "constexpr int kTile = 8192;"),), "over_budget", "columns.cu"
    ),
    "a fused product is written": Plant((("selection.cuh", ADDITION, "return fmaf(weight, 1.5F, sum);"),), "inexact"),
    "the compiler may fuse": Plant(
        (("selection.cuh", ADDITION, "return sum + weight * 1.5F;"),), "inexact", may_fuse=True
    ),
    "a quotient is approximate": Plant(
        (("selection.cuh", DIVISION, "return __fdividef(sum, static_cast<float>(n_heads));"),), "inexact"
    ),
    "machine code fuses": Plant((NO_DIVISION, ("selection.cuh", ADDITION, "return fmaf(weight, 1.5F, sum);")), "fused"),
    "64 bits are divided": Plant(
        (("edges.cu", "divided(unit, n_tiles);", "Divided{unit / n_tiles.value, unit % n_tiles.value};"),),
        "long_division",
        "edges.cu",
    ),
    "inline assembly": Plant(
        (("rows.cu", "float means[Way::kReads][kCount];", 'asm("");\n        float means[Way::kReads][kCount];'),),
        "not_plain",
    ),
}

INSIDE = "first + r * step < n_keys};"
TURNED = "means[r][0];\n        }\n        __syncthreads();"
OUT_ON_16 = "reinterpret_cast<std::uintptr_t>(device_out) % 16 == 0 && pattern.seq_k"
MADE = "if (key >= n_keys) continue;\n        float weights"
RACE = r"race in {} memory: .* by thread \d+ of block \d+, which nothing orders: thread \(\d+, 0, 0\) of block \(\d+, 0, 0\)"
UNWRITTEN = "a read of what nobody wrote"
PLACED = "sorted[places[digit] + before] = item;\n        __syncwarp();"
TAKEN = "is_equal && my_equal < threshold.wanted"
LAST_GROUP = "greatest_of_lanes(mine.key == key ? mine.group : 0)"
LAST_ITEM = "const unsigned taken = greatest_of_lanes(found == kNone ? 0 : found);"
LISTED = "line.heads[first + h] * head_stride"
KEY_STEP = "const std::int64_t stride = lines.key.query_stride"
WINDOW = "lines.is_causal, lines.window}"

EMULATED = {
    "a barrier is missing": Plant(
        (("columns.cu", TURNED, TURNED.replace("__syncthreads();", "")),), RACE.format("shared"), tests="columns"
    ),
    "a barrier is not reached by all": Plant(
        (("columns.cu", TURNED, TURNED.replace("__syncthreads", "if (threadIdx.x < 99) __syncthreads")),),
        "diverged",
        tests="columns",
    ),
    "any list is taken for a sequence": Plant(
        (("columns.cu", "if (positions[i] != positions[0] + i) return false;", ""),), "differ", tests="columns"
    ),
    "keys in sequence are read 16 bytes at a time wherever they begin": Plant(
        (("columns.cu", "positions[0] % n == 0", "n > 0"),), "misaligned", tests="columns"
    ),
    "layers of several dtypes are taken for one": Plant(
        (("runs.cuh", "layer.dtype == first.dtype && ", ""),), "differ|outside", tests="dtypes"
    ),
    "lanes of a warp race": Plant(
        (("top_k_radix.cu", PLACED, PLACED.replace("__syncwarp();", "")),), RACE.format("shared"), tests="top_k"
    ),
    "a sum is not atomic": Plant(
        (("top_k_radix.cu", "atomicAdd(&places[digit_at(items[i])], 1U);", "++places[digit_at(items[i])];"),),
        RACE.format("shared"),
        tests="top_k",
    ),
    "blocks share their scratch": Plant(
        (("top_k_radix.cu", "scratch + blockIdx.x * k", "scratch"),), RACE.format("device"), tests="top_k"
    ),
    "what is written is read through __ldg": Plant(
        (("top_k_radix.cu", "position_of(items[i]);\n", "position_of(__ldg(items + i));\n"),),
        "a read through __ldg of what this launch writes",
        tests="top_k",
    ),
    "counts are not cleared": Plant(
        (("top_k_radix.cu", "shared.counts[w][threadIdx.x] = 0;", "if (w == 0) shared.counts[w][threadIdx.x] = 0;"),),
        UNWRITTEN,
        tests="top_k",
    ),
    "groups are not filled up to the end of their row": Plant(
        (("top_k.cu", "slot < n_slots", "piece < pieces.n"),), UNWRITTEN, tests="top_k"
    ),
    "lines are read that a bundle lacks": Plant(
        (("factored_products.cuh", "if (l < bundle.n_lines) read", "read"),), UNWRITTEN, tests="factored"
    ),
    "a line is not written": Plant(
        (("rows.cu", "if (index >= lines.n_lines) return;", "if (index >= lines.n_lines - 1) return;"),),
        r"a copy whose byte \d+ nobody wrote",
        tests="rows",
    ),
    "a tile in sequence is one query too long": Plant(
        (("columns.cu", "first_key < tile.n_chosen && query < tile.n_queries}", "first_key < tile.n_chosen}"),),
        "outside",
        tests="columns",
    ),
    "shared memory is a row too short": Plant(
        (("columns.cu", "float turned[kTile + kMostChosen];", "float turned[kTile];"),),
        "outside of every __shared__ variable",
        tests="columns",
    ),
    "one listed key too many": Plant(
        (("edges.cu", "index >= n_lines || to >= n_to", "index >= n_lines || to > n_to"),), "outside", tests="edges"
    ),
    "wide writes wherever the result lies": Plant(
        (("rows.cu", OUT_ON_16, "pattern.seq_k"),), "misaligned: a write of 16 bytes", tests="alignment"
    ),
    "a key stays a score": Plant(
        (("factored_weights.cuh", MADE, MADE.replace("n_keys", "n_keys - kCount")),), "are off", tests="factored"
    ),
    "sums of blocks are not rescaled": Plant(
        (("factored_weights.cuh", "parts[b].sum * expf(parts[b].greatest - base)", "parts[b].sum"),),
        "are off",
        tests="factored",
    ),
    "one item too many is read": Plant((("rows.cu", INSIDE, INSIDE.replace("<", "<=")),), "outside", tests="rows"),
    "one line too many is written": Plant(
        (("rows.cu", "if (index >= lines.n_lines) return;", "if (index > lines.n_lines) return;"),),
        "outside",
        tests="rows",
    ),
    "wide reads of rows that lie anywhere": Plant(
        (("selection.cuh", "steps % 16 == 0", "steps % 8 == 0"),), "misaligned", tests="alignment"
    ),
    "wide reads of heads that lie anywhere": Plant(
        (("selection.cuh", "if (pattern.n_heads > 1) steps |= pattern.head_stride;", ""),),
        "misaligned",
        tests="every_stride",
    ),
    "wide reads of batches that lie anywhere": Plant(
        (("selection.cuh", "if (pattern.batch_size > 1) steps |= pattern.batch_stride;", ""),),
        "misaligned",
        tests="every_stride",
    ),
    "offsets of heads in 32 bits": Plant(
        (("heads.cuh", LISTED, f"static_cast<int>({LISTED})"),), "outside", tests="gigabytes"
    ),
    "steps from key to key in 32 bits": Plant(
        (("factored_products.cuh", KEY_STEP, KEY_STEP.replace("std::int64_t", "int")),), "outside", tests="gigabytes"
    ),
    "windows in 32 bits": Plant(
        (("factored_scores.cuh", WINDOW, WINDOW.replace("lines.window", "static_cast<int>(lines.window)")),),
        "differ",
        tests="billions",
    ),
    "powers that overflow": Plant(
        (("factored_weights.cuh", "distance > 88.0F ? 88.0F : distance", "distance"),), "are off", tests="normalisers"
    ),
    "ties go to the higher group": Plant(
        (("top_k.cu", "least_of_lanes(mine.key == key ? mine.group : ~0U)", LAST_GROUP),), "differ", tests="top_k"
    ),
    "ties go to the higher item of a group": Plant(
        (("top_k.cu", "const unsigned taken = least_of_lanes(found);", LAST_ITEM),), "differ", tests="top_k"
    ),
    "an item is taken twice": Plant(
        (("top_k.cu", "place.position > other.position", "place.position >= other.position"),),
        RACE.format("device"),
        tests="top_k",
    ),
    "a line is taken to begin with a piece": Plant(
        (("top_k.cu", "piece * kItems - skew", "piece * kItems"),), "misaligned|outside", tests="top_k"
    ),
    "of equal weights the last are taken": Plant(
        (("top_k_radix.cu", TAKEN, TAKEN.replace("<", ">=")),), f"{UNWRITTEN}|race in device", tests="top_k"
    ),
    "NaN comes first": Plant(
        (("top_k.cuh", "if (weight != weight) return 1;", "if (weight != weight) return ~0U;"),),
        RACE.format("device"),
        tests="top_k",
    ),
    "-0 is less than +0": Plant((("top_k.cuh", "weight == 0 ? 0.0F : weight", "weight"),), "differ", tests="top_k"),
    "heads are added backwards": Plant(
        (("heads.cuh", LISTED, LISTED.replace("first + h", "n_heads - 1 - first - h")),), "differ", tests="rows"
    ),
    "the sign of zero is lost": Plant((("selection.cuh", "0.0F : -0.0F", "0.0F : 0.0F"),), "differ"),
}
