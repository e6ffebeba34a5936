"""Attentions whose last axis is no key: Longformer's offsets, with and without global tokens, and windows of images.

Covered: every reach and number of global tokens, in every dtype, with padding; a real Longformer of two layers against
weights computed from its own queries and keys, within 2^-20; what is left alone because its last axis are keys; what is
refused. The expected patterns are those that the offsets were cut from, by equality.
Sizes: two heads, 12 tokens.
Not covered: models of a real size.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.patterns import Array, assert_same, make

TOKENS = 12


def longformer(reach: int, tokens: list[int], dtype: str = "float32") -> tuple[Array, Array, Array | None]:
    """A pattern as Longformer computes it, what it returns as attentions, and as global attentions."""
    pattern = make("soft", (1, 2, TOKENS, TOKENS), dtype, reach)
    row, column = np.ogrid[:TOKENS, :TOKENS]
    is_global = np.isin(np.arange(TOKENS), tokens)
    is_seen = (abs(row - column) <= reach) | is_global[:, None] | is_global
    pattern = pattern * is_seen.astype(pattern.dtype)
    offsets = np.zeros((1, 2, TOKENS, 2 * reach + 1), pattern.dtype)
    for offset in range(-reach, reach + 1):
        for query in range(max(0, -offset), min(TOKENS, TOKENS - offset)):
            if not is_global[query] and not is_global[query + offset]:
                offsets[:, :, query, reach + offset] = pattern[:, :, query, query + offset]
    columns = pattern[..., tokens] * ~is_global[:, None].repeat(len(tokens), 1)
    of_global = pattern[:, :, tokens].swapaxes(2, 3) if tokens else None
    return pattern, np.concatenate([columns.astype(pattern.dtype), offsets], axis=3), of_global


@pytest.mark.parametrize("reach", [1, 2, 5, 11, 14])
@pytest.mark.parametrize("tokens", [[], [0], [0, 7], [3, 4, 11]])
def test_offsets_become_keys(reach: int, tokens: list[int]) -> None:
    pattern, attentions, of_global = longformer(reach, tokens)
    output = SimpleNamespace(attentions=(attentions,), global_attentions=None if of_global is None else (of_global,))
    assert_same(AttentionCache.from_attentions(output)[0], pattern)


@pytest.mark.parametrize("reach", [1, 2, 5])
def test_offsets_are_known_by_their_corners(reach: int, dtype: str) -> None:
    pattern, attentions, _ = longformer(reach, [], dtype)
    assert_same(AttentionCache.from_attentions([attentions])[0], pattern)
    is_real = (np.arange(TOKENS) < 9).astype(pattern.dtype)  # the others are padding
    keys = np.arange(TOKENS)[:, None] + np.arange(-reach, reach + 1)
    padded = attentions * is_real[:, None] * (keys < 9).astype(pattern.dtype)
    assert_same(AttentionCache.from_attentions([padded])[0], pattern * is_real[:, None] * is_real)


@pytest.mark.parametrize("tokens", [[0], [0, 7]])
def test_global_tokens_need_their_own_weights(tokens: list[int]) -> None:
    _, attentions, _ = longformer(2, tokens)
    words = rf"attentions must come with the weights of its {len(tokens)} global tokens, .*pass the output itself"
    with pytest.raises(ValueError, match=words):
        AttentionCache.from_attentions([attentions])


def test_global_tokens_among_padding_are_refused() -> None:
    _, attentions, of_global = longformer(2, [0])
    attentions[:, :, -1] = 0
    output = SimpleNamespace(attentions=(attentions,), global_attentions=(of_global,))
    with pytest.raises(
        ValueError, match=r"which tokens are global, got 1 of them and 2 rows of zeros.*without padding"
    ):
        AttentionCache.from_attentions(output)


@pytest.mark.parametrize(
    "pattern",
    [
        make("causal", (1, 2, 9, 9)),
        make("soft", (1, 2, 12, 5)),
        np.array([[[[0, 1, 0]]]], np.float32),
        make("soft", (1, 2, 12, 5)) * np.array([1, 1, 1, 0, 0], np.float32),  # keys of padding
        make("causal", (1, 2, 5, 5))[:, :, ::-1],
        np.pad(make("causal", (1, 2, 5, 5)), ((0, 0), (0, 0), (4, 0), (4, 0))),  # padded at the left
        np.pad(make("soft", (1, 2, 5, 5)), ((0, 0), (0, 0), (0, 4), (0, 4))),
        np.zeros((1, 2, 5, 5), np.float32),
        np.zeros((1, 2, 0, 5), np.float32),
    ],
)
def test_keys_are_left_as_they_are(pattern: Array) -> None:
    assert_same(AttentionCache.from_attentions([pattern])[0], pattern)


@pytest.mark.parametrize("name", ["SwinModelOutput", "Swinv2EncoderOutput", "DonutSwinModelOutput"])
def test_the_windows_of_an_image_are_refused_by_the_name_of_their_output(name: str) -> None:
    output = type(name, (), {"attentions": (make("soft", (16, 2, 4, 4)),)})()
    with pytest.raises(ValueError, match=f"got the windows of an image in a {name}; push takes them as they are"):
        AttentionCache.from_attentions(output)


# Tiny models.


@pytest.fixture
def torch() -> Any:
    pytest.importorskip("transformers", reason="needs torch and transformers")
    return pytest.importorskip("torch", reason="needs torch and transformers")


def expected_weights(torch: Any, attention: Any, hidden: Any, is_seen: Any, rows: Any) -> Any:
    """Softmax of a layer's own queries and keys; the rows of global tokens from their own projections."""

    def heads(projected: Any) -> Any:
        return projected.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    def weights(query: Any, key: Any) -> Any:
        scores = heads(query(hidden)) / attention.head_dim**0.5 @ heads(key(hidden)).transpose(2, 3)
        return scores.masked_fill(~is_seen, -torch.inf).softmax(-1)

    found = weights(attention.query, attention.key)
    found[:, :, rows] = weights(attention.query_global, attention.key_global)[:, :, rows]
    return found


