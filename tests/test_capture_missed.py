"""What a capture did not hear, and how it says so: models and layers that did not run, or went past the interface."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import numpy as np
import pytest

from tests.support.capturing import IDS, LENGTH, capture_of, dense, llama

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers
from transformers import AttentionInterface, DynamicCache

from attncache import CaptureWarning, capture
from tests.support.capturing import SIZES, go_on, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_dropout_is_named_at_the_end() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZES, attn_implementation="sdpa")).train()
    with pytest.warns(CaptureWarning, match="ran with dropout: the capture holds the weights before"), capture(model):
        model(IDS)


def test_a_capture_in_which_nothing_ran_says_so() -> None:
    model = llama()
    runs = copy.deepcopy(model)
    with pytest.warns(CaptureWarning, match="saw no attention of this LlamaForCausalLM: was it another object") as seen:
        assert capture_of(model, lambda: runs(IDS)).is_empty
    assert seen[0].filename == capture_of.__code__.co_filename  # where the with statement is


def test_a_capture_without_with_says_how_it_is_used() -> None:
    with pytest.raises(
        AttributeError, match=r"no attribute 'top_k' before it begins: with attncache\.capture\(model\)"
    ):
        capture(llama()).top_k(3)  # type: ignore[attr-defined]
    assert not hasattr(copy.copy(capture(llama())), "top_k")


def test_a_capture_whose_model_ran_in_another_thread_says_so() -> None:
    model = llama()

    def run() -> None:
        thread = threading.Thread(target=model, args=(IDS,))
        thread.start()
        thread.join()

    with pytest.warns(CaptureWarning, match="it ran in another thread than the capture"):
        assert capture_of(model, run).is_empty


@pytest.mark.parametrize("name", ["model", "_model", "original_model"])
def test_what_wraps_a_model_says_what_to_pass(name: str) -> None:
    class Pipeline:
        pass

    wrapper = Pipeline()
    setattr(wrapper, name, llama())
    with pytest.raises(TypeError, match=rf"got Pipeline; pass its \.{name}, and run that"), capture(wrapper):  # type: ignore[arg-type]
        pass


class Patched(torch.nn.Module):
    """Attention by other means in the place of a layer's own, as remote code brings it."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.old = old

    def forward(self, hidden_states: Any, **_: Any) -> Any:
        shape = (*hidden_states.shape[:2], -1, 8)
        q, k, v = (
            project(hidden_states).view(shape).transpose(1, 2)
            for project in (self.old.q_proj, self.old.k_proj, self.old.v_proj)
        )
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.old.o_proj(out.transpose(1, 2).flatten(2)), None


def test_a_layer_that_did_not_run_is_named_and_the_others_keep_their_numbers() -> None:
    model = llama(3)
    model.model.layers[0].self_attn = Patched(model.model.layers[0].self_attn)
    model.model.layers[0].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    words = r"1 of 3 attention layers did not run in this capture: layer 0 \(model\.layers\.0\.self_attn\.old\)"
    with pytest.warns(CaptureWarning, match=words):
        cache = capture_of(model, lambda: model(IDS))
    assert [source.layer for source in cache.sources if source] == [1, 2]


def test_attention_by_other_means_in_the_place_of_a_layer_is_heard() -> None:
    model = llama(3)
    before = dense(capture_of(model, lambda: model(IDS), dtype="float32"))
    model.model.layers[0].self_attn = Patched(model.model.layers[0].self_attn)
    cache = capture_of(model, lambda: model(IDS), dtype="float32")
    assert [(source.layer, source.seam) for source in cache.sources if source] == [
        (0, "sdpa"),
        (1, "interface"),
        (2, "interface"),
    ]
    assert cache.shapes == ((1, 4, LENGTH, LENGTH),) * 3
    assert not np.array_equal(dense(cache)[0], before[0])  # it has no rotary embedding


