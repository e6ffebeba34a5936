"""A first session: push the pattern of every layer, then ask from a position, to a position, and for the top keys.

Run it: python examples/seed_session.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache

N_LAYERS, N_HEADS, N_TOKENS = 4, 8, 12


def causal_pattern(rng: np.random.Generator) -> npt.NDArray[Any]:
    """A made-up pattern [batch, head, query, key]: softmax of random scores, keys after the query hidden."""
    scores = rng.normal(size=(1, N_HEADS, N_TOKENS, N_TOKENS)).astype(np.float32)
    weights: npt.NDArray[Any] = np.exp(scores) * np.tri(N_TOKENS, dtype=np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def main() -> None:
    """Ask what candle-mi's AttentionCache answers."""
    rng = np.random.default_rng(0)
    cache = AttentionCache.with_capacity(N_LAYERS)
    print("empty:", cache.is_empty)

    for _ in range(N_LAYERS):
        cache.push(causal_pattern(rng))
    print("layers:", cache.n_layers, "of shape", cache.patterns[0].shape)
    print("layer 9:", cache.get_layer(9))

    from_last = cache.attention_from_position(0, N_TOKENS - 1)
    print("layer 0, the last token attends to:", np.round(from_last, 2))

    to_first = cache.attention_to_position(0, 0)
    print("layer 0, who attends to the first token:", np.round(to_first, 2))

    for layer in range(cache.n_layers):
        top = cache.top_attended_positions(layer, N_TOKENS - 1, 3)
        print(f"layer {layer}, the three keys the last token attends to most:", [(key, round(w, 3)) for key, w in top])


if __name__ == "__main__":
    main()
