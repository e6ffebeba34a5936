"""Turns answers of the cache into pairs and edges, and those into cells of text; used by the pages of the demo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from attncache.demo.sample import Choice, Sample
from attncache.text import WeighedKey, column_widths, label, weight_cells

Weights = npt.NDArray[np.float32]
Key = tuple[int, float]
Edge = tuple[int, int, int, float]

LEFT_OUT = "Left out: edges to token 0 (the attention sink, above) and edges from a token to itself."


def about_the_sink(sample: Sample) -> str:
    """Why the first token is worth a question, and which queries are counted."""
    resting = "Heads with nothing to do rest on the first token (the attention sink). Token 0 itself"
    return f"{resting} {'can attend to nothing else and is' if sample.is_causal else 'is'} not counted."


def pairs(positions: npt.NDArray[np.int64], weights: Weights) -> list[Key]:
    """One answer of top_k as pairs, without the keys of weight 0: the causal mask hides those."""
    return [(int(key), float(weight)) for key, weight in zip(positions, weights, strict=True) if weight != 0]


def strongest(weights: Weights, choice: Choice, n: int) -> list[Edge]:
    """The n heaviest (head, query, key, weight) of [head, query, key], without token 0 and without self."""
    weights = weights.copy()
    weights[:, :, 0] = -1
    itself = np.arange(min(weights.shape[1:]))
    weights[:, itself, itself] = -1
    order = np.argsort(-weights, axis=None, kind="stable")[:n]
    return [
        (int(head) if choice.head is None else choice.head, int(query), int(key), float(weights[head, query, key]))
        for head, query, key in zip(*np.unravel_index(order, weights.shape), strict=True)
        if weights[head, query, key] > 0
    ]


def each(choice: Choice) -> list[int] | None:
    """The heads to look at one by one, as a selection that keeps their axis."""
    return None if choice.head is None else [choice.head]


def key_cells(sample: Sample, answers: Sequence[Sequence[Key]]) -> list[list[str]]:
    """Answers of (position, weight) as cells with tokens."""
    return weight_cells([[WeighedKey(key, sample.tokens[key], weight) for key, weight in answer] for answer in answers])


def edge_cells(sample: Sample, answers: Sequence[Sequence[Edge]]) -> list[list[str]]:
    """Answers of (head, query, key, weight) as cells, the n-th of every answer equally wide."""
    tokens = [f"{position:2} {label(token)}" for position, token in enumerate(sample.tokens)]
    froms = column_widths([[tokens[query] for _, query, _, _ in answer] for answer in answers])
    tos = column_widths([[tokens[key] for _, _, key, _ in answer] for answer in answers])
    return [
        [
            f"head {head}  {tokens[query]:<{wide}} → {tokens[key]:<{broad}} {weight:.2f}"
            for (head, query, key, weight), wide, broad in zip(answer, froms, tos, strict=False)
        ]
        for answer in answers
    ]
