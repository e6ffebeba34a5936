"""``attncache info``: what it says of every kind of file, as words and as JSON.

Covered: .npz, .npy, files and directories of ours, safetensors by others, directories of runs; every kind of layer and
every option of factored ones; that nothing but headers is read (a file of 64 GB, almost all of it a hole); what cannot be
read, with the exit code; words that a terminal cannot say. Numbers compare by equality.
Not covered: every broken header; the tests of the readers have those.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from attncache.files import PatternFile, read_patterns, sample_path
from attncache.text import WIDTH, label
from tests.support.command_line import Run, every_kind, flipped, process, write_safetensors
from tests.support.patterns import make
from tests.support.stored import everything, factored_options, push_factored, tokened

SAMPLE: PatternFile = read_patterns(sample_path())
TOKENS = [label(token) for token in SAMPLE.tokens or ()]
Ask = Callable[..., Any]
Fails = Callable[..., tuple[Any, str]]


def table(lines: list[str]) -> list[list[str]]:
    """The rows of the table of layers, as words."""
    return [line.split() for line in lines if re.match(r"   (\d|all)[\d-]* +(dense|factored|\d)", line)]


def test_the_sample_is_described(run: Run) -> None:
    lines = run("info", "sample")
    title = f"smollm2_sample.npz (the packaged sample): 30 layers, {sample_path().stat().st_size:,} bytes on disk"
    assert lines[:2] == [title, "   a .npz archive, with the checksums of zip archives"]
    assert table(lines) == [
        ["0-29", "dense", "1", "9", "40", "40", "float16", "28,800", "864,000", "no"],
        ["all", "864,000"],
    ]
    text = " ".join(" ".join(lines).split())
    assert f"40 tokens {' '.join(TOKENS)}" in text
    assert all(f"{key}: " in text for key in SAMPLE.metadata)
    assert max(map(len, lines)) <= WIDTH


def test_neighbouring_layers_of_one_shape_and_dtype_share_a_line(run: Run, tmp_path: Path) -> None:
    shapes = [(1, 2, 3, 3), (1, 2, 3, 3), (1, 4, 3, 3), (1, 2, 3, 3)]
    arrays = {f"layers.{number}.pattern": np.zeros(shape, np.float32) for number, shape in enumerate(shapes)}
    np.savez(tmp_path / "a.npz", **arrays)
    lines = run("info", tmp_path / "a.npz")
    rows = table(lines)
    assert [row[0] for row in rows] == ["0-1", "2", "3", "all"]
    assert rows[0][1:] == ["dense", "1", "2", "3", "3", "float32", "72", "144", "no"]
    assert rows[-1][1:] == [f"{sum(array.nbytes for array in arrays.values())}"]
    assert lines[-4:] == ["", "   no tokens", "", "   no metadata"]


def test_every_kind_of_file_says_what_it_is_and_has_the_same_layers(run: Run, ask: Ask, tmp_path: Path) -> None:
    paths = every_kind(tmp_path, SAMPLE.patterns[:3], SAMPLE.tokens)
    said = {name: run("info", path)[1].strip() for name, path in paths.items()}
    assert said == {
        "run.safetensors": "a file of attncache, format 1, with checksums",
        "indexed.safetensors": "a file of attncache, format 1, with checksums",
        "run": "a directory of attncache, format 1, 3 segments, with checksums",
        "a.npz": "a .npz archive, with the checksums of zip archives",
        "b.npz": "a .npz archive, with the checksums of zip archives",
        "a.npy": "a .npy file, without checksums",
        "others.safetensors": "a safetensors file by others, without checksums",
    }
    layer = {"kind": "dense", "shape": [1, 9, 40, 40], "dtype": "float16", "bytes": 28800, "index": False}
    for name, path in paths.items():
        value = ask("info", path)
        index = {"index": name == "indexed.safetensors"}
        assert value["layers"] == [{"layer": number, **layer, **index} for number in range(3)], name
        assert value["bytes"] == 3 * 28800
        assert value["tokens"] == (None if name in ("a.npy", "others.safetensors") else list(SAMPLE.tokens or ()))
        assert value["path"] == str(path)
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.name != "lock"]
        assert value["files"] == len(files)
        assert value["bytes_on_disk"] == sum(file.stat().st_size for file in files)


def test_a_file_of_ours_is_described_as_its_cache_is(ask: Ask, tmp_path: Path) -> None:
    cache = everything()
    cache.save(tmp_path / "a.safetensors")
    value = ask("info", tmp_path / "a.safetensors")
    layers = value["layers"]
    assert [layer["kind"] for layer in layers] == list(cache.kinds)
    assert [tuple(layer["shape"]) for layer in layers] == list(cache.shapes)
    assert [layer["dtype"] for layer in layers] == list(cache.dtypes)
    assert sum(layer["bytes"] for layer in layers[:3]) == sum(
        layer.memory[0].nbytes for layer in [each for each, _ in cache._sourced][:3]
    )
    for layer, given in zip(layers[3:], factored_options(), strict=True):
        assert (layer["key_heads"], layer["items"]) == (2, 8)
        assert layer["scale"] == np.float32(given.get("scale", 8**-0.5))
        assert layer["causal"] is given.get("causal", True)
        assert (layer["window"], layer["softcap"]) == (given.get("window"), given.get("softcap"))
        assert [layer[name] for name in ("key_mask", "sinks", "lse")] == [
            name in given for name in ("key_mask", "sinks", "lse")
        ]
        arrays = [np.zeros((2, 4, 5, 8), "f4"), np.zeros((2, 2, 7, 8), "f4")]
        arrays += [np.asarray(given[name]) for name in ("key_mask", "sinks", "lse") if name in given]
        assert layer["bytes"] == sum(array.nbytes for array in arrays)
    assert value["metadata"] == {"model": "none", "prompt": {"text": "Größe\n\ud800", "ids": [1, 2.5, None, True]}}
    assert (value["kind"], value["format"], value["checksums"]) == ("attncache file", "1", "attncache")


def test_factored_layers_say_what_their_weights_come_from(run: Run, tmp_path: Path) -> None:
    cache = AttentionCache()
    for options in factored_options():
        push_factored(cache, **options)
    cache.save(tmp_path / "a.safetensors", index=True)
    lines = run("info", tmp_path / "a.safetensors")
    assert [row[1] for row in table(lines)[:-1]] == ["factored"] * 5
    assert [row[-1] for row in table(lines)[:-1]] == ["yes"] * 4 + ["no"]  # given sums need none
    text = " ".join(" ".join(lines).split())
    for words in (
        "layer 0: 2 key heads of 8 items, scale 0.353553, causal layer",
        "layer 1: 2 key heads of 8 items, scale 0.3, not causal layer",
        "layer 2: 2 key heads of 8 items, scale 0.353553, causal, window 3, softcap 20, with key_mask layer",
        "layer 3: 2 key heads of 8 items, scale 0.353553, causal, with sinks layer",
        "layer 4: 2 key heads of 8 items, scale 0.353553, causal, with lse no",
    ):
        assert words in text
    assert max(map(len, lines[1:])) <= WIDTH


def test_layers_say_which_of_the_model_they_are(run: Run, ask: Ask, tmp_path: Path) -> None:
    cache = AttentionCache()
    pattern = np.zeros((1, 2, 3, 3), np.float16)
    for layer in (5, 9):
        cache.push(pattern, source=LayerSource(f"model.layers.{layer}.self_attn", layer, (0, 3), "self"))
    cache.push(pattern, source=LayerSource("cross", kind="cross", stack="decoder"))
    cache.push(pattern, source=LayerSource())
    cache.push(pattern)
    cache.save(tmp_path / "a.safetensors")
    lines = run("info", tmp_path / "a.safetensors")
    assert table(lines)[0][:6] == ["0-4", "dense", "1", "2", "3", "3"]
    said = " ".join(" ".join(lines).split())
    assert (
        "layers 0 and 1: self-attention, layers 5 and 9 of the model, heads 0 and 3, model.layers.N.self_attn "
        "layer 2: decoder cross-attention, cross layer 3: a module without a name no tokens" in said
    )
    sources = [layer.get("source") for layer in ask("info", tmp_path / "a.safetensors")["layers"]]
    assert sources == [source and source.to_dict() for source in cache.sources]


def test_tokens_of_every_batch_item_and_of_the_queries_are_shown(run: Run, ask: Ask, tmp_path: Path) -> None:
    cache = AttentionCache()
    cache.push(np.zeros((2, 1, 1, 2), np.float32))
    cache.tokens, cache.query_tokens = [["the", " cat"], [" a", "\n"]], ["Die"]
    cache.save(tmp_path / "a.safetensors")
    words = "   2 tokens of batch item 0|      the cat||   2 tokens of batch item 1|      a '\\n'||"
    assert f"{words}   1 token of the queries|      Die||" in "|".join(run("info", tmp_path / "a.safetensors"))
    assert ask("info", tmp_path / "a.safetensors")["query_tokens"] == ["Die"]
    AttentionCache().save(tmp_path / "b.safetensors")
    assert ask("info", tmp_path / "b.safetensors")["query_tokens"] is None


@pytest.mark.parametrize("kind", ["ours", "safetensors", "npy"])
def test_only_headers_are_read_of_a_file_of_64_gigabytes(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("huge.npy" if kind == "npy" else "huge.safetensors")
    shape = (1, 16, 44444, 46000)
    n_bytes = 2 * 16 * 44444 * 46000
    if kind == "npy":
        with path.open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
    elif kind == "safetensors":
        entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, n_bytes]}
        text = json.dumps({"layers.0.pattern": entry}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
    else:
        from attncache.files.safetensors import plan

        metadata = {"attncache": "1", "layers": '[{"kind":"dense"}]'}
        path.write_bytes(plan([("layers.0.pattern", "F16", shape)], metadata).header(metadata))
    os.truncate(path, path.stat().st_size + n_bytes)
    assert run("info", path)[0] == f"{path}: 1 layer, {path.stat().st_size:,} bytes on disk"
    assert path.stat().st_size > 64e9


def test_a_directory_of_runs_has_a_line_for_each(run: Run, ask: Ask, tmp_path: Path) -> None:
    for number in (10, 2):
        with AttentionCache.create(tmp_path / f"prompt-{number}") as cache:
            for pattern in SAMPLE.patterns[:number]:
                cache.push(pattern)
    everything().save(tmp_path / "every.safetensors")
    AttentionCache().save(tmp_path / "none.safetensors")
    lines = run("info", tmp_path)
    assert lines[0] == f"{tmp_path}: 4 runs"
    assert [line.split()[:-2] for line in lines[2:]] == [
        ["run", "layers", "batch", "heads", "queries", "keys", "dtype"],
        ["every.safetensors", "8", "2", "varies", "5", "7", "varies"],
        ["none.safetensors", "0"],
        ["prompt-2", "2", "1", "9", "40", "40", "float16"],
        ["prompt-10", "10", "1", "9", "40", "40", "float16"],
    ]
    value = ask("info", tmp_path)
    assert (value["path"], value["kind"]) == (str(tmp_path), "runs")
    alone = ask("info", tmp_path / "prompt-2")
    assert value["runs"][2] == {"run": "prompt-2", **alone}


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(
    capsys: pytest.CaptureFixture[str], fails: Fails, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        tokened().save(tmp_path / f"{name}.safetensors")
    flipped(tmp_path / "b.safetensors", 60)
    value, line = fails("info", tmp_path)
    assert line == f"{tmp_path}: 1 of 3 runs cannot be read"
    assert [sorted(run.keys() & {"error", "layers"}) for run in value["runs"]] == [["layers"], ["error"], ["layers"]]
    assert value["runs"][1]["error"].startswith(f"{tmp_path / 'b.safetensors'}: header_crc32 must be ")


def test_what_cannot_be_read_is_one_line_on_stderr_and_exit_1(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "notes").write_bytes(b"some notes")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "bool.npy", np.zeros((1, 1, 2, 2), bool))
    np.save(tmp_path / "nothing.npy", np.zeros((1, 1 << 21, 0, 2), np.float32))
    both = {name: np.zeros((1, 1, 2, 2), "f4") for name in ("encoder.0", "decoder.0")}
    write_safetensors(tmp_path / "both.safetensors", both)
    for name, words in [
        ("missing.npz", f"{tmp_path / 'missing.npz'}: No such file or directory"),
        ("bad.npz", "bad.npz: the file must be whole, in NumPy's format"),
        (
            "notes",
            "notes: must be a cache of attncache or a file of arrays (safetensors, .npz, .npy, .pt of torch.save, ",
        ),
        ("empty", "must be a cache, which has manifest.json, or hold a file of arrays per layer, got a fold"),
        ("bool.npy", "the array must be one of float16, bfloat16, float32, float64, got bool"),
        ("nothing.npy", "the array must have at most 1048576 batch items and heads if it is empty, got shape ("),
        ("both.safetensors", "got encoder.0 [1, 1, 2, 2] float32, decoder.0 [1, 1, 2, 2] float32"),
    ]:
        value, line = fails("info", tmp_path / name)
        assert words in line
        assert value == {"error": line}


def test_names_choose_the_layers_of_a_file_by_others(ask: Ask, tmp_path: Path) -> None:
    tensors = {f"{kind}.{n}": np.zeros((1, 1, 2, n + 2), "f4") for kind in ("encoder", "decoder") for n in range(2)}
    path = write_safetensors(tmp_path / "a.safetensors", tensors, format="pt")
    value = ask("info", path, "--names", "decoder.{}")
    assert [layer["shape"] for layer in value["layers"]] == [[1, 1, 2, 2], [1, 1, 2, 3]]
    assert value["metadata"] == {"format": "pt"}


def test_words_that_the_terminal_cannot_say_do_not_stop_it(tmp_path: Path) -> None:
    everything().save(tmp_path / "a.safetensors")
    for encoding in ("utf-8", "ascii"):
        environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
        done = process("info", str(tmp_path / "a.safetensors"), env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert "prompt: text Gr" in done.stdout
        document = process("info", str(tmp_path / "a.safetensors"), "--json", env=environment).stdout
        assert json.loads(document)["metadata"]["prompt"]["text"] == "Größe\n\ud800"


def test_whatever_byte_of_a_small_file_is_wrong_no_command_ends_in_a_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from attncache import cli

    paths = every_kind(tmp_path, [make("soft", (1, 2, 3, 4), "float16", n) for n in range(2)], ["a", "b", "c", "d"])
    files = [path for path in paths.values() if path.is_file()] + sorted(paths["run"].glob("[ms]*"))
    for number, path in enumerate(files):
        whole = path.read_bytes()
        for at in range(number % 7, len(whole), 23):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
            asked = path if path.parent == tmp_path else paths["run"]
            target = str(tmp_path / "converted")
            for words in (["info"], ["verify"], ["top", "--no-check"], ["convert", "--force", "--no-check"]):
                code = cli.main([words[0], str(asked), *([target] if words[0] == "convert" else []), *words[1:]])
                assert code in (0, 1)
                assert capsys.readouterr().err.count("\n") == code
        path.write_bytes(whole)
