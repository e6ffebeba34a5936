"""``attncache info``: what a file, a cache or a directory of runs holds, from headers alone."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from attncache.commands.command import (
    Answer,
    Command,
    add_layer_options,
    contents_for,
    count,
    one_line,
    path_of,
    run_names,
    size,
    title_of,
)
from attncache.files.contents import Contents, contents_of
from attncache.files.layers import FileLayer
from attncache.layer_source import numbers_in_words
from attncache.text import WIDTH, label, paragraph, table
from attncache.tokens import Tokens

EXAMPLES = """\
examples:
  attncache info sample               the patterns that come with attncache
  attncache info run.safetensors      a file that AttentionCache.save wrote
  attncache info runs/0001            a directory of AttentionCache.create
  attncache info runs                 a directory of such files and directories, a line each
  attncache info attentions.npz       arrays attentions.0, attentions.1, .. or otherwise alike but for one number
  attncache info patterns.npy         one array [layer, batch, head, query, key]
  attncache info stack.npy --axes "layer head query key"
"""
KINDS = {
    "attncache file": "a file of attncache",
    "attncache directory": "a directory of attncache",
    "safetensors": "a safetensors file by others",
    "npz": "a .npz archive",
    "npy": "a .npy file",
    "torch": "a file of torch.save",
    "hdf5": "an HDF5 file",
    "folder": "files by others, a layer each",
}
CHECKSUMS = {"attncache": "with checksums", "zip": "with the checksums of zip archives", None: "without checksums"}
TOKENS_SHOWN = 60
VARIES = "varies"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which path, and which arrays."""
    parser.add_argument("path", metavar="PATH", help="a file or a directory, or the word sample")
    add_layer_options(parser)


def answers(arguments: argparse.Namespace) -> Iterator[Answer]:
    """What is there: one cache, or runs."""
    path = path_of(arguments.path)
    runs = run_names(path)
    if runs is None:
        contents = contents_for(path, arguments)
        yield Answer(described(contents, title_of(arguments.path)), value_of(contents))
    else:
        yield about_runs(path, runs)


def described(contents: Contents, title: str) -> list[str]:
    """The lines about one cache."""
    kind = KINDS[contents.kind] + (f", format {contents.version}" if contents.version else "")
    if contents.kind == "attncache directory":
        kind += f", {count(contents.n_files - 1, 'segment')}"
    return [
        f"{title}: {count(len(contents.layers), 'layer')}, {size(contents.size)} on disk",
        f"   {kind}, {CHECKSUMS[contents.checksums]}",
        "",
        *layer_lines(contents.layers),
        *source_lines(contents.layers),
        *token_lines(contents.said.tokens),
        *(token_lines(contents.said.query_tokens, " of the queries") if contents.said.query_tokens is not None else []),
        *metadata_lines(contents.said.metadata),
    ]


def value_of(contents: Contents) -> dict[str, Any]:
    """The same for a program."""
    return {
        "path": str(contents.path),
        "kind": contents.kind,
        "format": contents.version,
        "files": contents.n_files,
        "bytes_on_disk": contents.size,
        "checksums": contents.checksums,
        "bytes": sum(layer.n_bytes for layer in contents.layers),
        "layers": [
            {
                "layer": number,
                "kind": layer.kind,
                "shape": layer.shape,
                "dtype": layer.dtype,
                "bytes": layer.n_bytes,
                "index": layer.has_index,
                **layer.options,
                **({} if layer.source is None else {"source": layer.source.to_dict()}),
            }
            for number, layer in enumerate(contents.layers)
        ],
        "tokens": contents.said.tokens,
        "query_tokens": contents.said.query_tokens,
        "metadata": dict(contents.said.metadata),
    }


def about_runs(path: Path, runs: Sequence[str]) -> Answer:
    """A line for each run; those that cannot be read are named."""
    rows, values, problems = [], [], []
    for name in runs:
        try:
            contents = contents_of(path / name)
        except (OSError, ValueError) as error:
            problems.append(one_line(error))
            values.append({"run": name, "error": problems[-1]})
            rows.append([name, "unreadable", *[""] * 6])
            continue
        shapes = zip(*(layer.shape for layer in contents.layers), strict=True)
        sizes = [common(each) for each in shapes] or [""] * 4
        dtype = common([layer.dtype for layer in contents.layers])
        rows.append([name, str(len(contents.layers)), *sizes, dtype, size(contents.size)])
        values.append({"run": name, **value_of(contents)})
    lines = [
        f"{path}: {count(len(runs), 'run')}",
        "",
        *table(["run", "layers", "batch", "heads", "queries", "keys", "dtype", "on disk"], rows),
        *(["", *(f"   {problem}" for problem in problems)] if problems else []),
    ]
    failure = f"{path}: {len(problems)} of {count(len(runs), 'run')} cannot be read" if problems else None
    return Answer(lines, {"path": str(path), "kind": "runs", "runs": values}, failure)


