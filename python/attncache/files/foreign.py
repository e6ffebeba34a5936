"""The layers in files of others: which arrays they are, how their axes lie, and what their names say of a model.

``contents_of``, ``AttentionCache.load`` and ``read_patterns`` use it, and so do all commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.adapters.named import errors_named
from attncache.array_input import ArrayInput, StoredDType, read_array
from attncache.axes import Arrangement, Axes, checked_axes, of_one_array, of_one_layer
from attncache.files.arrays import FLOATS, UNREADABLE, NamedArray, listed, size_of
from attncache.files.containers import Container
from attncache.files.errors import in_file
from attncache.files.layers import FileLayer, Policy, Shape, dense_layer
from attncache.files.schema import MOST_LAYERS, MOST_OF_NOTHING
from attncache.layer_source import LayerSource
from attncache.notices import PatternWarning, warn_user
from attncache.pattern_check import unlike_weights

_PATTERN = "layers.{}.pattern"
_MOST_NUMBERS = 32  # in a name
_SCORES = re.compile("score|logit", re.IGNORECASE)
_ATTENTION = re.compile("att(entio)?n|pattern", re.IGNORECASE)
_WEIGHT = re.compile(r"(^|[._/])(weight|bias|gamma|beta|running_mean|running_var)$")
_UNNAMED = re.compile("arr_[0-9]+")  # what np.savez calls arrays that have no name


def layers_of_others(
    container: Container, names: str | None = None, axes: Axes | None = None, *, check: bool = True
) -> list[FileLayer]:
    """The layers in a container, in their order.

    Args:
        container: of which file.
        names: the names of the arrays with {} for their number, or the name of a single one. None finds them: those
            named layers.N.pattern, or else all arrays of floats of one number of axes whose names differ in one number
            alone; where there are several kinds, those called after attention and not after scores.
        axes: the names of an array's axes, as for ``attncache.axes``; None reads a single array as ``of_one_array`` and
            several as ``of_one_layer`` does.
        check: whether the first layer that is read and does not look like attention weights is a PatternWarning.

    Raises:
        ValueError: there are none, one is no pattern, or it is not clear which they are, or which axes.
        TypeError: names or axes is of the wrong kind.
    """
    if names is not None and not isinstance(names, str):
        raise TypeError(f"names must be None or a string, got {type(names).__name__}")
    if names is not None and names.count("{}") > 1:
        raise ValueError(f"names must have {{}} once, where the number of the layer is, got {names!r}")
    axes = None if axes is None else checked_axes(axes)
    with in_file(container.path):
        chosen = _named(container.arrays, names) if names is not None else _found(container.arrays, axes)
        arrangements = _arrangements(chosen, axes)
        for (_, array), arrangement in zip(chosen, arrangements, strict=True):
            _check_sizes(array, arrangement)
        return _layers(chosen, arrangements, _Look(container.path) if check else None)


_Chosen = list[tuple[int | None, NamedArray]]  # each with the number in its name


def _named(arrays: list[NamedArray], names: str) -> _Chosen:
    """The arrays of these names."""
    if "{}" not in names:
        only: _Chosen = [(None, array) for array in arrays if array.name == names]
        if not only:
            raise ValueError(f"must hold an array named {names}, got {listed(arrays)}")
        return only
    numbered = _numbered(arrays, names)
    if not numbered:
        raise ValueError(f"must hold arrays named {names.replace('{}', '0')}, .., got {listed(arrays)}")
    twice = next((a for (a, _), (b, _) in pairwise(numbered) if a == b), None)
    if twice is not None:
        raise ValueError(f"layers must have a number each, got {twice} twice")
    return numbered


def _found(arrays: list[NamedArray], axes: tuple[str, ...] | None) -> _Chosen:
    """The arrays that may be layers, if their names say in which order."""
    if _numbered(arrays, _PATTERN):
        return _named(arrays, _PATTERN)
    if 2 * sum(_WEIGHT.search(array.name) is not None for array in arrays) > len(arrays):
        raise ValueError(
            f"must hold attention, got weights of a model, such as {arrays[0]}; attncache.capture(model) keeps what it "
            "attends to while it runs"
        )
    if len(arrays) == 1:
        return [(None, arrays[0])]
    for n_axes in (4, 5, 3) if axes is None else (len(axes),):
        floats = [array for array in arrays if array.dtype in FLOATS and len(array.shape) == n_axes]
        without_scores = [array for array in floats if not _SCORES.search(array.name)]
        of_attention = [array for array in without_scores if _ATTENTION.search(array.name)]
        for candidates in (floats, without_scores, of_attention):
            family = _family(candidates, axes)
            if family:
                return family
    unreadable = next((array for array in arrays if array.dtype == UNREADABLE), None)
    if unreadable is not None:
        unreadable[...]  # which says why
    raise ValueError(
        "must hold arrays of floats [batch, head, query, key], one per layer, named layers.0.pattern, .. or otherwise "
        "alike but for one number; names, such as 'attentions.{}', chooses among several kinds; "
        f"got {listed(arrays)}"
    )


def _family(candidates: list[NamedArray], axes: tuple[str, ...] | None) -> _Chosen | None:
    """All candidates in their order, if their names differ in one number alone or there is but one."""
    if len(candidates) == 1:
        return [(None, candidates[0])]
    for names in _templates(candidates[0].name) if candidates else ():
        numbered = _numbered(candidates, names)
        if len({number for number, _ in numbered}) == len(candidates):
            return numbered
    if candidates and axes is not None and "layer" in axes:  # texts, which may have any names
        return [(None, array) for array in candidates]
    return None


def _numbered(arrays: Iterable[NamedArray], names: str) -> _Chosen:
    """The arrays of these names, each with its number, in the order of these."""
    wanted = re.compile("([0-9]{1,9})".join(map(re.escape, names.split("{}"))))
    found = [(int(match[1]), array) for array in arrays if (match := wanted.fullmatch(array.name))]
    return [(number, array) for number, array in sorted(found, key=lambda pair: pair[0])]


def _templates(name: str) -> list[str]:
    """The name with {} for each of its numbers in turn."""
    numbers = islice(re.finditer("[0-9]+", name), _MOST_NUMBERS)
    return [f"{name[: match.start()]}{{}}{name[match.end() :]}" for match in numbers]


def _arrangements(chosen: _Chosen, axes: tuple[str, ...] | None) -> list[Arrangement]:
    """How each array is read, by its shape alone."""
    for _, array in chosen:
        if array.dtype == UNREADABLE:
            array[...]  # which says why
        if array.dtype not in FLOATS:
            raise ValueError(f"{array.name} must be one of {', '.join(FLOATS)}, got {array.dtype}")
    if len(chosen) > 1 and axes is not None and {"layer", "batch"} <= set(axes):
        raise ValueError(
            f"axes names layer and batch, so that nothing is left for {len(chosen)} arrays to count; names chooses one"
        )
    number, only = chosen[0]
    tells = number is not None or _tells_its_layer(only.name)
    is_alone = len(chosen) == 1 and (len(only.shape) == 5 or not tells)
    if is_alone:
        return [of_one_array(only.shape, axes)]
    found = []
    for _, array in chosen:
        with errors_named(array.name):
            found.append(of_one_layer(array.shape, axes))
    return found


def _tells_its_layer(name: str) -> bool:
    """Whether the name of a single array has the number of its layer."""
    return re.search("[0-9]", name) is not None and not _UNNAMED.fullmatch(name)


def _check_sizes(array: NamedArray, arrangement: Arrangement) -> None:
    """Refuse sizes that would take time or space beyond the file's own."""
    batch_size, n_heads, seq_q, seq_k = arrangement.layer_shape
    if arrangement.n_layers > MOST_LAYERS:
        raise ValueError(f"{array.name} must have at most {MOST_LAYERS} layers, got shape {array.shape}")
    if max(seq_q, seq_k) >= 2**32:
        raise ValueError(f"{array.name} must have fewer than 2**32 queries and keys, got shape {array.shape}")
    if 0 in array.shape and max(batch_size, n_heads) > MOST_OF_NOTHING:
        rule = f"must have at most {MOST_OF_NOTHING} batch items and heads if it is empty"
        raise ValueError(f"{array.name} {rule}, got shape {array.shape}")


