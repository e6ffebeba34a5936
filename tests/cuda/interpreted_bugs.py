"""Bugs to plant into the kernels' sources, each with the question that meets it and the check that must find it."""

from __future__ import annotations

from dataclasses import dataclass

from cuda.interpreted_cases import Run, asked, factored, normal, ranked
from tests.support.patterns import make

SCATTERED = "sorted[places[digit] + before] = item;\n        __syncwarp();"
COUNTED = "if (is_item && before == 0) places[digit] += __popc(same);\n        __syncwarp();"
TURNED = "means[r][0];\n        }\n        __syncthreads();"
NEXT_TILE = "__syncthreads();  // before the next tile overwrites this one"
COMPARED = "__syncwarp();  // before a group is overwritten that other lanes have compared"
OVERWRITTEN = "key_at(groups, best.group) = key;\n        __syncwarp();"
MADE = "if (key >= n_keys) continue;\n        float weights"
WEIGHTS = "factored_weights.cuh"
IN_SEQUENCE = "[query % 4] = means[r][i];\n            }\n        }\n        __syncthreads();"
NEXT_IN_SEQUENCE = "__syncthreads();  // before the next tile takes its place"
INSIDE = "first + r * step < n_keys};"
BY_ITEM = "write_lines<Way, Item>(lines);"
BY_16_BYTES = f"if (lines.n_units == 0) {BY_ITEM}\n    write_lines<OfMean<Item>, Item>(lines);"
LISTED = "line.heads[first + h] * head_stride"
ANSWER = "answer"  # the checker that is the comparison with the reference


@dataclass(frozen=True)
class Bug:
    """Edits of one source, or of a file it includes (what stands there once, what to put there), and what must find them."""

    source: str
    edits: tuple[tuple[str, str], ...]
    question: Run
    found_by: str
    blocks: int | None = None
    included: str | None = None


heads = make("extremes", (1, 5, 9, 40), "float16")
columns = asked("columns", [make("soft", (1, 2, 70, 41))], range(41), mean=True)
whole = make("extremes", (1, 5, 68, 72), "float16")
in_sequence = asked("columns", [whole], range(72), mean=True)
rows = asked("rows", [heads], range(9), mean=True)
ties = make("ties", (1, 1, 3, 700))[0, 0]
plain = make("soft", (1, 1, 3, 700))[0, 0]
qk = normal("float16", 1, 2, 3, 24), normal("float16", 1, 1, 700, 24)

