"""Looks at a little of what is pushed, to notice what is no attention; AttentionCache and its caches on disk use it.

The look is cheap and proves nothing: it reads a few rows, or only shapes, and speaks up where a mistake is far likelier
than a pattern.
"""

from __future__ import annotations

from typing import Any

from attncache import _core
from attncache.array_input import ArrayInput

_GREATEST_SUM = 1 + 2**-6  # of a row of weights, each rounded to bfloat16
_LEAST_WEIGHT = -(2**-10)
_MANY_HEADS = 256  # more than any model has, and few positions


def unlike_weights(source: ArrayInput, layer: int) -> str | None:
    """What is odd about a layer whose rows should be weights, as a warning; None where nothing is.

    Args:
        source: the layer; at most 16 of its rows and 16384 of its weights are read.
        layer: its number, for the warning.

    >>> unlike_weights(ArrayInput(np.full((1, 1, 2, 2), 0.5, np.float32), "float32", False), 0)
    """
    n_rows, least_weight, least_sum, greatest_sum = _core.row_sample(source.array, source.dtype)
    if n_rows == 0 or (least_weight >= _LEAST_WEIGHT and greatest_sum <= _GREATEST_SUM):
        return None
    if least_weight < _LEAST_WEIGHT:
        what = f"sum to between {least_sum:.3g} and {greatest_sum:.3g} and hold negative numbers"
        why = "are these scores before the softmax?"
    else:
        what = f"sum to up to {greatest_sum:.3g}"
        why = "was the softmax taken over another axis than the keys, or was the model training, with dropout?"
    return (
        f"layer {layer} does not look like attention weights: its rows {what}: {why} It is stored as it is; "
        "check=False leaves out this look at some rows"
    )


def with_positions_first(query: Any, key: Any, *, causal: bool) -> str | None:
    """Whether queries and keys are likelier [batch, position, head, item], as a warning; None where they are not.

    Args:
        query, key: arrays to be taken as [batch, head, position, item].
        causal: whether a query sees no later key, so that queries can hardly outnumber keys.

    >>> with_positions_first(np.zeros((1, 12, 64, 64)), np.zeros((1, 12, 64, 64)), causal=True)
    """
    shapes = [tuple(getattr(array, "shape", ())) for array in (query, key)]
    if any(len(shape) != 4 for shape in shapes):
        return None
    (_, first, second, _), (_, first_of_key, second_of_key, _) = shapes
    is_grouped = causal and first > second > second_of_key > 0 and second % second_of_key == 0
    is_plain = second == second_of_key and first > _MANY_HEADS >= 2 * second
    if first != first_of_key or not (is_grouped or is_plain):
        return None
    return (
        f"query and key of shapes {list(shapes[0])} and {list(shapes[1])} look like [batch, position, head, item], and "
        "are taken as [batch, head, position, item]: pass query.swapaxes(1, 2) and key.swapaxes(1, 2)"
    )