class Opaque(torch.nn.Module):
    """Attention whose softmax is written out, so that nobody hears one."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)

    def forward(self, x: Any) -> Any:
        scores = (self.queries(x) @ self.keys(x).mT).exp()
        return scores / scores.sum(-1, keepdim=True) @ x


def test_one_warning_names_all_that_a_capture_missed() -> None:
    model = llama(3)
    model.pooled_attention = Opaque()
    model.model.layers[0].self_attn = Patched(model.model.layers[0].self_attn)
    model.model.layers[0].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    x = torch.zeros(1, 3, 32)
    words = r"pooled_attention ran, and no softmax or .* of it was heard\. 1 of 3 attention layers did not run"
    with pytest.warns(CaptureWarning, match=words) as seen:
        capture_of(model, lambda: (model(IDS), model.pooled_attention(x)))
    assert len(seen) == 1


def test_a_model_of_which_no_attention_is_heard_is_refused_by_name() -> None:
    model = torch.nn.ModuleDict({"self_attention": Opaque()})
    words = r"ModuleDict cannot be captured: self_attention ran, and no softmax"
    with pytest.raises(ValueError, match=words):
        capture_of(model, lambda: model["self_attention"](torch.zeros(1, 3, 32)))


def test_a_softmax_that_another_layer_mixes_is_named() -> None:
    class Talking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            heads = x.view(*x.shape[:2], 4, 8).transpose(1, 2)
            weights = (heads @ heads.mT).softmax(-1)
            return self.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ heads

    model = torch.nn.Sequential(Talking())
    with pytest.raises(
        ValueError, match="cannot be captured: 0 passes its softmax through linear before it multiplies"
    ):
        capture_of(model, lambda: model(torch.randn(2, 5, 32)))


def git() -> Any:
    torch.manual_seed(0)
    vision = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    vision |= {"num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    config = transformers.GitConfig(vision_config=vision, **SIZES | {"num_hidden_layers": 2, "eos_token_id": 2})
    return transformers.GitForCausalLM._from_config(config, attn_implementation="eager").eval()


def test_a_model_of_which_one_half_uses_the_interface_is_heard_whole() -> None:
    model = git()
    cache = capture_of(model, lambda: model(input_ids=IDS, pixel_values=torch.zeros(1, 3, 16, 16)))
    assert [(source.stack, source.layer, source.seam) for source in cache.sources if source] == [
        ("vision", 0, "interface"),
        ("vision", 1, "interface"),
        (None, 0, "softmax"),
        (None, 1, "softmax"),
    ]


def test_a_module_without_attention_says_that_none_was_seen() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.warns(CaptureWarning, match="saw no attention of this Linear"):
        assert capture_of(model, lambda: model(torch.zeros(1, 2))).is_empty


def test_a_layer_that_passes_the_interface_by_in_its_second_call_is_refused() -> None:
    model = make("gpt2: one key head per head", attn_implementation="eager")
    past = DynamicCache(config=model.config)
    with capture(model, layers=0):
        go_on(model, inputs()["input_ids"], past)
        model.transformer.h[0].attn.reorder_and_upcast_attn = True
        with pytest.raises(
            ValueError, match="must be heard in one place, got a call of another than before, where its q"
        ):
            go_on(model, inputs()["input_ids"][:, :1], past)


def run_layer(model: Any, number: int) -> None:
    hidden = torch.zeros(1, 3, 32)
    model.model.layers[number](hidden, position_embeddings=model.model.rotary_emb(hidden, torch.arange(3)[None]))


def test_a_transformers_without_the_method_it_listens_at_is_heard_at_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama: grouped heads")
    with_interface = capture_of(model, lambda: model(IDS), dtype="float32")
    get_interface = AttentionInterface.get_interface
    monkeypatch.delattr(AttentionInterface, "get_interface")
    monkeypatch.setattr(AttentionInterface, "get_function", get_interface, raising=False)
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.ALL_ATTENTION_FUNCTIONS",
        type(
            "Older", (), {"get_interface": lambda _, name, default: AttentionInterface().get_function(name, default)}
        )(),
    )
    cache = capture_of(model, lambda: model(IDS), dtype="float32")
    assert {source.seam for source in cache.sources if source} == {"sdpa"}
    assert all(np.abs(a - b).max() <= 1e-6 for a, b in zip(dense(cache), dense(with_interface), strict=True))


def test_layers_that_never_run_are_named() -> None:
    model = make("llama: grouped heads")
    words = r"got none of layer 2 \(model\.layers\.2\.self_attn\)"
    with pytest.raises(ValueError, match=words), capture(model, layers=[1, 2]):
        run_layer(model, 1)


def test_layers_lie_in_the_order_in_which_they_ran() -> None:
    model = make("llama: grouped heads")
    with warnings.catch_warnings(), capture(model) as cache:
        warnings.simplefilter("ignore", CaptureWarning)
        run_layer(model, 1)
        run_layer(model, 0)
    assert [source.layer for source in cache.sources if source] == [1, 0]
    assert "2 layers (1 and 0 of the model)" in repr(cache)
