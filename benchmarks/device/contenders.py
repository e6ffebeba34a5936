"""The helpers of expressions on a device: what a careful user of torch would write there."""

from __future__ import annotations

import importlib
from typing import Any


def arrived(answer: Any) -> Any:
    """A tensor, or each of a tuple, as a NumPy array on the host."""
    return tuple(map(arrived, answer)) if isinstance(answer, tuple) else answer.cpu().numpy()


def torch_qk_rows(query: Any, key: Any, scale: float) -> Any:
    """The weights of some queries, float32 [head, query, key], of queries [head, query, item] and fewer key heads.

    Heads that share keys go into one product, which adds up in float32 and is rounded to the layer's dtype.
    """
    grouped = query.reshape(len(key), -1, query.shape[-1])
    scores = (grouped @ key.mT).float().mul_(scale)
    weights = importlib.import_module("torch").softmax(scores, -1)
    return weights.view(*query.shape[:2], key.shape[1])