def _layers(chosen: _Chosen, arrangements: list[Arrangement], look: _Look | None) -> list[FileLayer]:
    """The layers of the arrays: all in one, one in each, or all in each of several texts."""
    arrays = [array for _, array in chosen]
    first = arrangements[0]
    if not first.has_layers:
        sources = _sources([number for number, _ in chosen], arrays)
        each = zip(arrays, arrangements, sources, strict=True)
        return [
            _layer(how.layer_shape, array.dtype, source, _reader([array], how, (0, n), look))
            for n, (array, how, source) in enumerate(each)
        ]
    for array in arrays:
        if (array.shape, array.dtype) != (arrays[0].shape, arrays[0].dtype):
            raise ValueError(f"texts must be of one shape and dtype to be one batch, got {arrays[0]} and {array}")
    batch_size, *sizes = first.layer_shape
    shape: Any = (batch_size * len(arrays), *sizes)
    readers = [_reader(arrays, first, (n, n), look) for n in range(first.n_layers)]
    return [_layer(shape, arrays[0].dtype, None, reader) for reader in readers]


def _layer(shape: Shape, dtype: str, source: LayerSource | None, read: Callable[[], ArrayInput]) -> FileLayer:
    """A layer of others; the one place where they come in."""

    def load(dtype: StoredDType | None, index: Policy) -> _core.Layer:
        return dense_layer(read(), dtype, index)

    return FileLayer("dense", shape, dtype, size_of(shape, dtype), load, source, read=read)


def _sources(numbers: list[int | None], arrays: list[NamedArray]) -> list[LayerSource | None]:
    """What the numbers in the names say: nothing where they are those of the places, and where they may count from 1 only
    the name."""
    known = [number for number in numbers if number is not None]
    if known == list(range(len(arrays))):
        return [None] * len(arrays)
    if not known or known[0] == 1:
        return [LayerSource(array.name) if _tells_its_layer(array.name) else None for array in arrays]
    return [LayerSource(layer=number) for number in known]


class _Look:
    """Warns of the first layer of a file that does not look like attention weights, and of no other."""

    def __init__(self, path: Path) -> None:
        self._path: Path | None = path

    def __call__(self, source: ArrayInput, number: int) -> None:
        message = None if self._path is None else unlike_weights(source, number)
        if message is not None:
            path, self._path = self._path, None
            warn_user(f"{path}: {message}", PatternWarning)


def _reader(
    arrays: Sequence[NamedArray], arrangement: Arrangement, numbers: tuple[int, int], look: _Look | None
) -> Callable[[], ArrayInput]:
    """Reads one layer, by its number in each array, whose items lie along the batch; and by its number in the file looks at it."""
    in_array, in_file = numbers

    def items(array: NamedArray) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = arrangement.layer(array if arrangement.has_layers else array[...], in_array)
        return found

    def read() -> ArrayInput:
        found = items(arrays[0]) if len(arrays) == 1 else np.concatenate([items(array) for array in arrays])
        found.flags.writeable = False
        is_bfloat16 = arrays[0].dtype == "bfloat16"
        source = ArrayInput(found, "bfloat16", is_writable=False) if is_bfloat16 else read_array(found)
        if look is not None:
            look(source, in_file)
        return source

    return read
