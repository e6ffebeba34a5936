"""``attncache top``: the heaviest of a position in every kind of file, against reference.py.

Covered: every option, alone and together; one layer and a line per layer; tokens in both directions; every dtype, factored
layers, NaN and infinities; layers of several shapes; that only the layers asked for are read; what is out of range.
Sizes: the sample's 30 layers of [1, 9, 40, 40]. JSON compares by equality; words as text at the printed digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, reference
from attncache.files import PatternFile, read_patterns, sample_path
from attncache.text import WIDTH, bar, label
from tests.support.command_line import Run, every_kind, flipped
from tests.support.patterns import make
from tests.support.stored import everything

SAMPLE: PatternFile = read_patterns(sample_path())
TOKENS = list(SAMPLE.tokens or ())
Ask = Callable[..., Any]
Fails = Callable[..., tuple[Any, str]]


def expected(patterns: Any, layer: int, k: int = 5, position: int = -1, heads: Any = "mean", **options: Any) -> Any:
    """What the reference answers, as (position, weight)."""
    found, weights = reference.top_k(patterns, k, layers=layer, positions=position, heads=heads, **options)
    return list(zip(found.tolist(), weights.tolist(), strict=True))


def pairs(answer: Any) -> Any:
    return [(key["position"], key["weight"]) for key in answer["top"]]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--layer", "17"], {"layer": 17}),
        (["--layer", "-1", "-k", "3"], {"layer": 29, "k": 3}),
        (["--position", "7", "--head", "4"], {"position": 7, "heads": 4}),
        (["--position", "-30", "--head", "-1", "-k", "100"], {"position": 10, "heads": 8, "k": 100}),
        (["--position", "0", "--to"], {"position": 0, "direction": "to"}),
        (["--layer", "3", "--to", "--head", "mean"], {"layer": 3, "direction": "to"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_answer_is_that_of_the_reference(ask: Ask, words: list[str], options: dict[str, Any]) -> None:
    value = ask("top", "sample", *words)
    layers = [options.pop("layer")] if "layer" in options else list(range(30))
    assert [answer["layer"] for answer in value["layers"]] == layers
    for layer, answer in zip(layers, value["layers"], strict=True):
        assert pairs(answer) == expected(SAMPLE.patterns, layer, **options)
        assert answer["position"] == options.get("position", 39)
        assert answer["token"] == TOKENS[answer["position"]]
        assert [key["token"] for key in answer["top"]] == [TOKENS[key["position"]] for key in answer["top"]]
    assert value["direction"] == options.get("direction", "from")
    assert value["k"] == options.get("k", 5)


def test_every_kind_of_file_gives_the_same_answer(ask: Ask, tmp_path: Path) -> None:
    patterns = SAMPLE.patterns[:3]
    for name, path in every_kind(tmp_path, patterns, TOKENS).items():
        value = ask("top", path, "--position", "30", "-k", "7")
        assert [pairs(answer) for answer in value["layers"]] == [
            expected(patterns, layer, 7, 30) for layer in range(3)
        ], name


def test_factored_layers_answer_as_their_cache_does(ask: Ask, tmp_path: Path) -> None:
    cache = everything()
    cache.save(tmp_path / "a.safetensors", index=True)
    for words, options in [([], {}), (["--to"], {"direction": "to"})]:
        value = ask("top", tmp_path / "a.safetensors", "--position", "3", "--batch", "1", "--head", "2", *words)
        for layer in range(3, 8):
            top = cache.top_k(5, layers=layer, positions=3, heads=2, batch=1, **options)
            assert pairs(value["layers"][layer]) == list(zip(top.positions.tolist(), top.weights.tolist(), strict=True))


def test_nan_and_infinities_are_strings_in_json_and_words_in_the_table(ask: Ask, run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([np.nan, 0.5, np.inf, -np.inf], np.float32).reshape(1, 1, 1, 4))
    value = ask("top", tmp_path / "a.npy")
    assert pairs(value["layers"][0]) == [(2, "Infinity"), (1, 0.5), (3, "-Infinity"), (0, "NaN")]
    lines = run("top", tmp_path / "a.npy", "--layer", "0")
    assert [line.split()[:2] for line in lines[2:]] == [["2", "inf"], ["1", "0.500"], ["3", "-inf"], ["0", "nan"]]


def test_one_layer_is_a_table_with_a_bar_for_each_weight(run: Run) -> None:
    lines = run("top", "sample", "--layer", "17")
    assert lines[:2] == ['sample, layer 17: what does token 39 "spiral" attend to? (mean of 9 heads)', ""]
    answer = expected(SAMPLE.patterns, 17)
    widest = max(len(label(TOKENS[key])) for key, _ in answer)
    assert lines[2:] == [
        f"   {key:2} {label(TOKENS[key]):<{widest}} {weight:.3f} {bar(weight)}" for key, weight in answer
    ]
    lines = run("top", "sample", "--layer", "17", "--head", "-1", "--to", "--position", "7")
    assert lines[0] == 'sample, layer 17: who attends to token 7 "stairs"? (head 8)'
    assert [line.split()[0] for line in lines[2:]] == [
        str(key) for key, _ in expected(SAMPLE.patterns, 17, 5, 7, 8, direction="to")
    ]


def test_every_layer_is_a_line(run: Run) -> None:
    lines = run("top", "sample")
    assert lines[0] == 'sample: what does token 39 "spiral" attend to? (mean of 9 heads)'
    assert lines[2] == "layer  its heaviest keys: number, token, weight"
    for layer, line in enumerate(lines[3:]):
        cells = re.findall(r" *(\d+) (\S+) +(\d\.\d\d)", line[5:])
        assert int(line[:5]) == layer
        assert [(int(key), float(weight)) for key, _, weight in cells] == [
            (key, float(f"{weight:.2f}")) for key, weight in expected(SAMPLE.patterns, layer)
        ]
        assert all(TOKENS[int(key)].strip().startswith(word.removesuffix("…")) for key, word, _ in cells)
    assert len(lines) == 33
    assert max(map(len, lines)) <= WIDTH


def test_without_tokens_positions_stand_alone(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(SAMPLE.patterns))
    lines = run("top", tmp_path / "a.npy", "--to", "--position", "1")
    assert lines[0] == f"{tmp_path / 'a.npy'}: who attends to position 1? (mean of 9 heads)"
    assert lines[2] == "layer  its heaviest queries: number, weight"
    assert re.fullmatch(r" {4}0( +\d+ \d\.\d\d){5}", lines[3])


def test_queries_are_named_by_the_keys_they_are_aligned_with_and_layers_may_differ(
    ask: Ask, run: Run, tmp_path: Path
) -> None:
    cache = AttentionCache()
    cache.push(make("soft", (2, 2, 2, 4)))
    cache.push(make("soft", (2, 3, 4, 4)))
    cache.tokens = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    cache.save(tmp_path / "a.safetensors")
    value = ask("top", tmp_path / "a.safetensors", "--batch", "1", "--position", "1", "-k", "9")
    assert [answer["token"] for answer in value["layers"]] == ["h", "f"]
    value = ask("top", tmp_path / "a.safetensors", "--to", "-k", "9")
    assert [answer["token"] for answer in value["layers"]] == ["d", "d"]
    named = [{key["position"]: key["token"] for key in answer["top"]} for answer in value["layers"]]
    assert named == [{0: "c", 1: "d"}, {0: "a", 1: "b", 2: "c", 3: "d"}]
    assert run("top", tmp_path / "a.safetensors", "--batch", "1")[0].endswith(
        ": what does position -1 attend to? (mean of heads, batch item 1)"
    )


def test_only_the_layer_asked_for_is_read(ask: Ask, fails: Fails, tmp_path: Path) -> None:
    path = every_kind(tmp_path, SAMPLE.patterns[:2])["a.npz"]
    flipped(path, path.stat().st_size // 4)  # in the middle of layer 0
    assert pairs(ask("top", path, "--layer", "1")["layers"][0]) == expected(SAMPLE.patterns, 1)
    _, line = fails("top", path)
    assert line.startswith(f"{path}: attentions.0 must be whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "30"], "layer 30 is out of range for n_layers=30"),
        (["--layer", "-31"], "layer -31 is out of range for n_layers=30"),
        (["--head", "9"], "9 is out of range for n_heads=9"),
        (["--position", "40"], "40 is out of range for seq_q=40"),
        (["--position", "-41", "--to"], "-41 is out of range for seq_k=40"),
        (["--batch", "1"], "1 is out of range for batch_size=1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_out_of_range_is_one_line_and_exit_1(fails: Fails, words: list[str], message: str) -> None:
    value, line = fails("top", "sample", *words)
    assert line.endswith(message)
    assert value == {"error": line}


def test_a_directory_of_runs_is_refused_and_one_of_them_named(fails: Fails, tmp_path: Path) -> None:
    for number in (10, 9):
        AttentionCache.create(tmp_path / f"prompt-{number}").close()
    for words in (["top", tmp_path], ["convert", tmp_path, tmp_path / "a.safetensors"]):
        _, line = fails(*words)
        assert line == f"{tmp_path}: must be one cache, got a directory of 2 runs: {tmp_path / 'prompt-9'}, .."


def test_a_cache_without_layers_has_no_answers(ask: Ask, run: Run, fails: Fails, tmp_path: Path) -> None:
    AttentionCache().save(tmp_path / "a.safetensors")
    assert ask("top", tmp_path / "a.safetensors")["layers"] == []
    assert len(run("top", tmp_path / "a.safetensors")) == 3
    assert "layer 0 is out of range for n_layers=0" in fails("top", tmp_path / "a.safetensors", "--layer", "0")[1]
