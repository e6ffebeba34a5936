"""``attncache convert``: archives and caches as one file of ours.

Covered: every kind of source, every option alone and in pairs, names and axes of layers, several files, a warning, tokens and metadata, that the file is whole
and loads to the same bits, means against reference.py, a target that is there, failures that leave it whole, a damaged source,
peak memory (24 layers of 8 MB, in a process of its own), the exit code and stdout of a real process.
Values compare by the equality of all bits. Not covered: a disk that is full; the fault tests have what ``save`` does then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, cli, reference
from attncache.files import read_patterns, sample_path
from tests.support.command_line import Run, every_kind, flipped, process, write_safetensors
from tests.support.patterns import DTYPES, assert_same, cache_of, make, meaning
from tests.support.stored import everything, factored_options, of_a_model, push_factored, state, tokened

SAMPLE = read_patterns(sample_path())
Ask = Callable[..., Any]
Fails = Callable[..., tuple[Any, str]]


@pytest.fixture
def converted(ask: Ask, tmp_path: Path) -> Callable[..., AttentionCache]:
    """Converts, checks that the new file is whole and described as it is, and opens it."""

    def command(source: Path | str, *options: str) -> AttentionCache:
        target = tmp_path / "converted.safetensors"
        value = ask("convert", source, target, "--force", "--no-check", *options)
        assert value["target"] == ask("info", target)
        assert ask("verify", target)["ok"] is True
        return AttentionCache.load(target, verify=True)

    return command


Converted = Callable[..., AttentionCache]


def assert_layers(cache: AttentionCache, patterns: Any) -> None:
    """The cache holds these layers, bit for bit."""
    assert cache.n_layers == len(patterns)
    for found, wanted in zip(cache, patterns, strict=True):
        assert_same(found, wanted)


def test_every_kind_of_source_becomes_the_same_layers(converted: Converted, tmp_path: Path) -> None:
    patterns = SAMPLE.patterns[:11]
    for name, path in every_kind(tmp_path, patterns, SAMPLE.tokens).items():
        cache = converted(path)
        assert_layers(cache, patterns)
        assert cache.tokens == (None if name in ("a.npy", "others.safetensors") else SAMPLE.tokens), name
        assert cache.index_nbytes == 0


@pytest.mark.parametrize("dtype", [*DTYPES, None])
@pytest.mark.parametrize("stored", [*DTYPES, "float64"])
def test_the_dtype_is_that_of_push(converted: Converted, tmp_path: Path, stored: str, dtype: str | None) -> None:
    wide = make("infinities", (2, 3, 5, 7))
    pattern = wide.astype(np.float64) / 3 if stored == "float64" else wide.astype(DTYPES[stored])
    path = write_safetensors(tmp_path / "a.safetensors", {"layers.0.pattern": pattern})
    expected = AttentionCache(dtype)
    expected.push(pattern)
    assert_layers(converted(path, *(["--dtype", dtype] if dtype else [])), expected.patterns)
    if stored not in ("bfloat16", "float64"):
        cache_of([pattern]).save(tmp_path / "ours.safetensors", index=True)
        cache = converted(tmp_path / "ours.safetensors", "--index", *(["--dtype", dtype] if dtype else []))
        assert_layers(cache, expected.patterns)
        assert_same(cache.head_mean(0, 1), expected.head_mean(0, 1))


def test_a_cache_keeps_all_it_has(converted: Converted, tmp_path: Path) -> None:
    for cache in (everything(), tokened(), of_a_model(), AttentionCache()):
        cache.save(tmp_path / "a.safetensors")
        assert state(converted(tmp_path / "a.safetensors")) == state(cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [False, True], ids=["", "index"])
def test_factored_layers_change_their_dtype_as_push_qk_does(
    converted: Converted, tmp_path: Path, dtype: Any, index: bool
) -> None:
    cache, expected = AttentionCache(), AttentionCache(dtype)
    for options in factored_options():
        push_factored(cache, **options)
        push_factored(expected, **options)
    cache.save(tmp_path / "a.safetensors", index=True)
    found = converted(tmp_path / "a.safetensors", "--dtype", dtype, *(["--index"] if index else []))
    assert state(found) == state(expected)
    for layer in range(5):
        assert_same(found.columns(layer, 1, heads=None), expected.columns(layer, 1, heads=None))


def test_index_writes_head_means_and_row_sums(ask: Ask, converted: Converted, tmp_path: Path) -> None:
    everything().save(tmp_path / "a.safetensors")
    cache = converted(tmp_path / "a.safetensors", "--index")
    expected = everything()
    expected.save(tmp_path / "indexed.safetensors", index=True)
    assert (tmp_path / "converted.safetensors").read_bytes() == (tmp_path / "indexed.safetensors").read_bytes()
    assert cache.index_nbytes == sum(2 * 4 * 2 * 5 * 7 for _ in range(3))
    np.savez(tmp_path / "a.npz", *SAMPLE.patterns[:2])
    cache_of(SAMPLE.patterns[:2]).save(tmp_path / "indexed.safetensors", index=True)
    converted(tmp_path / "a.npz", "--index")
    assert (tmp_path / "converted.safetensors").read_bytes() == (tmp_path / "indexed.safetensors").read_bytes()


@pytest.mark.parametrize("index", [False, True], ids=["", "index"])
def test_mean_only_keeps_the_bits_of_the_head_mean(converted: Converted, tmp_path: Path, index: bool) -> None:
    patterns = [make(kind, (2, 3, 5, 7), dtype) for kind in ("infinities", "signed_zeros") for dtype in DTYPES]
    cache_of(patterns).save(tmp_path / "a.safetensors")
    cache = converted(tmp_path / "a.safetensors", "--mean-only", *(["--index"] if index else []))
    assert cache.shapes == ((2, 1, 5, 7),) * 6
    assert set(cache.dtypes) == {"float32"}
    for layer in range(6):
        for batch in range(2):
            mean = meaning("head_mean", patterns, layer, batch)
            assert_same(cache[layer][batch, 0], mean)
            assert_same(cache.head_mean(layer, batch), mean)
            assert_same(cache.attention_to_position(layer, 2, batch), mean[:, 2].copy())
    assert cache.metadata == {"heads": "mean of 3"}
    again = converted(tmp_path / "converted.safetensors", "--mean-only")
    assert again.metadata == {"heads": "mean of 3"}
    assert_layers(again, cache.patterns)


def test_the_mean_of_a_layer_comes_from_its_module(converted: Converted, tmp_path: Path) -> None:
    of_a_model().save(tmp_path / "a.safetensors")
    cache = converted(tmp_path / "a.safetensors", "--mean-only")
    assert cache.sources == tuple(source and replace(source, heads=None) for source in of_a_model().sources)
    assert cache._query_tokens == of_a_model()._query_tokens


def test_mean_only_of_factored_layers_and_of_archives(converted: Converted, tmp_path: Path) -> None:
    cache = AttentionCache()
    for options in factored_options():
        push_factored(cache, **options)
    cache.push(make("soft", (2, 3, 5, 7), "float16"))
    cache.metadata = {"model": "none"}
    cache.save(tmp_path / "a.safetensors", index=True)
    means = converted(tmp_path / "a.safetensors", "--mean-only")
    assert means.kinds == ("dense",) * 6
    for layer in range(6):
        assert_same(means[layer][1, 0], cache.head_mean(layer, 1))
    assert means.metadata == {"model": "none", "heads": ["mean of 4"] * 5 + ["mean of 3"]}
    np.save(tmp_path / "a.npy", np.array(SAMPLE.patterns[:2]))
    means = converted(tmp_path / "a.npy", "--mean-only")
    for layer in range(2):
        assert_same(means[layer][0, 0], reference.head_mean(SAMPLE.patterns, layer))


def test_several_sources_and_folders_are_a_file_per_layer(
    ask: Ask, run: Run, converted: Converted, fails: Fails, tmp_path: Path
) -> None:
    patterns = SAMPLE.patterns[:11]
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "folder" / f"layer_{n}.npy" for n in range(11)]
    for path, pattern in zip(paths, patterns, strict=True):
        np.save(path, pattern)
    assert_layers(converted(tmp_path / "folder"), patterns)
    target = tmp_path / "several.safetensors"
    shuffled = sorted(paths)  # as a shell gives layer_*.npy: 10 before 2
    assert ask("convert", *shuffled, target)["source"] == [str(path) for path in shuffled]
    assert_layers(AttentionCache.load(target), patterns)
    assert run("convert", *shuffled, target, "--force")[0] == f"11 files → {target}"
    assert ask("info", tmp_path / "folder")["kind"] == "folder"
    _, line = fails("convert", paths[0], target, tmp_path / "new.safetensors")
    assert line == f"{target}: must be a file by others where there are several, got a cache of attncache"


def test_axes_say_what_an_array_holds(converted: Converted, fails: Fails, tmp_path: Path) -> None:
    stack = np.array(SAMPLE.patterns[:3])
    np.save(tmp_path / "a.npy", stack[:, 0])
    _, line = fails("convert", tmp_path / "a.npy", tmp_path / "b.safetensors")
    assert '--axes must be given for an array of shape [3, 9, 40, 40]: it may hold 3 layers (--axes "layer head' in line
    assert_layers(converted(tmp_path / "a.npy", "--axes", "layer head query key"), stack)
    _, line = fails("convert", tmp_path / "a.npy", tmp_path / "b.safetensors", "--axes", "layer head key")
    assert line == "--axes must name query and key, got 'layer head key'"


def test_scores_before_the_softmax_are_one_warning_that_can_be_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scores = np.random.default_rng(0).normal(0, 5, (3, 1, 3, 8, 8)).astype(np.float32)
    path, target = tmp_path / "a.npz", tmp_path / "b.safetensors"
    np.savez(path, SAMPLE.patterns[0], *scores)
    for command in (["convert", str(path), str(target), "--force", "--index"], ["top", str(path)]):
        assert cli.main(command) == 0
        said = capsys.readouterr().err
        assert said.startswith(
            f"attncache: warning: {path}: layer 1 does not look like attention weights: its rows sum to "
        )
        assert said.endswith(
            "before the softmax? It is stored as it is; --no-check leaves out this look at some rows\n"
        )
        assert said.count("\n") == 1
        assert cli.main([*command, "--no-check"]) == 0
        assert capsys.readouterr().err == ""
    done = process("top", str(path), "--layer", "2")  # warnings are errors there
    assert (done.returncode, done.stderr.count("layer 2 does not look like")) == (0, 1)


def test_tokens_come_from_a_json_file(converted: Converted, fails: Fails, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", layer_0=np.zeros((2, 1, 2, 3), "f4"), tokens=np.array(["x", "y", "z"]))
    for tokens in (["a", "\n", "\N{SNOWMAN}"], [["a", "b", "c"], ["d", "e", "f"]]):
        (tmp_path / "tokens.json").write_text(json.dumps(tokens))
        found = converted(tmp_path / "a.npz", "--tokens", tmp_path / "tokens.json").tokens
        assert json.loads(json.dumps(found)) == tokens
    for text, words in [
        ("[", "tokens.json: tokens must be JSON, a list of strings or one such list per batch item, got: "),
        ('["a"]', "tokens must be one string for each key of layer 0, seq_k=3, got 1"),
        ("[3]", "tokens must be None, a sequence of strings, or one such sequence per batch item, got numbers"),
        ("null", "a list of strings or one such list per batch item, got null"),
    ]:
        (tmp_path / "tokens.json").write_text(text)
        _, line = fails("convert", tmp_path / "a.npz", tmp_path / "b", "--tokens", tmp_path / "tokens.json")
        assert words in line
        assert not (tmp_path / "b").exists()


def test_a_target_that_is_there_is_replaced_only_by_force(run: Run, fails: Fails, tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"mine")
    _, line = fails("convert", "sample", target)
    assert line == f"{target}: exists already; --force replaces it"
    assert target.read_bytes() == b"mine"
    assert run("convert", "sample", target, "--force")[0] == f"smollm2_sample.npz (the packaged sample) → {target}"
    cache = AttentionCache.load(target)
    assert_layers(cache, SAMPLE.patterns)
    assert (cache.tokens, dict(cache.metadata)) == (SAMPLE.tokens, SAMPLE.metadata)
    _, line = fails("convert", "sample", tmp_path, "--force")
    assert line == f"{tmp_path}: the target must be a file, got a directory"


def test_a_source_may_be_its_own_target(converted: Converted, ask: Ask, tmp_path: Path) -> None:
    for name, path in every_kind(tmp_path, SAMPLE.patterns[:3], SAMPLE.tokens).items():
        if path.is_file():
            ask("convert", path, path, "--force", "--dtype", "float32")
            assert ask("info", path)["kind"] == "attncache file", name
            assert_layers(AttentionCache.load(path), [pattern.astype("f4") for pattern in SAMPLE.patterns[:3]])


def test_a_failure_leaves_the_target_as_it_was_and_nothing_else(fails: Fails, tmp_path: Path) -> None:
    source = tmp_path / "sources"
    source.mkdir()
    paths = every_kind(source, SAMPLE.patterns[:3])
    flipped(paths["a.npz"], paths["a.npz"].stat().st_size * 5 // 6)
    flipped(paths["run.safetensors"], paths["run.safetensors"].stat().st_size - 1)
    flipped(paths["run"] / "segment-000002.safetensors", -1)
    target = tmp_path / "target"
    target.mkdir()
    (target / "a.safetensors").write_bytes(b"mine")
    for name, words in [
        ("a.npz", "attentions.2 must be whole"),
        ("run.safetensors", "bytes 0 to 28799 of tensor layers.2.pattern must have the checksum"),
        ("run", "segment-000002.safetensors: bytes 0 to 28799 of tensor layers.2.pattern must have the checksum"),
    ]:
        _, line = fails("convert", paths[name], target / "a.safetensors", "--force")
        assert words in line
        assert (target / "a.safetensors").read_bytes() == b"mine"
        assert [path.name for path in target.iterdir()] == ["a.safetensors"]


def test_metadata_that_are_no_json_are_refused(fails: Fails, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((1, 1, 1, 1), "f4"), metadata=np.array('{"loss": NaN}'))
    _, line = fails("convert", tmp_path / "a.npz", tmp_path / "b.safetensors")
    assert "metadata['loss'] must be a JSON value" in line
