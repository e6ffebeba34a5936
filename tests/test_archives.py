"""Reading archives of patterns, and the sample that ships with the package.

Covered: .npz and .npy in every accepted layout and float dtype, the order of layers, tokens and metadata, every error
with its words, damaged files byte by byte; of the sample: size, shapes, dtype, causality, row sums, its heads.
Sizes: layers of [1, 2, 3, 4] unless said. Values compare by equality; row sums of float16 within 2^-11 per row, the
half unit in the last place that rounding may move a weight of one, for each of two roundings.
Not covered: files larger than memory.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, reference
from attncache.files import PatternFile, read_patterns, sample_path
from test_torch_files import SIZES, STORAGE, STRIDES, TENSOR, archive

SHAPE = (1, 2, 3, 4)


def pattern(seed: int = 0, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(SHAPE).astype(dtype)


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def sample() -> PatternFile:
    return read_patterns(sample_path())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_npz_gives_back_every_layer_bit_for_bit(tmp_path: Path, dtype: str, save: Any) -> None:
    layers = [pattern(seed, dtype) for seed in range(3)]
    save(tmp_path / "a.npz", **{f"layers.{number}.pattern": layer for number, layer in enumerate(layers)})
    file = read_patterns(tmp_path / "a.npz")
    assert [layer.dtype for layer in file.patterns] == [np.dtype(dtype)] * 3
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(file.patterns, layers, strict=True))
    assert (file.tokens, file.metadata) == (None, {})


def test_npz_tokens_and_metadata_come_along_and_other_arrays_are_passed_over(tmp_path: Path) -> None:
    arrays = {"layers.0.pattern": pattern(), "scores": np.zeros(3), "tokens": np.array(["a", " b", "\N{SNOWMAN}", ""])}
    arrays["metadata"] = np.array(json.dumps({"model": "m", "n": 1}))
    file = read_patterns(str(write_npz(tmp_path / "a.npz", **arrays)))
    assert file.tokens == ("a", " b", "\N{SNOWMAN}", "")
    assert file.metadata == {"model": "m", "n": 1}
    assert len(file.patterns) == 1


@pytest.mark.parametrize(
    "names", ["arr_{}", "{}", "attentions.{}", "model.layers.{}.self_attn.2", "block{:02}_attention", "L1/{}/weights"]
)
def test_layers_of_an_npz_may_have_any_names_that_differ_in_one_number(tmp_path: Path, names: str) -> None:
    order = [10, 2, 0, 1, 9, 3, 8, 4, 7, 5, 6]
    arrays = {names.format(number): np.full(SHAPE, number, np.float32) for number in order}
    file = read_patterns(write_npz(tmp_path / "a.npz", hidden_states=np.zeros((3, 4)), **arrays))
    assert [layer[0, 0, 0, 0] for layer in file.patterns] == list(range(11))


def test_names_choose_the_layers_among_others_like_them(tmp_path: Path) -> None:
    kinds = ("encoder_attentions", "decoder_attentions", "layers.{}.pattern")
    arrays = {
        f"{kind}.{n}".replace(".{}.pattern.", ".") + ".pattern" * (kind == kinds[2]): np.full(SHAPE, 10 * at + n, "f4")
        for at, kind in enumerate(kinds)
        for n in range(3)
    }
    path = write_npz(tmp_path / "a.npz", single=pattern(), **arrays)
    for names, first in [("encoder_attentions.{}", 0), ("decoder_attentions.{}", 10), (None, 20)]:
        found = read_patterns(path, names).patterns
        assert [layer[0, 0, 0, 0] for layer in found] == [first, first + 1, first + 2]
    assert np.array_equal(read_patterns(path, "single").patterns[0], pattern())
    with pytest.raises(
        ValueError, match=r"a\.npz: must hold arrays named a\.0, \.\., got single \[1, 2, 3, 4\] float32, enc"
    ):
        read_patterns(path, "a.{}")
    with pytest.raises(ValueError, match=r"a\.npz: must hold an array named double, got single"):
        read_patterns(path, "double")
    with pytest.raises(ValueError, match=r"names must have \{\} once, .*, got '\{\}\.\{\}'"):
        read_patterns(path, "{}.{}")


def test_the_only_pattern_needs_no_number(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", attention=pattern(), ids=np.zeros((1, 2, 3, 4), np.int64), mask=np.ones(3))
    (layer,) = read_patterns(path).patterns
    assert np.array_equal(layer, pattern())


@pytest.mark.parametrize("shape", [(3, *SHAPE), SHAPE, (0, *SHAPE)])
def test_npy_holds_all_layers_or_one_in_any_order_of_axes_and_bytes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape).astype(">f4")
    for name, stored in [("swapped", array), ("fortran", np.asfortranarray(array)), ("half", array.astype("f2"))]:
        np.save(tmp_path / f"{name}.npy", stored)
        found = read_patterns(tmp_path / f"{name}.npy").patterns
        assert len(found) == (shape[0] if len(shape) == 5 else 1)
        assert np.array_equal(np.array(found).reshape(shape), stored)


def test_patterns_are_read_only_so_that_push_borrows_them(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pattern())
    (layer,) = read_patterns(tmp_path / "a.npy").patterns
    assert not layer.flags.writeable
    cache = AttentionCache()
    cache.push(layer, copy=False)
    assert np.shares_memory(cache[0], layer)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"must hold arrays of floats .*, named layers\.0\.pattern, .*; got no array$"),
        (
            {"encoder.0": pattern(), "decoder.0": pattern()},
            r"names, such as 'attentions\.\{\}', chooses .*; got enc.*, dec",
        ),
        ({f"a{n}b{n}": pattern() for n in range(9)}, r"got a0b0 .*, a7b7 \[1, 2, 3, 4\] float32, and 1 more$"),
        (
            {"layers.0.pattern": pattern(), "layers.00.pattern": pattern()},
            r"layers must have a number each, got 0 twice",
        ),
        (
            {"layers.0.pattern": pattern()[0, 0]},
            r"layers\.0\.pattern: a layer must be \[batch, head, query, key\] or \[head, .*, got shape \[3, 4\]; axes= names",
        ),
        (
            {"layers.0.pattern": np.zeros(SHAPE, np.int64)},
            r"must be one of float16, bfloat16, float32, float64, got int64",
        ),
        ({"layers.0.pattern": np.zeros(SHAPE, complex)}, r"got complex128"),
        ({"layers.0.pattern": np.full(SHAPE, None)}, r"without pickled objects, got: Object arrays"),
        (
            {"layers.0.pattern": pattern(), "tokens": np.zeros(4)},
            r"tokens must be strings of shape \[key\], got float64",
        ),
        ({"layers.0.pattern": pattern(), "tokens": np.array([["a"]])}, r"of shape \(1, 1\)"),
        ({"layers.0.pattern": pattern(), "metadata": np.array("{")}, r"metadata must be JSON, got: "),
        ({"layers.0.pattern": pattern(), "metadata": np.array("[1]")}, r"metadata must be a JSON object, got list"),
        ({"layers.0.pattern": pattern(), "metadata": np.array(["{}"])}, r"metadata must be one string, got <U2"),
        (np.zeros((3, 4), np.float32), r"a layer must be \[batch, .*, got shape \[3, 4\]; axes= names other axes"),
        (np.zeros(SHAPE, bool), r"the array must be one of float16, bfloat16, float32, float64, got bool"),
        (np.full(SHAPE, None), r"the file must be .* without pickled objects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_file_the_rule_and_the_value(tmp_path: Path, arrays: Any, message: str) -> None:
    path = tmp_path / ("a.npz" if isinstance(arrays, dict) else "a.npy")
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    else:
        np.save(path, arrays)
    with pytest.raises(ValueError, match=message) as error:
        read_patterns(path)
    assert str(error.value).startswith(f"{path}: ")


def test_npy_with_more_layers_than_can_be_is_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**15, 1, 0, 1, 1)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"a\.npy: the array must have at most 1000000 layers, got shape \(10{15}, "):
        read_patterns(tmp_path / "a.npy")


def test_a_file_is_read_by_what_it_is_whatever_its_name_says(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, pattern())
    with (tmp_path / "b").open("wb") as file:
        np.savez(file, pattern())
    for name in ("a.npz", "b"):
        (layer,) = read_patterns(tmp_path / name).patterns
        assert np.array_equal(layer, pattern())


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
def test_a_damaged_file_is_a_value_error_or_still_a_pattern(tmp_path: Path, suffix: str) -> None:
    good = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(good, **{"layers.0.pattern": pattern()})
    elif suffix == ".pt":
        archive(good, TENSOR % (STORAGE, b"K\x0c", SIZES, STRIDES))
    else:
        np.save(good, pattern())
    whole = good.getvalue()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(len(whole))]
    path = tmp_path / f"a{suffix}"
    for contents in damaged:
        path.write_bytes(contents)
        try:
            file = read_patterns(path, check=False)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        else:
            assert all(layer.ndim == 4 for layer in file.patterns)


def test_the_sample_is_small_and_whole_and_says_what_it_is(sample: PatternFile) -> None:
    assert sample_path().stat().st_size < 1_000_000
    assert [layer.shape for layer in sample.patterns] == [(1, 9, 40, 40)] * 30
    assert {layer.dtype for layer in sample.patterns} == {np.dtype(np.float16)}
    assert "".join(sample.tokens or ()) == sample.metadata["text"]
    assert len(sample.tokens or ()) == 40
    assert sample.metadata["model"] == "SmolLM2-135M-Instruct"
    assert "Q4_1" in sample.metadata["quantisation"]


def test_the_rows_of_the_sample_are_causal_weights_that_sum_to_one(sample: PatternFile) -> None:
    for layer in sample.patterns:
        weights = layer.astype(np.float64)
        assert np.all((weights >= 0) & (weights <= 1))
        assert not np.any(np.triu(weights, 1))
        assert np.abs(weights.sum(axis=-1) - 1).max() <= 2**-11


def test_the_sample_shows_an_induction_head(sample: PatternFile) -> None:
    tokens = list(sample.tokens or ())
    last, followed = len(tokens) - 1, tokens.index(tokens[-1]) + 1
    weights = reference.edges(sample.patterns, last, followed)
    assert tokens[followed] == sample.metadata["next_token"]
    assert weights.max() > 0.9
