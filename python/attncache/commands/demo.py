"""``attncache demo``: three questions to the small real model that comes with attncache, and the time of one of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np

import attncache
from attncache import AttentionCache, text
from attncache.commands.command import Answer, Command, at_least_one
from attncache.files import read_patterns, sample_path
from attncache.text import WeighedKey, bar, column_widths, heading, label

EXAMPLES = """\
examples:
  attncache demo                      every layer, a line per question
  attncache demo --layer 17 --head 4  one head of one layer, at length
  attncache demo --position 7 --no-timing
"""
LEFT_OUT = "Left out: edges to token 0 (the attention sink, above) and edges from a token to itself."
SINK = "Heads with nothing to do rest on the first token (the attention sink); token 0 itself is not counted."
EDGES_PER_LAYER, KEYS_PER_HEAD = 2, 4  # as many as fit on one line
SHAPE, LAYERS = (1, 32, 1024, 1024), 4  # that is timed: 268 MB of float16, more than most processor caches hold
ROUNDS, QUESTIONS = 15, 64  # the answer is the median round of so many questions

Edge = tuple[int, int, int, float]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which layer, head and position, and how many answers."""
    option = parser.add_argument
    option("--layer", type=int, metavar="L", help="one layer at length (default: every layer, briefly)")
    option("--head", type=int, metavar="H", help="one head (default: the mean over heads)")
    option("--position", type=int, default=-1, metavar="P", help="the token to ask about (default: the last)")
    option("--top", type=at_least_one, default=5, metavar="N", help="how many answers to show (default: 5)")
    option("--no-timing", dest="timing", action="store_false", help="skip the comparison with NumPy")


