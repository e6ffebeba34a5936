"""What ``attncache demo`` prints: three questions to the packaged sample or to a model, answered and then timed."""

from __future__ import annotations

from collections.abc import Iterator

from attncache.demo import timing
from attncache.demo.model import capture_model
from attncache.demo.one_layer import one_layer
from attncache.demo.overview import overview
from attncache.demo.sample import choose, introduction, load_sample


def report(
    layer: int | None,
    head: int | None,
    position: int,
    top: int,
    timed: bool,
    *,
    model: str | None = None,
    text: str | None = None,
) -> Iterator[list[str]]:
    """The pages of the demo, one by one, because the last takes seconds.

    Args:
        layer, head, position, top: what to show, as the command line has them.
        timed: whether to time the questions.
        model, text: a model to capture, and the text it reads; None shows the packaged sample.

    Raises:
        IndexError: layer, head or position is out of range; raised before the first page.
        ImportError, OSError, ValueError: the model cannot be loaded or captured; raised before the first page.
    """
    sample = load_sample() if model is None else capture_model(model, text)
    choice = choose(sample, layer, head, position, top)
    page = overview if choice.layer is None else one_layer
    yield [*introduction(sample), *page(sample, choice)]
    if timed:
        yield timing.report(sample.cache.patterns)