def common(items: Sequence[Any]) -> str:
    """What all have, or that it varies."""
    found = set(items)
    return VARIES if len(found) > 1 else "".join(map(str, found))


def layer_lines(layers: Sequence[FileLayer]) -> list[str]:
    """Neighbouring layers alike on one line, the total, and the options of factored ones."""
    rows, notes = [], []
    at = 0
    for layer, group in groupby(layers):
        n = len(list(group))
        name = str(at) if n == 1 else f"{at}-{at + n - 1}"
        index = "yes" if layer.has_index else "no"
        sizes = [f"{layer.n_bytes:,}", f"{n * layer.n_bytes:,}"]
        rows.append([name, layer.kind, *map(str, layer.shape), layer.dtype, *sizes, index])
        if layer.kind == "factored":
            notes += paragraph(f"{'layer' if n == 1 else 'layers'} {name}: {options(layer)}", "   ")
        at += n
    rows.append(["all", *[""] * 7, f"{sum(layer.n_bytes for layer in layers):,}", ""])
    header = ["layers", "kind", "batch", "heads", "queries", "keys", "dtype", "bytes each", "together", "index"]
    return [*table(header, rows), *(["", *notes] if notes else [])]


def source_lines(layers: Sequence[FileLayer]) -> list[str]:
    """Which layers of the model they are, those of one kind of module together; nothing where no layer says it."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, layer in enumerate(layers):
        if layer.source is not None:
            module = re.sub("[0-9]+", "N", layer.source.module)
            groups.setdefault((layer.source.kind, layer.source.stack, layer.source.heads, module), []).append(number)
    lines = []
    for (kind, stack, heads, module), numbers in groups.items():
        theirs = [source.layer for number in numbers if (source := layers[number].source) and source.layer is not None]
        words = [
            " ".join(filter(None, [stack, kind and f"{kind}-attention"])),
            f"{_layers(theirs)} of the model" if len(theirs) == len(numbers) else "",
            "" if heads is None else f"heads {numbers_in_words(heads)}",
            module,
        ]
        lines += paragraph(f"{_layers(numbers)}: {', '.join(filter(None, words)) or 'a module without a name'}", "   ")
    return ["", *lines] if lines else []


def _layers(numbers: Sequence[int]) -> str:
    return f"{'layer' if len(numbers) == 1 else 'layers'} {numbers_in_words(numbers)}"


def options(layer: FileLayer) -> str:
    """What the weights of a factored layer are computed from."""
    given = layer.options
    words = [
        f"{count(given['key_heads'], 'key head')} of {count(given['items'], 'item')}",
        f"scale {short(given['scale'])}",
        "causal" if given["causal"] else "not causal",
        *(f"{name} {short(given[name])}" for name in ("window", "softcap") if given[name] is not None),
        *(f"with {name}" for name in ("key_mask", "sinks", "lse") if given[name]),
    ]
    return ", ".join(words)


def short(number: Any) -> str:
    """A number in at most six digits; whatever else a file has there, as it is."""
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def token_lines(tokens: Tokens | None, whose: str = "") -> list[str]:
    """The tokens, as many as are pleasant to read."""
    if tokens is None:
        return ["", "   no tokens"]
    texts = [tokens] if not tokens or isinstance(tokens[0], str) else tokens
    lines = []
    for number, text in enumerate(texts):
        words = " ".join(label(str(token), WIDTH) for token in text[:TOKENS_SHOWN])
        more = " ..." if len(text) > TOKENS_SHOWN else ""
        of = f" of batch item {number}" if len(texts) > 1 else ""
        lines += ["", f"   {count(len(text), 'token')}{whose}{of}", *paragraph(words + more, "      ")]
    return lines


def metadata_lines(metadata: Mapping[str, Any]) -> list[str]:
    """What the file says about itself, a paragraph per entry."""
    if not metadata:
        return ["", "   no metadata"]
    return ["", "   metadata", *(line for key, value in metadata.items() for line in entry(key, value))]


def entry(key: str, value: Any) -> list[str]:
    """One entry; a mapping is written out."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, str) and value != value.strip():
        value = repr(value)
    return paragraph(f"{key}: {value}", "      ")


COMMAND = Command(
    name="info",
    summary="say what a file or directory of patterns holds",
    description="Says what a file of attention patterns, a cache or a directory of caches holds: layers, shapes, dtypes,\n"
    "bytes, tokens, metadata. It reads headers alone and is quick however large the file is; attncache verify\n"
    "reads all of it.",
    examples=EXAMPLES,
    add_options=add_options,
    answers=answers,
)
