"""What ``attncache demo`` prints: three questions to the packaged sample, answered for people, and then timed."""

from __future__ import annotations

from collections.abc import Iterator

from attncache.demo import timing
from attncache.demo.one_layer import one_layer
from attncache.demo.overview import overview
from attncache.demo.sample import choose, introduction, load_sample


def report(layer: int | None, head: int | None, position: int, top: int, timed: bool) -> Iterator[list[str]]:
    """The pages of the demo, one by one, because the last takes seconds.

    Raises:
        IndexError: layer, head or position is out of range; raised before the first page.
    """
    sample = load_sample()
    choice = choose(sample, layer, head, position, top)
    page = overview if choice.layer is None else one_layer
    yield [*introduction(sample), *page(sample, choice)]
    if timed:
        yield timing.report(sample.cache.patterns)