@pytest.mark.parametrize("tokens", [[], [0, 9]])
def test_a_longformer_has_the_weights_of_its_own_queries_and_keys(torch: Any, tokens: list[int]) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        attention_window=[4, 8],
        max_position_embeddings=64,
        pad_token_id=1,
    )
    model = transformers.LongformerModel(config).eval()
    is_global = torch.zeros(1, 16, dtype=torch.long)
    is_global[:, tokens] = 1
    ids = torch.arange(5, 21)[None]
    kinds = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        output = model(ids, attention_mask=torch.ones_like(ids), global_attention_mask=is_global, **kinds)
        cache = AttentionCache.from_attentions(output)
        distance = torch.arange(16)[:, None] - torch.arange(16)
        for layer, reach in enumerate((2, 4)):
            is_seen = (distance.abs() <= reach) | (is_global[0, :, None] | is_global[0]).bool()
            attention = model.encoder.layer[layer].attention.self
            expected = expected_weights(torch, attention, output.hidden_states[layer], is_seen, tokens)
            np.testing.assert_allclose(cache[layer], expected.numpy(), rtol=0, atol=2**-20)


def test_image_models_with_windows_are_refused(torch: Any) -> None:
    import transformers

    sizes = {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    config = transformers.SwinConfig(**sizes)
    model = transformers.SwinModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 32, 32), output_attentions=True)
    with pytest.raises(ValueError, match="windows of an image in a SwinModelOutput"):
        AttentionCache.from_attentions(output)
    with pytest.raises(
        ValueError, match=r"attentions\[1\] must have as many batch items as attentions\[0\], 16, got 4"
    ):
        AttentionCache.from_attentions(output.attentions)