BUGS = {
    "a barrier dropped": Bug("columns.cu", ((TURNED, TURNED.replace("__syncthreads();", "")),), columns, "race"),
    "a barrier dropped between tiles": Bug("columns.cu", ((NEXT_TILE, ""),), columns, "race", blocks=1),
    "a barrier dropped among keys in sequence": Bug(
        "columns.cu", ((IN_SEQUENCE, IN_SEQUENCE.replace("__syncthreads();", "")),), in_sequence, "race"
    ),
    "a barrier dropped between tiles in sequence": Bug(
        "columns.cu", ((NEXT_IN_SEQUENCE, ""),), in_sequence, "race", blocks=1
    ),
    "a tile in sequence one query too long": Bug(
        "columns.cu",
        (("first_key < tile.n_chosen && query < tile.n_queries}", "first_key < tile.n_chosen}"),),
        in_sequence,
        "bounds",
    ),
    "a barrier that some skip": Bug(
        "columns.cu", ((NEXT_TILE, f"if (threadIdx.x != 7) {NEXT_TILE}"),), columns, "barrier"
    ),
    "a warp's barrier dropped": Bug(
        "top_k_radix.cu", ((SCATTERED, SCATTERED.replace("__syncwarp();", "")),), ranked(ties, 600), "race"
    ),
    "a warp's second barrier dropped": Bug(
        "top_k_radix.cu", ((COUNTED, COUNTED.replace("__syncwarp();", "")),), ranked(ties, 600), "race"
    ),
    "a sum that is not atomic": Bug(
        "top_k_radix.cu",
        (("atomicAdd(&places[digit_at(items[i])], 1U);", "++places[digit_at(items[i])];"),),
        ranked(ties, 600),
        "race",
    ),
    "blocks that share their scratch": Bug(
        "top_k_radix.cu", (("scratch + blockIdx.x * k", "scratch"),), ranked(ties, 600), "race"
    ),
    "read-only loads of what is written": Bug(
        "top_k_radix.cu",
        (("position_of(items[i]);\n", "position_of(__ldg(items + i));\n"),),
        ranked(plain, 600),
        "race",
    ),
    "a warp's barrier dropped before a group is overwritten": Bug(
        "top_k.cu", ((COMPARED, ""),), ranked(ties, 30), "race"
    ),
    "a warp's barrier dropped before groups are compared": Bug(
        "top_k.cu", ((OVERWRITTEN, OVERWRITTEN.replace("__syncwarp();", "")),), ranked(plain, 30), "race"
    ),
    "groups that are not filled up to the end of their row": Bug(
        "top_k.cu", (("slot < n_slots", "piece < pieces.n"),), ranked(plain, 5), "uninitialised"
    ),
    "an item taken twice": Bug(
        "top_k.cu", (("place.position > other.position", "place.position >= other.position"),), ranked(ties, 30), ANSWER
    ),
    "one key too many": Bug("rows.cu", ((INSIDE, INSIDE.replace("<", "<=")),), rows, "bounds"),
    "one listed key too many": Bug(
        "edges.cu",
        (("index >= n_lines || to >= n_to", "index >= n_lines || to > n_to"),),
        asked("edges", [heads], [3], [1, 2, 4], mean=True),
        "bounds",
    ),
    "shared memory one row too short": Bug(
        "columns.cu", (("float turned[kTile + kMostChosen];", "float turned[kTile];"),), columns, "bounds"
    ),
    "wide loads wherever rows lie": Bug(
        "rows.cu",
        ((BY_ITEM, BY_16_BYTES),),
        asked("rows", [heads], range(9), mean=True, shift=4),
        "alignment",
    ),
    "wide stores wherever the result lies": Bug(
        "rows.cu",
        ((BY_ITEM, BY_16_BYTES),),
        asked("rows", [heads], range(9), mean=True, out_shift=4),
        "alignment",
    ),
    "counts that are not cleared": Bug(
        "top_k_radix.cu", (("shared.counts[w][threadIdx.x] = 0;", ";"),), ranked(plain, 600), "uninitialised"
    ),
    "a line that is not written": Bug(
        "rows.cu",
        (("if (index >= lines.n_lines) return;", "if (index >= lines.n_lines - 1) return;"),),
        rows,
        "uninitialised",
    ),
    "a key that stays a score": Bug(
        "factored_rows.cu",
        ((MADE, MADE.replace("n_keys", "n_keys - kCount")),),
        factored(*qk, [0, 2], causal=False),
        ANSWER,
        included=WEIGHTS,
    ),
    "a barrier dropped in a softmax": Bug(
        "factored_rows.cu",
        (
            (
                "greatest = greater_of(greatest, of_warps[w]);\n    __syncthreads();",
                "greatest = greater_of(greatest, of_warps[w]);",
            ),
        ),
        factored(*qk, [0, 2], causal=False),
        "race",
        included=WEIGHTS,
    ),
    "the last of equal weights": Bug(
        "top_k_radix.cu",
        (("(is_equal && my_equal < threshold.wanted)", "(is_equal && my_equal >= threshold.wanted)"),),
        ranked(ties, 600),
        "race",
    ),
    "heads added backwards": Bug(
        "rows.cu",
        ((LISTED, LISTED.replace("first + h", "n_heads - 1 - first - h")),),
        rows,
        ANSWER,
        included="heads.cuh",
    ),
    "block sums that are not rescaled": Bug(
        "factored_rows.cu",
        (("parts[b].sum * expf(parts[b].greatest - base)", "parts[b].sum"),),
        factored(*qk, [0, 2], causal=False),
        ANSWER,
        included=WEIGHTS,
    ),
    "lines that a bundle lacks": Bug(
        "factored_rows.cu",
        (("if (l < bundle.n_lines) read", "read"),),
        factored(*qk, [0], causal=False),
        "uninitialised",
        included="factored_products.cuh",
    ),
}