@dataclass(frozen=True)
class View:
    """The sample in a cache, and what of it to show; every number counts from 0 and is in range."""

    cache: AttentionCache
    layer: int | None
    head: int | None
    position: int
    top: int

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the one text there is."""
        return tuple(map(str, self.cache.tokens or ()))

    @property
    def heads(self) -> int | Literal["mean"]:
        """The selection of heads as the cache takes it."""
        return "mean" if self.head is None else self.head

    @property
    def keywords(self) -> str:
        """The selection of layer and head as one would type it, with a comma in front of each."""
        layer = "" if self.layer is None else f", layers={self.layer}"
        return layer + ("" if self.head is None else f", heads={self.head}")

    @property
    def whose(self) -> str:
        """Whose weights the answer shows."""
        return f"mean of {self.cache.shapes[0][1]} heads" if self.head is None else f"head {self.head}"

    def quoted(self, position: int) -> str:
        """A token as it is named in a sentence."""
        return f'token {position} "{label(self.tokens[position])}"'

    def top_keys(self, k: int, heads: int | Literal["mean"] | None) -> list[list[WeighedKey]]:
        """The heaviest keys of the position in each layer or head, without keys of weight 0: the causal mask hides those."""
        found = self.cache.top_k(k, layers=self.layer, positions=self.position, heads=heads)
        rows = (each.reshape(-1, each.shape[-1]).tolist() for each in found)
        return [[self.key(*pair) for pair in zip(*row, strict=True) if pair[1]] for row in zip(*rows, strict=True)]

    def key(self, position: int, weight: float) -> WeighedKey:
        """A position with its token and weight."""
        return WeighedKey(position, self.tokens[position], weight)


def view_of(arguments: argparse.Namespace) -> View:
    """What the arguments choose of the sample.

    Raises:
        IndexError: layer, head or position is out of range.
    """
    file = read_patterns(sample_path())
    cache = AttentionCache.from_attentions(file.patterns, tokens=file.tokens)
    cache.metadata = file.metadata
    layer, head, position = arguments.layer, arguments.head, arguments.position
    cache.rows(layer or 0, position, heads=head or 0)
    _, n_heads, seq_q, _ = cache.shapes[0]
    return View(
        cache,
        layer=None if layer is None else range(cache.n_layers)[layer],
        head=None if head is None else range(n_heads)[head],
        position=range(seq_q)[position],
        top=arguments.top,
    )


def introduction(view: View) -> list[str]:
    """What the sample is, and its text."""
    cache = view.cache
    size = (
        f"{cache.n_layers} layers, {cache.shapes[0][1]} heads, {len(view.tokens)} tokens, {cache.nbytes / 1e6:.2f} MB"
    )
    title = f"attncache demo: {cache.metadata['model']}, {size} of {cache.dtypes[0]}"
    return [title, "", *text.numbered(view.tokens)]


def questions(view: View) -> list[list[str]]:
    """The head of each question: its words, the calls that answer it, and which weights are no answer."""
    at, what = view.position, view.keywords
    asked = [
        (f"What does {view.quoted(at)} attend to? ({view.whose})", f"cache.top_k({view.top}, positions={at}{what})"),
        (
            f"Who attends to {view.quoted(0)}, the first token? ({view.whose})",
            f"cache.columns(positions=0{what}); cache.top_k(1{what}).positions == 0",
        ),
        ("Which edges are the strongest? (query → key, every head on its own)", f"cache.edges(None, None{what})"),
    ]
    if view.layer is not None:
        asked = [(f"Layer {view.layer}: {words[0].lower()}{words[1:]}", call) for words, call in asked]
    notes = [[], [*text.paragraph(SINK, "   "), ""], [*text.paragraph(LEFT_OUT, "   "), ""]]
    return [[*heading(*question), *note] for question, note in zip(asked, notes, strict=True)]


def overview(view: View) -> list[str]:
    """The three questions to every layer, a line each."""
    columns = view.cache.columns(positions=0, heads=view.heads)[:, 1:]
    heaviest = view.cache.top_k(1, heads=view.heads).positions[:, 1:, 0]
    if view.head is None:
        shares = view.cache.columns(positions=0, heads=None)[..., 1:].mean(axis=-1)
        names = [f"head {head}" for head in range(shares.shape[1])]
    else:
        shares, names = columns, [f"{query:2} {label(token)}" for query, token in enumerate(view.tokens)][1:]
    sinks = []
    for layer, (column, keys, share) in enumerate(zip(columns, heaviest, shares, strict=True)):
        first = f"{int((keys == 0).sum()):2} of {len(keys)} queries"
        most, least = (f"{names[which]} {share[which]:.2f}" for which in (int(share.argmax()), int(share.argmin())))
        sinks.append(f"{layer:5}  {column.mean():.2f} {bar(float(column.mean()))}  {first}  {most:<17}  {least}")
    edges = [strongest(view, layer, EDGES_PER_LAYER) for layer in range(view.cache.n_layers)]
    of_keys, of_sinks, of_edges = questions(view)
    return [
        *of_keys,
        "layer  its heaviest keys: number, token, weight",
        *text.numbered_lines(text.weight_cells(view.top_keys(view.top, view.heads))),
        *of_sinks,
        "layer  mean weight                heaviest key of   most of all        least of all",
        *sinks,
        *of_edges,
        "layer  head, query → key, weight",
        *text.numbered_lines(edge_cells(view, edges)),
        *suggestion(view),
    ]


def one_layer(view: View) -> list[str]:
    """The three questions to one layer, at length; each head of it too, unless one is chosen."""
    layer = view.layer or 0
    column = view.cache.columns(layer, 0, heads=view.heads)
    keys = view.cache.top_k(1, layers=layer, heads=view.heads).positions[1:, 0]
    order = np.argsort(-column[1:], kind="stable")[: view.top] + 1
    share = f"{int((keys == 0).sum())} of {len(keys)} queries"
    of_heads, means = [], []
    if view.head is None:
        of_heads = ["", " head  its heaviest keys: number, token, weight"]
        of_heads += text.numbered_lines(text.weight_cells(view.top_keys(KEYS_PER_HEAD, None)))
        by_head = view.cache.columns(layer, 0, heads=None)[:, 1:].mean(axis=1).tolist()
        means = ["", " head  mean weight", *(f"{head:5}  {mean:.3f} {bar(mean)}" for head, mean in enumerate(by_head))]
    found = strongest(view, layer, view.top)
    cells = edge_cells(view, [[edge] for edge in found])
    of_keys, of_sinks, of_edges = questions(view)
    return [
        *of_keys,
        *bars(view.top_keys(view.top, view.heads)[0]),
        *of_heads,
        *of_sinks,
        f"   mean weight {column[1:].mean():.3f}; heaviest key of {share}; most of all:",
        *bars([view.key(query, float(column[query])) for query in order.tolist()]),
        *means,
        *of_edges,
        *(f"   {cell} {bar(edge[3])}" for (cell,), edge in zip(cells, found, strict=True)),
    ]


def bars(keys: Sequence[WeighedKey]) -> list[str]:
    """Positions and weights, a line and a bar each."""
    return [f"   {key:2} {label(token or ''):<12} {weight:.3f} {bar(weight)}" for key, token, weight in keys]


def strongest(view: View, layer: int, n: int) -> list[Edge]:
    """The n heaviest (head, query, key, weight) of a layer's heads, without token 0 and without self."""
    heads = range(view.cache.shapes[layer][1]) if view.head is None else [view.head]
    weights = view.cache.edges(None, None, layers=layer, heads=heads)
    itself = np.arange(min(weights.shape[1:]))
    weights[:, :, 0] = weights[:, itself, itself] = -1
    order = np.argsort(-weights, axis=None, kind="stable")[:n]
    places = zip(*(axis.tolist() for axis in np.unravel_index(order, weights.shape)), strict=True)
    return [
        (heads[at], query, key, float(weights[at, query, key]))
        for at, query, key in places
        if weights[at, query, key] > 0
    ]


