"""``attncache top``: what a position attends to most, or who attends to it, in one layer or in every layer."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from attncache.commands.command import (
    Answer,
    Command,
    add_layer_options,
    at_least_one,
    contents_for,
    one_cache,
    path_of,
)
from attncache.files.contents import Contents
from attncache.text import WeighedKey, bar, label, numbered_lines, weight_cells
from attncache.tokens import Described, answer_tokens

EXAMPLES = """\
examples:
  attncache top sample --layer 17                 what the last token attends to, in the mean over heads
  attncache top sample --layer 17 --head 4 -k 3   in one head
  attncache top sample --position 7 --to          who attends to token 7, a line per layer
  attncache top run.safetensors --layer -1 --position 5 --json
"""
Heads: TypeAlias = int | Literal["mean"]


class LayerAnswer(NamedTuple):
    """The heaviest of one layer.

    Attributes:
        layer, position: which, counted from 0.
        token: of the position; None where there is none.
        n_heads: of the layer.
        top: position, token and weight of each, heaviest first.
    """

    layer: int
    position: int
    token: str | None
    n_heads: int
    top: list[WeighedKey]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where to look, and at how many."""
    option = parser.add_argument
    option("path", metavar="PATH", help="a file or a cache's directory, or the word sample")
    option("--layer", type=int, metavar="L", help="one layer (default: a line for each)")
    option("--position", type=int, default=-1, metavar="P", help="the position to ask about (default: the last)")
    option("-k", type=at_least_one, default=5, metavar="K", help="how many (default: 5)")
    option("--head", type=head, default="mean", metavar="H", help='one head, or "mean" over heads (the default)')
    option("--batch", type=int, default=0, metavar="B", help="the batch item (default: 0)")
    option("--to", action="store_true", help="who attends to the position (default: what it attends to)")
    add_layer_options(parser)


def head(text: str) -> Heads:
    """A head's number, or the mean of all."""
    return "mean" if text == "mean" else int(text)


def answers(arguments: argparse.Namespace) -> Iterator[Answer]:
    """The heaviest of the layers asked for."""
    contents = contents_for(one_cache(path_of(arguments.path)), arguments)
    n_layers = len(contents.layers)
    if arguments.layer is None:
        layers = range(n_layers)
    elif -n_layers <= arguments.layer < n_layers:
        layers = range(n_layers)[arguments.layer :][:1]
    else:
        raise IndexError(f"layer {arguments.layer} is out of range for n_layers={n_layers}")
    found = [ask(contents, layer, arguments) for layer in layers]
    title = arguments.path + ("" if arguments.layer is None else f", layer {layers[0]}")
    yield Answer([f"{title}: {question(found, arguments)}", "", *shown(found, arguments)], value_of(found, arguments))


def ask(contents: Contents, layer: int, arguments: argparse.Namespace) -> LayerAnswer:
    """The heaviest of one layer.

    Raises:
        IndexError: position, head or batch is out of range for this layer.
    """
    cache = contents.layers[layer].asked()
    direction: Literal["from", "to"] = "to" if arguments.to else "from"
    try:
        positions, weights = cache.top_k(
            arguments.k,
            layers=0,
            positions=arguments.position,
            heads=arguments.head,
            batch=arguments.batch,
            direction=direction,
        )
    except IndexError as error:
        raise IndexError(f"layer {layer}: {error}") from error
    _, n_heads, seq_q, seq_k = cache.shapes[0]
    position = range(seq_k if arguments.to else seq_q)[arguments.position]
    described = Described(contents.said.tokens, cache.query_tokens, cache.shapes, cache.sources)
    answered, asked = (
        answer_tokens(described, 0, arguments.batch, way)
        for way in (("to", "from") if arguments.to else ("from", "to"))
    )
    top = [
        WeighedKey(key, answered.token((), key) if answered else None, weight)
        for key, weight in zip(positions.tolist(), weights.tolist(), strict=True)
    ]
    return LayerAnswer(layer, position, asked.token((), position) if asked else None, n_heads, top)


def question(found: Sequence[LayerAnswer], arguments: argparse.Namespace) -> str:
    """What was asked, as a sentence."""
    places = {(answer.position, answer.token) for answer in found}
    position, token = places.pop() if len(places) == 1 else (arguments.position, None)
    what = f"position {position}" if token is None else f'token {position} "{label(token)}"'
    sizes = {answer.n_heads for answer in found}
    n_heads = sizes.pop() if len(sizes) == 1 else None
    if arguments.head == "mean":
        whose = "mean of heads" if n_heads is None else f"mean of {n_heads} heads"
    else:
        whose = f"head {arguments.head if n_heads is None else range(n_heads)[arguments.head]}"
    batch = f", batch item {arguments.batch}" if arguments.batch else ""
    return f"{'who attends to ' + what if arguments.to else f'what does {what} attend to'}? ({whose}{batch})"


def shown(found: Sequence[LayerAnswer], arguments: argparse.Namespace) -> list[str]:
    """A bar for each of one layer, or a line for each layer."""
    if arguments.layer is not None:
        top = found[0].top
        cells = weight_cells([[key] for key in top], digits=3)
        return [f"   {cell} {bar(key.weight)}" for (cell,), key in zip(cells, top, strict=True)]
    has_tokens = any(key.token is not None for answer in found for key in answer.top)
    who = "queries" if arguments.to else "keys"
    header = f"layer  its heaviest {who}: number, {'token, ' if has_tokens else ''}weight"
    return [header, *numbered_lines(weight_cells([answer.top for answer in found]))]


def value_of(found: Sequence[LayerAnswer], arguments: argparse.Namespace) -> dict[str, Any]:
    """The same for a program."""
    return {
        "path": str(path_of(arguments.path)),
        "k": arguments.k,
        "direction": "to" if arguments.to else "from",
        "heads": arguments.head,
        "batch": arguments.batch,
        "layers": [
            {
                "layer": answer.layer,
                "position": answer.position,
                "token": answer.token,
                "top": [key._asdict() for key in answer.top],
            }
            for answer in found
        ],
    }


COMMAND = Command(
    name="top",
    summary="what a position attends to most, or who attends to it",
    description="Shows the heaviest keys of a query, or with --to the heaviest queries of a key, of a file or a cache on disk:\n"
    "heaviest first, equal weights by position. Only the layers asked for are read. Numbers below zero count from\n"
    "the end.",
    examples=EXAMPLES,
    add_options=add_options,
    answers=answers,
)
