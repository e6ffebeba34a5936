"""The three questions to one layer of the sample, at length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attncache.demo.answers import (
    LEFT_OUT,
    Key,
    about_the_sink,
    each,
    edge_cells,
    key_cells,
    pairs,
    strongest,
)
from attncache.demo.sample import Choice, Sample, quoted, whose
from attncache.text import bar, heading, label, numbered_lines, paragraph

KEYS_PER_HEAD = 4


def one_layer(sample: Sample, choice: Choice) -> list[str]:
    """The three questions to one layer, at length."""
    return [*from_position(sample, choice), *to_first_token(sample, choice), *edges(sample, choice)]


def from_position(sample: Sample, choice: Choice) -> list[str]:
    """What one token attends to in one layer, on the mean or in one head, and then in each head."""
    layer, position = choice.layer, choice.position
    (answer,) = [pairs(*sample.cache.top_k(choice.top, layers=layer, positions=position, heads=choice.heads))]
    lines = [
        *heading(
            f"Layer {layer}: what does {quoted(sample, position)} attend to? ({whose(sample, choice)})",
            f"cache.top_k({choice.top}, positions={position}{choice.keywords})",
        ),
        *bars(sample, answer),
    ]
    if choice.head is not None:
        return lines
    found = sample.cache.top_k(KEYS_PER_HEAD, layers=layer, positions=position, heads=None)
    cells = key_cells(sample, [pairs(*answer) for answer in zip(*found, strict=True)])
    return [*lines, "", " head  its heaviest keys: number, token, weight", *numbered_lines(cells)]


def to_first_token(sample: Sample, choice: Choice) -> list[str]:
    """Who attends to the first token in one layer, and how much each head does."""
    layer = choice.layer
    column = sample.cache.columns(layer, 0, heads=choice.heads)
    keys = sample.cache.top_k(1, layers=layer, heads=choice.heads).positions[:, 0]
    order = np.argsort(-column[1:], kind="stable")[: choice.top] + 1
    share = f"{int((keys[1:] == 0).sum())} of {len(keys) - 1} queries"
    lines = [
        *heading(
            f"Layer {layer}: who attends to {quoted(sample, 0)}, the first token? ({whose(sample, choice)})",
            f"cache.columns(positions=0{choice.keywords})",
        ),
        *paragraph(about_the_sink(sample), "   "),
        "",
        f"   mean weight {column[1:].mean():.3f}; heaviest key of {share}; most of all:",
        *bars(sample, [(int(query), float(column[query])) for query in order]),
    ]
    if choice.head is not None:
        return lines
    means = sample.cache.columns(layer, 0, heads=None)[:, 1:].mean(axis=1)
    return [
        *lines,
        "",
        " head  mean weight",
        *(f"{head:5}  {mean:.3f} {bar(float(mean))}" for head, mean in enumerate(means)),
    ]


def edges(sample: Sample, choice: Choice) -> list[str]:
    """The strongest single weights of one layer."""
    found = strongest(sample.cache.edges(None, None, layers=choice.layer, heads=each(choice)), choice, choice.top)
    cells = edge_cells(sample, [[edge] for edge in found])
    return [
        *heading(
            f"Layer {choice.layer}: which edges are the strongest? (query → key, every head on its own)",
            f"cache.edges(None, None{choice.keywords})",
        ),
        *paragraph(LEFT_OUT, "   "),
        "",
        *(f"   {cell} {bar(edge[3])}" for (cell,), edge in zip(cells, found, strict=True)),
    ]


def bars(sample: Sample, answer: Sequence[Key]) -> list[str]:
    """Positions and weights, a line and a bar each."""
    return [f"   {key:2} {label(sample.tokens[key]):<12} {weight:.3f} {bar(weight)}" for key, weight in answer]