def edge_cells(view: View, answers: Sequence[Sequence[Edge]]) -> list[list[str]]:
    """Edges as cells, the n-th of every answer equally wide."""
    tokens = [f"{position:2} {label(token)}" for position, token in enumerate(view.tokens)]
    froms = column_widths([[tokens[query] for _, query, _, _ in answer] for answer in answers])
    tos = column_widths([[tokens[key] for _, _, key, _ in answer] for answer in answers])
    return [
        [
            f"head {head}  {tokens[query]:<{wide}} → {tokens[key]:<{broad}} {weight:.2f}"
            for (head, query, key, weight), wide, broad in zip(answer, froms, tos, strict=False)
        ]
        for answer in answers
    ]


def suggestion(view: View) -> list[str]:
    """Where to look next: the head that best finds what followed the last token when it occurred before."""
    last = len(view.tokens) - 1
    followed = max(position for position in range(last) if view.tokens[position] == view.tokens[last]) + 1
    weights = view.cache.edges(last, followed)
    layer, head = np.unravel_index(int(weights.argmax()), weights.shape)
    words = (
        f"Look closer: attncache demo --layer {layer} --head {head}. At the last token, that head looks up what "
        f"followed the same word before: {view.quoted(followed)}, weight {weights.max():.2f}. "
        f'The model goes on with "{label(view.cache.metadata["next_token"])}".'
    )
    return ["", *text.paragraph(words)]


def timing() -> list[str]:
    """One question to synthetic layers, put to NumPy and to the cache in turns: the median round of each.

    Raises:
        RuntimeError: an answer of the cache differs from NumPy's.
    """
    rng = np.random.default_rng(0)
    patterns = [rng.random(SHAPE, np.float32).astype(np.float16) for _ in range(LAYERS)]
    cache = AttentionCache.from_attentions(patterns, index="off", check=False)
    asked: list[Callable[[int, int], Any]] = [
        lambda layer, position: patterns[layer][0, :, position].mean(0, dtype=np.float32),
        cache.attention_from_position,
    ]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for ask, took in zip(asked, times, strict=True):
            places = rng.integers((LAYERS, SHAPE[2]), size=(QUESTIONS, 2)).tolist()  # not those just read by the other
            start = perf_counter()
            answers = [ask(*place) for place in places]
            took.append((perf_counter() - start) / QUESTIONS)
            if not all(map(np.array_equal, answers, (asked[0](*place) for place in places))):
                raise RuntimeError("attention_from_position must equal NumPy's answer, got another")
    numpy, ours = map(median, times)
    row = ["attention_from_position", f"{numpy * 1e6:.2f}", f"{ours * 1e6:.2f}", f"{numpy / ours:.1f}x"]
    said = (
        f"Mean over heads of {LAYERS} synthetic layers of {list(SHAPE)} float16; equal answers; median of {ROUNDS} rounds. "
        f"Level {attncache.simd.active()}, threads {attncache.get_num_threads()}, NumPy {np.__version__}."
    )
    return [
        *heading("How long does one question take?", "cache.attention_from_position(layer, position)"),
        *text.table(["µs per question", "NumPy", "attncache", "NumPy / attncache"], [row]),
        "",
        *text.paragraph(said, "   "),
    ]


def answers(arguments: argparse.Namespace) -> Iterator[Answer]:
    """The pages of the demo, one by one, because the last takes seconds."""
    view = view_of(arguments)
    yield Answer([*introduction(view), *(overview(view) if view.layer is None else one_layer(view))])
    if arguments.timing:
        yield Answer(timing())


COMMAND = Command(
    name="demo",
    summary="look at the attention of a small real model, then time a question",
    description="Show who attends to what in SmolLM2-135M, whose attention comes with attncache, and time a question\n"
    "against NumPy. Numbers below zero count from the end.",
    examples=EXAMPLES,
    add_options=add_options,
    answers=answers,
    has_json=False,
)
