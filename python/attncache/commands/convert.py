"""``attncache convert``: archives of patterns, or caches, into one file of ours."""

from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attncache.commands.command import (
    Answer,
    Command,
    add_layer_options,
    contents_for,
    count,
    one_cache,
    path_of,
    title_of,
)
from attncache.commands.info import described, value_of
from attncache.files.contents import contents_of
from attncache.files.opening import Change, convert

EXAMPLES = """\
examples:
  attncache convert attentions.npz run.safetensors             arrays attentions.0, attentions.1, .. or arr_0, arr_1, ..
  attncache convert attentions.pt run.safetensors              of torch.save(outputs.attentions, "attentions.pt")
  attncache convert layer_*.npy run.safetensors                a file per layer; or the folder that holds them
  attncache convert stack.npy run.safetensors --axes "layer head query key"
  attncache convert dump.safetensors run.safetensors --names "decoder_attentions.{}" --dtype float16
  attncache convert runs/0001 run.safetensors --index          a directory, as one file with head means
  attncache convert run.safetensors means.safetensors --mean-only
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """From where to where, and what changes."""
    option = parser.add_argument
    option(
        "source",
        metavar="SOURCE",
        nargs="+",
        help="a file or folder of arrays (safetensors, .npz, .npy, .pt, HDF5), or a cache; several are a file per layer; or sample",
    )
    option("target", metavar="TARGET", help="the file to write, such as run.safetensors")
    option("--dtype", choices=("float16", "bfloat16", "float32"), help="what to store (default: as it is)")
    option("--mean-only", action="store_true", help="the mean over heads in the place of each layer, float32")
    option("--index", action="store_true", help="write head means and row sums too, so that nobody computes them again")
    option(
        "--tokens", metavar="FILE", help="a JSON file: a list of strings, one per key, or one such list per batch item"
    )
    option("--force", action="store_true", help="replace TARGET if it is there")
    add_layer_options(parser)


def answers(arguments: argparse.Namespace) -> Iterator[Answer]:
    """Convert, and say what the new file holds."""
    sources, target = [one_cache(path_of(source)) for source in arguments.source], Path(arguments.target)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the target must be a file, got a directory", str(target))
    if target.exists() and not arguments.force:
        raise FileExistsError(errno.EEXIST, "exists already; --force replaces it", str(target))
    tokens = None if arguments.tokens is None else read_tokens(Path(arguments.tokens))
    change = Change(arguments.dtype, arguments.mean_only, arguments.index)
    convert(contents_for(sources, arguments), target, change, tokens)
    written = contents_of(target)
    title = title_of(arguments.source[0]) if len(sources) == 1 else count(len(sources), "file")
    source = str(sources[0]) if len(sources) == 1 else [str(each) for each in sources]
    lines = [f"{title} → {target}", "", *described(written, str(target))]
    yield Answer(lines, {"source": source, "target": value_of(written)})


def read_tokens(path: Path) -> Any:
    """The tokens in a JSON file; whether they fit is checked with the layers."""
    rule = f"{path}: tokens must be JSON, a list of strings or one such list per batch item"
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{rule}, got: {error}") from error
    if not isinstance(tokens, list):
        raise ValueError(f"{rule}, got {json.dumps(tokens)[:40]}")  # noqa: TRY004 (what a file holds is a value)
    return tokens


def nonsense(arguments: argparse.Namespace) -> str | None:
    """Means have a dtype of their own."""
    if arguments.mean_only and arguments.dtype not in (None, "float32"):
        return "argument --dtype: not with --mean-only, whose means are float32"
    return None


COMMAND = Command(
    name="convert",
    summary="write an archive of patterns, or a cache, as one file of attncache",
    description="Writes attention patterns as one file that AttentionCache.load maps, with checksums, one layer in memory at\n"
    "a time. SOURCE may be what people keep attentions of Hugging Face models in: an array per layer, [batch, head,\n"
    "query, key] or [head, query, key], whose names differ in one number, or one array of all layers. A cache as\n"
    "SOURCE is verified first. TARGET is the old or the new file at any moment.",
    examples=EXAMPLES,
    add_options=add_options,
    answers=answers,
    nonsense=nonsense,
)
