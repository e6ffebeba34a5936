"""Which arrays of a file by others are the layers, and which of their axes is which: the same in every kind of file.

Covered: one array of all layers and several of one each, with and without a batch, in .npz, .npy, safetensors, what
torch.save wrote, HDF5 and folders, by ``read_patterns`` and ``AttentionCache.load`` alike; axes by name in every order; texts that
become a batch; numbers from 1 and with gaps; which of several kinds of arrays is taken; what is a question.
Sizes: 4 layers of 3 heads over 5 queries and 6 keys. Values compare by equality.
Not covered: the kinds of files themselves (test_kinds_of_files.py), the commands (test_convert.py, test_info.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import DamagedFileError, read_patterns
from attncache.layer_source import LayerSource
from tests.support.written_by_others import LAYERS, Writer, assert_layers, every_kind, npz, patterns, read_alike


@every_kind
@pytest.mark.parametrize("batch_size", [1, 2])
def test_one_array_holds_all_layers(write: Writer, batch_size: int, tmp_path: Path) -> None:
    stack = patterns(batch_size)
    assert_layers(read_alike(write(tmp_path, {"attentions": stack})), stack)
    more = {"attentions": stack, "hidden": np.ones((3, 5, 7, 9, 11), np.float32), "ids": np.arange(6)}
    assert_layers(read_alike(write(tmp_path, more), names="attentions"), stack)


@every_kind
def test_several_arrays_are_one_layer_each_with_a_batch_or_without(write: Writer, tmp_path: Path) -> None:
    stack = patterns()
    (tmp_path / "with").mkdir()
    with_batch = {f"layer_{n}": layer for n, layer in enumerate(stack)}
    assert_layers(read_alike(write(tmp_path / "with", with_batch)), stack)
    without = {f"layer_{n}": layer[0] for n, layer in enumerate(stack)}
    cache = AttentionCache.load(write(tmp_path, without))
    assert_layers(list(cache), stack)
    assert cache.sources == (None,) * LAYERS


ORDERS = ("layer head query key", "head layer query key", "query key head layer", "batch layer head query key")


@every_kind
@pytest.mark.parametrize("axes", ORDERS)
def test_axes_say_which_is_which(write: Writer, axes: str, tmp_path: Path) -> None:
    names = axes.split()
    stack = patterns(2 if "batch" in names else 1)
    whole = stack if "batch" in names else stack[:, 0]
    order = [name for name in ("layer", "batch", "head", "query", "key") if name in names]
    array = whole.transpose([order.index(name) for name in names])
    path = write(tmp_path, {"stack": array})
    assert_layers(read_alike(path, axes=axes), stack)
    assert_layers(read_alike(path, axes=names, names="stack"), stack)


@every_kind
def test_axes_of_each_layer_may_lie_in_any_order(write: Writer, tmp_path: Path) -> None:
    stack = patterns(2)
    path = write(tmp_path, {f"l{n}": layer.transpose(2, 3, 1, 0) for n, layer in enumerate(stack)})
    assert_layers(read_alike(path, axes="query key head batch"), stack)


@every_kind
@pytest.mark.parametrize("names", [("text_1", "text_2", "text_10"), ("cat", "dog", "eel")])
def test_arrays_that_name_the_layer_are_the_texts_of_a_batch(
    write: Writer, names: tuple[str, ...], tmp_path: Path
) -> None:
    stack = patterns(3)
    path = write(tmp_path, {name: stack[:, n] for n, name in enumerate(names)})
    assert_layers(read_alike(path, axes="layer head query key"), stack)


def test_texts_of_different_lengths_are_no_batch(tmp_path: Path) -> None:
    path = npz(tmp_path, {"a0": patterns()[:, 0], "a1": patterns()[:, 0, :, :2]})
    with pytest.raises(
        ValueError, match=r"texts must be of one shape and dtype to be one batch, got a0 \[4, 3, 5, 6\]"
    ):
        read_patterns(path, axes="layer head query key")
    with pytest.raises(ValueError, match=r"axes names layer and batch, so that nothing is left for 2 arrays to count"):
        read_patterns(npz(tmp_path, {"a0": patterns(), "a1": patterns()}), axes="layer batch head query key")


@every_kind
def test_an_array_that_may_be_two_things_is_a_question(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, {"stack": patterns()[:, 0]})
    question = (
        r'axes must be given for an array of shape \[4, 3, 5, 6\]: .* \(axes="layer head query key"\) or one layer'
    )
    for read in (read_patterns, AttentionCache.load):
        with pytest.raises(ValueError, match=question) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert not isinstance(caught.value, DamagedFileError)
    assert_layers(read_alike(path, axes="batch head query key"), patterns()[None, :, 0])


@pytest.mark.parametrize(
    ("numbers", "sources"),
    [
        ((1, 2, 3, 4), [LayerSource(f"layer_{n}") for n in (1, 2, 3, 4)]),
        ((0, 3, 5, 11), [LayerSource(layer=n) for n in (0, 3, 5, 11)]),
        ((6, 7, 8, 10), [LayerSource(layer=n) for n in (6, 7, 8, 10)]),
        ((0, 1, 2, 3), [None] * 4),
    ],
)
@every_kind
def test_numbers_from_1_or_with_gaps_stay_with_the_layers(
    write: Writer, numbers: tuple[int, ...], sources: list[LayerSource | None], tmp_path: Path
) -> None:
    stack = patterns()
    path = write(tmp_path, {f"layer_{n}": layer for n, layer in zip(numbers, stack, strict=True)})
    for names in (None, "layer_{}"):
        cache = AttentionCache.load(path, names=names)
        assert_layers(list(cache), stack)
        assert list(cache.sources) == sources


@every_kind
def test_attention_is_preferred_to_scores_and_to_what_else_has_four_axes(write: Writer, tmp_path: Path) -> None:
    stack = patterns()
    arrays = {
        f"{kind}_{n}": layer + at
        for at, kind in enumerate(("attn", "attn_scores", "keys"))
        for n, layer in enumerate(stack)
    }
    assert_layers(read_alike(write(tmp_path, arrays)), stack)
    assert_layers(read_alike(write(tmp_path, arrays), names="keys_{}"), stack + 2)


def test_a_single_layer_says_by_its_number_that_it_is_one(tmp_path: Path) -> None:
    batch = patterns(2)[0]
    assert_layers(read_alike(npz(tmp_path, {"attn_0": batch})), batch[None])
    np.savez(tmp_path / "b.npz", batch)
    with pytest.raises(ValueError, match="axes must be given"):
        read_patterns(tmp_path / "b.npz")


def test_a_misaligned_pattern_by_others_is_copied(tmp_path: Path) -> None:
    pattern = np.random.default_rng(0).random((1, 1, 2, 3)).astype(np.float32)
    entries = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "layers.0.pattern": {"dtype": "F32", "shape": [1, 1, 2, 3], "data_offsets": [1, 25]},
    }
    header = json.dumps(entries).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x" + pattern.tobytes())
    assert AttentionCache.load(tmp_path / "a.safetensors")[0].tobytes() == pattern.tobytes()


def test_a_file_without_patterns_is_refused_with_what_it_has_and_is_not_called_damaged(tmp_path: Path) -> None:
    writer = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    for tensors, words in [
        ({}, "got no array"),
        ({"embedding": np.ones(1)}, r"a layer must be \[batch, head, query, key\] or .*, got shape \[1\]"),
        ({"a": np.ones(1), "b": np.ones((1, 1, 2, 2), int)}, r"got .*b \[1, 1, 2, 2\] I64"),
    ]:
        writer.save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=rf"a\.safetensors: .*{words}") as caught:
            AttentionCache.load(tmp_path / "a.safetensors")
        assert not isinstance(caught.value, DamagedFileError)
