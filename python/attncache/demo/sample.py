"""What the demo looks at: patterns in a cache, the packaged ones first, and which layer, head and position to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attncache import AttentionCache
from attncache.files import read_patterns, sample_path
from attncache.text import label, numbered


@dataclass(frozen=True)
class Sample:
    """A cache with the patterns and tokens of one text, and which model they come from.

    Attributes:
        next_token: what the model goes on with; None if it predicts none.
        command: what shows this sample again.
        is_causal: whether a token sees none after it.
    """

    cache: AttentionCache
    model: str
    next_token: str | None
    command: str = "attncache demo"
    is_causal: bool = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the one prompt there is."""
        return tuple(map(str, self.cache.tokens or ()))


@dataclass(frozen=True)
class Choice:
    """What the user wants to see; every number counts from 0 and is in range."""

    layer: int | None
    head: int | None
    position: int
    top: int

    @property
    def heads(self) -> int | Literal["mean"]:
        """The selection of heads as the cache takes it."""
        return "mean" if self.head is None else self.head

    @property
    def keywords(self) -> str:
        """The selection of layer and head as one would type it, with a comma in front of each."""
        layer = "" if self.layer is None else f", layers={self.layer}"
        return layer + ("" if self.head is None else f", heads={self.head}")


def load_sample() -> Sample:
    """Read the sample and push it into a cache, layer by layer, with its tokens."""
    file = read_patterns(sample_path())
    cache = AttentionCache.with_capacity(len(file.patterns))
    for pattern in file.patterns:
        cache.push(pattern)
    cache.tokens = file.tokens
    model = str(file.metadata.get("model", "unknown model"))
    return Sample(cache, model, str(file.metadata.get("next_token", "")))


def choose(sample: Sample, layer: int | None, head: int | None, position: int, top: int) -> Choice:
    """The choice with negative numbers counted from the end; out of range, the cache's own IndexError."""
    sample.cache.rows(layer or 0, position, heads=head or 0)
    _, n_heads, seq_q, _ = sample.cache[0].shape
    return Choice(
        layer=None if layer is None else range(sample.cache.n_layers)[layer],
        head=None if head is None else range(n_heads)[head],
        position=range(seq_q)[position],
        top=top,
    )


def introduction(sample: Sample) -> list[str]:
    """What the sample is, and its text."""
    first = sample.cache[0]
    size = f"{sample.cache.n_layers} layers, {first.shape[1]} heads, {len(sample.tokens)} tokens"
    return [
        f"attncache demo: {sample.model}, {size}, {sample.cache.nbytes / 1e6:.2f} MB of {first.dtype}",
        "",
        *numbered(sample.tokens),
    ]


def quoted(sample: Sample, position: int) -> str:
    """A token as it is named in a sentence."""
    return f'token {position} "{label(sample.tokens[position])}"'


def whose(sample: Sample, choice: Choice) -> str:
    """Whose weights the answer shows."""
    return f"mean of {sample.cache[0].shape[1]} heads" if choice.head is None else f"head {choice.head}"
