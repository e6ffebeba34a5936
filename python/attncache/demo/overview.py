"""The three questions to every layer of the sample, a line each."""

from __future__ import annotations

import numpy as np

from attncache.demo.answers import (
    LEFT_OUT,
    about_the_sink,
    each,
    edge_cells,
    key_cells,
    pairs,
    strongest,
)
from attncache.demo.sample import Choice, Sample, quoted, whose
from attncache.text import bar, heading, label, numbered_lines, paragraph

EDGES_PER_LAYER = 2  # more would not fit on one line


def overview(sample: Sample, choice: Choice) -> list[str]:
    """The three questions to every layer, a line each."""
    return [
        *from_position_in_every_layer(sample, choice),
        *to_first_token_in_every_layer(sample, choice),
        *edges_of_every_layer(sample, choice),
        *suggestion(sample),
    ]


def from_position_in_every_layer(sample: Sample, choice: Choice) -> list[str]:
    """What one token attends to, layer by layer."""
    found = sample.cache.top_k(choice.top, positions=choice.position, heads=choice.heads)
    answers = [pairs(*answer) for answer in zip(*found, strict=True)]
    return [
        *heading(
            f"What does {quoted(sample, choice.position)} attend to? ({whose(sample, choice)})",
            f"cache.top_k({choice.top}, positions={choice.position}{choice.keywords})",
        ),
        "layer  its heaviest keys: number, token, weight",
        *numbered_lines(key_cells(sample, answers)),
    ]


def to_first_token_in_every_layer(sample: Sample, choice: Choice) -> list[str]:
    """Who attends to the first token, layer by layer: the heads apart, or the queries of the one head."""
    columns = sample.cache.columns(positions=0, heads=choice.heads)[:, 1:]
    heaviest = sample.cache.top_k(1, heads=choice.heads).positions[:, 1:, 0]
    if choice.head is None:
        parts = sample.cache.columns(positions=0, heads=None)[..., 1:].mean(axis=-1)
        names = [f"head {head}" for head in range(parts.shape[1])]
    else:
        parts = columns
        names = [f"{query:2} {label(token)}" for query, token in enumerate(sample.tokens)][1:]
    lines = ["layer  mean weight                heaviest key of   most of all        least of all"]
    for layer, (column, keys, part) in enumerate(zip(columns, heaviest, parts, strict=True)):
        share = f"{int((keys == 0).sum()):2} of {len(keys)} queries"
        most, least = (f"{names[which]} {part[which]:.2f}" for which in (int(part.argmax()), int(part.argmin())))
        lines.append(f"{layer:5}  {column.mean():.2f} {bar(float(column.mean()))}  {share}  {most:<17}  {least}")
    return [
        *heading(
            f"Who attends to {quoted(sample, 0)}, the first token? ({whose(sample, choice)})",
            f"cache.columns(positions=0{choice.keywords}); cache.top_k(1{choice.keywords}).positions == 0",
        ),
        *paragraph(about_the_sink(sample), "   "),
        "",
        *lines,
    ]


def edges_of_every_layer(sample: Sample, choice: Choice) -> list[str]:
    """The strongest single weights, layer by layer."""
    weights = sample.cache.edges(None, None, heads=each(choice))
    answers = [strongest(layer, choice, EDGES_PER_LAYER) for layer in weights]
    return [
        *heading(
            "Which edges are the strongest? (query → key, every head on its own)",
            f"cache.edges(None, None{choice.keywords})",
        ),
        *paragraph(LEFT_OUT, "   "),
        "",
        "layer  head, query → key, weight",
        *numbered_lines(edge_cells(sample, answers)),
    ]


def suggestion(sample: Sample) -> list[str]:
    """Where to look next: the head that best finds what followed the last token when it occurred before."""
    last = len(sample.tokens) - 1
    before = [position for position in range(last) if sample.tokens[position] == sample.tokens[last]]
    if sample.next_token is None or not before:
        return []
    weights = sample.cache.edges(last, before[-1] + 1)
    layer, head = np.unravel_index(int(weights.argmax()), weights.shape)
    followed = quoted(sample, before[-1] + 1)
    text = (
        f"Look closer: {sample.command} --layer {layer} --head {head}. At the last token, that head looks up what "
        f"followed the same word before: {followed}, weight {weights.max():.2f}. "
        f'The model goes on with "{label(sample.next_token)}".'
    )
    return ["", *paragraph(text)]
