"""Small random models of many kinds, their inputs, and how far a captured pattern may be from the model's own.

Used by the tests of capture and of real models, which import it once torch and transformers are known to be there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from attncache import AttentionCache, CaptureWarning, capture
from attncache.adapters.capture.calls import Call
from attncache.adapters.capture.modules import interface_modules
from attncache.adapters.capture.seams.listening import Heard as HeardCall
from attncache.adapters.capture.seams.listening import listening
from tests.support.patterns import SEED

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

UNIT = 2.0**-24  # one rounding to float32
HALF_UNIT = 2.0**-11  # one rounding to float16
WINDOW = 5
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
HEAD_DIM = {**GROUPED, "head_dim": 8}
MAKERS: dict[str, Callable[..., Any]] = {
    "llama: grouped heads": lambda **kw: LlamaForCausalLM(LlamaConfig(**GROUPED, **kw)),
    "qwen3: grouped heads, query norm": lambda **kw: Qwen3ForCausalLM(Qwen3Config(**HEAD_DIM, **kw)),
    "mistral: window": lambda **kw: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=WINDOW, **kw)),
    "gemma2: soft-capping, window in every other layer": lambda **kw: Gemma2ForCausalLM(
        Gemma2Config(
            **HEAD_DIM, sliding_window=WINDOW, attn_logit_softcapping=0.5, **{"attn_implementation": "eager", **kw}
        )
    ),
    "gpt-oss: sinks, window in every other layer": lambda **kw: GptOssForCausalLM(
        GptOssConfig(**HEAD_DIM, sliding_window=WINDOW, num_local_experts=2, num_experts_per_tok=1, **kw)
    ),
    "gpt2: one key head per head": lambda **kw: GPT2LMHeadModel(
        GPT2Config(vocab_size=99, n_embd=32, n_layer=4, n_head=4, n_positions=64, eos_token_id=None, **kw)
    ),
    "bert: bidirectional": lambda **kw: BertModel(BertConfig(**SIZES, **kw)),
    "modernbert: bidirectional, window in every other layer": lambda **kw: ModernBertModel(
        ModernBertConfig(**SIZES, local_attention=6, global_attn_every_n_layers=2, **kw)
    ),
}
CAUSAL = [name for name in MAKERS if "bidirectional" not in name]
N_LAYERS, N_HEADS, BATCH, LENGTH = 4, 4, 2, 12


def make(name: str, **options: Any) -> Any:
    """A model of that kind with weights from the seed; large enough weights that patterns are far from uniform."""
    torch.manual_seed(SEED)
    model = MAKERS[name](**options).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.ndim == 2 and any(
                part in path for part in ("q_proj", "k_proj", "query", "key", "c_attn", "Wqkv")
            ):
                weight.mul_(8.0)
            if path.endswith("sinks"):
                weight.normal_()
    return model


def inputs(padding: str = "none") -> dict[str, torch.Tensor]:
    """Two texts of token numbers; one of them padded by a quarter at that side."""
    generator = torch.Generator().manual_seed(SEED)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    if padding == "left":
        mask[0, : LENGTH // 4] = 0
    elif padding == "right":
        mask[1, -LENGTH // 4 :] = 0
    return {"input_ids": torch.randint(5, 90, mask.shape, generator=generator), "attention_mask": mask}


def go_on(model: Any, ids: torch.Tensor, past: transformers.Cache, **options: Any) -> Any:
    """Runs the model on more tokens, after those whose keys and values `past` holds, and adds theirs to it."""
    parameters = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"  # as it was called before transformers 5.24
    return model(ids, use_cache=True, **{name: past}, **options)


class Heard(NamedTuple):
    """What one attention call received, widened to float64: [batch, head, query or key, head_dim]."""

    query: npt.NDArray[np.float64]
    key: npt.NDArray[np.float64]
    scale: float


@contextmanager
def hearing(model: Any) -> Iterator[list[Heard]]:
    """Notes the queries and keys of a model's attention calls, beside any capture."""
    calls: list[Heard] = []
    modules = interface_modules(model)

    class Notes:
        def heard(self, attention: HeardCall) -> None:
            if attention.module in modules:
                call = attention.read(None)
                assert isinstance(call, Call)
                query, key = (tensor.double().numpy() for tensor in (call.query, call.key))
                calls.append(Heard(query, np.repeat(key, query.shape[1] // key.shape[1], axis=1), call.scale))

        def unheard(self, what: str) -> None:
            pass

        def reordered(self) -> None:
            pass

    with listening(Notes()):
        yield calls


def allowed(heard: Heard, pattern: npt.NDArray[Any], *, stored_half: bool = False) -> npt.NDArray[np.float64]:
    """How far a pattern computed from these queries and keys may be from the model's own float32 pattern.

    A score is a dot product of d numbers: each side rounds it by at most (d + 4) units of sum |q||k|, whatever the
    order. Queries and keys stored as float16 add two roundings of a half to each product. A score that is off by at
    most e turns a weight w into at most w * exp(2 e); the softmax itself adds a rounding for each of its n terms.
    """
    size = np.matmul(np.abs(heard.query), np.abs(heard.key).swapaxes(2, 3)) * heard.scale
    error = 2 * (heard.query.shape[-1] + 4) * UNIT * size
    if stored_half:
        error += (2 * HALF_UNIT + HALF_UNIT**2) * size
    error = error.max(axis=-1, keepdims=True)
    n = pattern.shape[-1]
    return np.asarray(pattern.astype(np.float64) * (np.expm1(2 * error) + 2 * (n + 16) * UNIT) + UNIT)


def dense(cache: AttentionCache) -> list[np.ndarray[Any, Any]]:
    """Every weight of every layer, of whichever kind."""
    return [cache.edges(None, None, layers=layer, heads=None, batch=slice(None)) for layer in range(cache.n_layers)]


def assert_close(cache: AttentionCache, theirs: Any, *, within: float = 1e-5) -> None:
    """Each layer of a cache against the weights of the model's own."""
    assert cache.n_layers == len(theirs)
    for ours, other in zip(dense(cache), theirs, strict=True):
        assert ours.shape == tuple(other.shape)
        assert np.abs(ours - np.asarray(other, np.float32)).max() <= within


IDS = torch.randint(3, 90, (1, LENGTH), generator=torch.Generator().manual_seed(7))


def llama(n_layers: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**GROUPED | {"num_hidden_layers": n_layers})
    return LlamaForCausalLM._from_config(config, **options).eval()


def gemma3(window: int) -> Any:
    """Two layers of which the first sees a window, with weights that are far from uniform."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    sizes = HEAD_DIM | {"num_hidden_layers": 2}
    config = transformers.Gemma3TextConfig(**sizes, sliding_window=window, layer_types=kinds)
    model = transformers.Gemma3ForCausalLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(3)
    return model


def capture_of(model: Any, run: Callable[[], Any], **options: Any) -> AttentionCache:
    """What a capture of the model holds after the run."""
    with capture(model, **options) as cache:
        run()
    return cache


def became_patterns(model: Any, **options: Any) -> tuple[AttentionCache, str]:
    """What a capture of queries and keys holds of the two texts where they do not give some weights, and how it says so."""
    words = "queries and keys alone do not give the weights"
    with pytest.warns(CaptureWarning, match=words) as seen, capture(model, "qk", dtype="float32") as cache:
        model(inputs()["input_ids"], **options)
    (warning,) = seen
    return cache, str(warning.message)
