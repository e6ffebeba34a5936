"""``attncache.capture`` holds what the model computed, says where it comes from, and names what it did not hear.

Covered: attention functions of one's own against what they return and put out, masks of any form, whole
encoder-decoders and their generation, captures begun in mid-text, beam search, compressed caches, checkpointed layers,
other threads, shared modules, the sources of layers, and the warnings and errors at the end of a capture.
Sizes: 2 to 10 layers, 4 heads, 12 tokens. Tolerance: 1e-5 between two float32 computations of one weight.
Not covered: functions that change fewer rows of a long call than are compared (weights.py says how many those are).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers
from transformers import AttentionInterface, DynamicCache

from attncache import AttentionCache, CaptureWarning, LayerSource, capture
from tests.support.capturing import GROUPED, HEAD_DIM, LENGTH, MAKERS, SIZES, go_on, inputs, make

STORES = ("pattern", "qk")
IDS = torch.randint(3, 90, (1, LENGTH), generator=torch.Generator().manual_seed(7))


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def llama(n_layers: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GROUPED | {"num_hidden_layers": n_layers})
    return transformers.LlamaForCausalLM._from_config(config, **options).eval()


def dense(cache: AttentionCache) -> list[np.ndarray]:
    return [cache.edges(None, None, layers=layer, heads=None, batch=slice(None)) for layer in range(cache.n_layers)]


def assert_close(cache: AttentionCache, theirs: Any, *, within: float = 1e-5) -> None:
    assert cache.n_layers == len(theirs)
    for ours, other in zip(dense(cache), theirs, strict=True):
        assert ours.shape == tuple(other.shape)
        assert np.abs(ours - np.asarray(other, np.float32)).max() <= within


# ---- attention functions of one's own


def scores_of(module: Any, query: Any, key: Any, scaling: float) -> Any:
    key = key.repeat_interleave(module.num_key_value_groups, 1)
    return (query @ key.mT * scaling).masked_fill(~torch.ones(query.shape[2], key.shape[2]).tril().bool(), -torch.inf)


def function(change: Callable[[Any], Any], weigh: Callable[[Any], Any], *, returns_weights: bool) -> Any:
    def attention(module: Any, query: Any, key: Any, value: Any, *_: Any, **options: Any) -> Any:
        weights = weigh(change(scores_of(module, query, key, options["scaling"])).softmax(-1))
        value = value.repeat_interleave(module.num_key_value_groups, 1)
        return (weights @ value).transpose(1, 2).contiguous(), weights if returns_weights else None

    return attention


def cut_edge(scores: Any) -> Any:
    scores = scores.clone()
    scores[:, 1, 7, 3] = -torch.inf
    return scores


def silence_head(weights: Any) -> Any:
    weights = weights.clone()
    weights[:, 2] = 0
    return weights


def same(tensor: Any) -> Any:
    return tensor


VARIANTS = {
    "one edge cut": (cut_edge, same),
    "one head silenced": (same, silence_head),
    "another scale": (lambda scores: scores * 1.5, same),
    "an unmasked row": (lambda scores: scores.nan_to_num(neginf=0.0), same),
}


def with_function(attention: Any) -> Any:
    AttentionInterface.register("of_ones_own", attention)
    return llama(attn_implementation="of_ones_own")


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_that_a_function_returns_are_what_is_stored(variant: str) -> None:
    model = with_function(function(*VARIANTS[variant], returns_weights=True))
    with capture(model, dtype="float32") as cache:
        outputs = model(IDS, output_attentions=True)
    for ours, theirs in zip(cache, outputs.attentions, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_and_keys_are_not_kept_where_a_function_returns_other_weights(variant: str) -> None:
    model = with_function(function(*VARIANTS[variant], returns_weights=True))
    words = r"layer 0 \(model\.layers\.0\.self_attn\) cannot be captured: .*the weights differ by [0-9.e-]+ where"
    with pytest.raises(ValueError, match=words), capture(model, "qk"):
        model(IDS)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_function_whose_output_is_another_is_refused_with_the_difference(variant: str, store: Any) -> None:
    model = with_function(function(*VARIANTS[variant], returns_weights=False))
    words = (
        r"layer 0 .*did not compute the softmax of its queries, keys and mask: the output differs by [0-9.e-]+ where"
    )
    with pytest.raises(ValueError, match=words), capture(model, store) as cache:
        model(IDS)
    assert cache.is_empty


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("returns_weights", [True, False])
def test_a_function_that_computes_plain_attention_is_captured(store: Any, returns_weights: bool) -> None:
    model = with_function(function(same, same, returns_weights=returns_weights))
    with capture(model, store, dtype="float32") as cache:
        model(IDS)
    model.set_attn_implementation("eager")
    assert_close(cache, model(IDS, output_attentions=True).attentions)


def test_a_function_without_an_output_to_compare_is_refused() -> None:
    attention = function(same, same, returns_weights=False)
    model = with_function(lambda *args, **kwargs: (attention(*args, **kwargs)[0].flatten(2), None))
    with pytest.raises(ValueError, match="it returned neither weights nor an output"), capture(model):
        model(IDS)


@pytest.mark.parametrize("store", STORES)
def test_a_sink_counts_where_the_weights_that_the_model_returns_count_it(store: Any) -> None:
    if not hasattr(transformers, "GraniteSWAConfig"):
        pytest.skip("this transformers has no Granite with sinks")
    config = transformers.GraniteSWAConfig(**GROUPED, sliding_window=8)
    model = transformers.GraniteSWAForCausalLM._from_config(config, attn_implementation="eager").eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.fill_(3.0)
    with capture(model, store, dtype="float32") as cache:
        outputs = model(IDS, output_attentions=True)
    assert_close(cache, outputs.attentions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama: grouped heads", "mistral: window", "bert: bidirectional"])
def test_the_rounding_of_half_precision_is_no_difference(name: str, backend: str, dtype: Any) -> None:
    model = make(name, attn_implementation=backend).to(dtype)
    with capture(model, "qk") as cache:
        model(**inputs("left"))
    assert cache.n_layers == 4


# ---- masks of any form


def masked(name: str) -> torch.Tensor:
    causal = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    if name == "an edge cut out":
        causal[..., 6:, 3] = False
    elif name == "a prefix that sees itself":
        causal[..., :5, :5] = True
    elif name == "a mask for each head":
        causal = causal.repeat(1, 4, 1, 1)
        causal[:, 1, 8:, :4] = False
    return causal


@pytest.mark.parametrize("name", ["an edge cut out", "a prefix that sees itself", "a mask for each head"])
def test_a_pattern_is_kept_under_any_mask(name: str) -> None:
    mask = masked(name)
    model = llama(attn_implementation="sdpa")
    with capture(model, dtype="float32") as cache:
        model(IDS, attention_mask=mask)
    model.set_attn_implementation("eager")
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert_close(cache, model(IDS, attention_mask=additive, output_attentions=True).attentions)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_chosen_heads_under_any_mask_are_those_of_the_whole(dtype: Any) -> None:
    model = llama()
    with capture(model, dtype=dtype) as whole, capture(model, heads=[3, 0], dtype=dtype) as chosen:
        model(IDS, attention_mask=masked("an edge cut out"))
    for some, every in zip(dense(chosen), dense(whole), strict=True):
        np.testing.assert_array_equal(some, every[:, [3, 0]])
    assert {source.heads for source in chosen.sources if source} == {(3, 0)}


def test_chunked_attention_is_kept_as_patterns() -> None:
    options = {"attention_chunk_size": 8, "num_local_experts": 4, "intermediate_size_mlp": 64}
    layers = {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]}
    config = transformers.Llama4TextConfig(**HEAD_DIM | {"num_hidden_layers": 2}, **options, **layers)
    model = transformers.Llama4ForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    with capture(model, dtype="float32") as cache:
        model(IDS)
    model.set_attn_implementation("eager")
    assert_close(cache, model(IDS, output_attentions=True).attentions)


# ---- encoders and decoders


def whisper() -> Any:
    torch.manual_seed(0)
    sides = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))
    }
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 16, "vocab_size": 99}
    limits = {"max_source_positions": 30, "max_target_positions": 32, "suppress_tokens": None}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = transformers.WhisperConfig(**sides, **widths, **limits, **ids, begin_suppress_tokens=None)
    return transformers.WhisperForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def by_kind(cache: AttentionCache, stack: str, kind: str) -> list[np.ndarray]:
    found = zip(dense(cache), cache.sources, strict=True)
    return [weights for weights, source in found if source and (source.stack, source.kind) == (stack, kind)]


def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()


def bart() -> Any:
    torch.manual_seed(0)
    sides = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))
    }
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 99}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sides, **widths)).eval()


@pytest.mark.parametrize("maker", [t5, bart])
def test_an_encoder_decoder_is_captured_whole(maker: Callable[[], Any]) -> None:
    model = maker()
    given = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    with capture(model, dtype="float32") as cache:
        model(**given)
    model.set_attn_implementation("eager")
    outputs = model(**given, output_attentions=True)
    for stack, kind, field in (
        ("encoder", "self", "encoder_attentions"),
        ("decoder", "self", "decoder_attentions"),
        ("decoder", "cross", "cross_attentions"),
    ):
        for ours, theirs in zip(by_kind(cache, stack, kind), getattr(outputs, field), strict=True):
            assert np.abs(ours - theirs.numpy()).max() <= 1e-5


@pytest.mark.parametrize("store", STORES)
@pytest.mark.filterwarnings("ignore")  # transformers' advice about generation
def test_the_cross_attention_of_a_generation_keeps_its_keys(store: Any) -> None:
    model = whisper()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    sound = {"input_features": torch.randn(1, 16, 60, generator=torch.Generator().manual_seed(0))}
    with capture(model, store, dtype="float32") as cache:
        model.generate(**sound, **options)
    model.set_attn_implementation("eager")
    steps = model.generate(**sound, **options, return_dict_in_generate=True, output_attentions=True)
    for kind, field in (("cross", "cross_attentions"), ("self", "decoder_attentions")):
        theirs = AttentionCache.from_attentions(getattr(steps, field))
        for ours, other in zip(by_kind(cache, "decoder", kind), theirs, strict=True):
            assert ours.shape == other.shape
            assert np.abs(ours - other).max() <= 1e-5


# ---- generation


def gemma3() -> Any:
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**HEAD_DIM | {"num_hidden_layers": 2}, sliding_window=6, layer_types=kinds)
    model = transformers.Gemma3ForCausalLM._from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.mul_(3)
    return model


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n_first", [1, 3])
def test_a_window_that_moved_before_the_capture_began_keeps_its_place(store: Any, n_first: int) -> None:
    model = gemma3()
    past = DynamicCache(config=model.config)
    go_on(model, IDS[:, : LENGTH - n_first - 2], past)
    with capture(model, store, dtype="float32") as cache:
        go_on(model, IDS[:, LENGTH - n_first - 2 : LENGTH - 2], past)
        go_on(model, IDS[:, LENGTH - 2 : LENGTH - 1], past)
        go_on(model, IDS[:, LENGTH - 1 :], past)
    whole = model(IDS, output_attentions=True).attentions
    assert_close(cache, [weights[:, :, LENGTH - n_first - 2 :] for weights in whole])


@pytest.mark.parametrize("n_first", [1, 3])
def test_a_bidirectional_start_that_goes_on_is_kept_as_a_pattern(n_first: int) -> None:
    torch.manual_seed(0)
    options = {"use_cache": True, "attn_implementation": "eager"}
    model = transformers.BertGenerationDecoder(transformers.BertGenerationConfig(**SIZES, **options)).eval()
    past = DynamicCache(config=model.config)
    with capture(model, dtype="float32") as cache:
        pieces = [IDS[:, :n_first], *(IDS[:, at : at + 1] for at in range(n_first, 5))]
        steps = [go_on(model, piece, past, output_attentions=True).attentions for piece in pieces]
    assert_close(cache, list(AttentionCache.from_attentions(steps)))


@pytest.mark.parametrize("n_new", [2, 3])
def test_beam_search_of_any_length_is_refused(n_new: int) -> None:
    model = llama()
    with pytest.raises(ValueError, match="beam search"), capture(model):
        model.generate(IDS, num_beams=3, max_new_tokens=n_new, do_sample=False, pad_token_id=0)


class Rounding(DynamicCache):
    """Keeps keys and values with fewer bits than it was given, as a quantized cache does."""

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        key, value = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return (key, value) if key.shape[2] <= LENGTH else ((key * 16).round() / 16, (value * 16).round() / 16)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the argument has another name in newer transformers
def test_a_cache_that_rounds_its_keys_gives_patterns_and_no_factored_layers() -> None:
    model = llama()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}

    def past() -> dict[str, Any]:
        return {"past_key_values": Rounding(config=model.config)}

    with capture(model, dtype="float32") as cache:
        ids = model.generate(IDS, **past(), **options)
    assert ids.shape == (1, LENGTH + 4)
    assert cache.shapes == ((1, 4, LENGTH + 3, LENGTH + 3),) * 2
    model.set_attn_implementation("eager")
    steps = model.generate(IDS, **past(), **options, return_dict_in_generate=True, output_attentions=True)
    assert_close(cache, list(AttentionCache.from_attentions(steps)))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="cache changed keys that it had kept"), capture(model, "qk"):
        model.generate(IDS, **past(), **options)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore")  # transformers' advice about caches
def test_a_checkpointed_layer_that_runs_again_in_the_backward_pass_is_captured_once(
    store: Any, use_reentrant: bool
) -> None:
    model = llama().train()
    with capture(model, store, dtype="float32") as plain:
        model(IDS)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with torch.enable_grad(), capture(model, store, dtype="float32") as cache:
        model(IDS, labels=IDS).loss.backward()
    assert_close(cache, dense(plain), within=0)


def test_dropout_is_named_at_the_end() -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZES, attn_implementation="sdpa")).train()
    with pytest.warns(CaptureWarning, match="ran with dropout: the capture holds the weights before"), capture(model):
        model(IDS)


@pytest.mark.parametrize("store", STORES)
def test_a_module_that_runs_several_times_in_one_forward_is_a_layer_each_time(store: Any) -> None:
    model = llama(3)
    model.model.layers[1] = model.model.layers[2] = model.model.layers[0]
    with capture(model, store, dtype="float32") as cache:
        model(IDS, use_cache=False)
    assert [source.call for source in cache.sources if source] == [0, 1, 2]
    model.set_attn_implementation("eager")
    assert_close(cache, model(IDS, use_cache=False, output_attentions=True).attentions)


# ---- threads


def test_a_forward_in_another_thread_is_neither_recorded_nor_hurt() -> None:
    model = llama()
    hurt: list[Exception] = []
    done = threading.Event()

    def forwards() -> None:
        try:
            with torch.no_grad():
                while not done.is_set():
                    model(IDS[:, :5])
        except ValueError as error:
            hurt.append(error)

    other = threading.Thread(target=forwards)
    other.start()
    try:
        for _ in range(10):
            with capture(model) as cache:
                model(IDS)
            assert cache.shapes == ((1, 4, LENGTH, LENGTH),) * 2
    finally:
        done.set()
        other.join()
    assert not hurt


def test_two_threads_capture_one_model_each_its_own_forwards() -> None:
    model = llama()
    ready = threading.Barrier(2)
    shapes: dict[int, Any] = {}

    def work(n_tokens: int) -> None:
        with torch.no_grad(), capture(model) as cache:
            ready.wait()
            model(IDS[:, :n_tokens])
            ready.wait()
        shapes[n_tokens] = cache.shapes

    threads = [threading.Thread(target=work, args=(n_tokens,)) for n_tokens in (5, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == {n_tokens: ((1, 4, n_tokens, n_tokens),) * 2 for n_tokens in (5, 9)}


# ---- what a capture did not hear


def capture_of(model: Any, run: Callable[[], Any], **options: Any) -> AttentionCache:
    with capture(model, **options) as cache:
        run()
    return cache


def test_a_capture_in_which_nothing_ran_says_so() -> None:
    model = llama()
    runs = copy.deepcopy(model)
    with pytest.warns(CaptureWarning, match="saw no attention of this LlamaForCausalLM: was it another object") as seen:
        assert capture_of(model, lambda: runs(IDS)).is_empty
    assert seen[0].filename == __file__


def test_a_capture_without_with_says_how_it_is_used() -> None:
    with pytest.raises(
        AttributeError, match=r"no attribute 'top_k' before it begins: with attncache\.capture\(model\)"
    ):
        capture(llama()).top_k(3)  # type: ignore[attr-defined]


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
    words = r"1 of 3 attention layers did not run in this capture: layer 0 \(model\.layers\.0\.self_attn\.old\)"
    with pytest.warns(CaptureWarning, match=words):
        cache = capture_of(model, lambda: model(IDS))
    assert [source.layer for source in cache.sources if source] == [1, 2]


def test_one_warning_names_all_that_a_capture_missed() -> None:
    model = llama(3)
    model.pooled_attention = torch.nn.MultiheadAttention(32, 4)
    model.model.layers[0].self_attn = Patched(model.model.layers[0].self_attn)
    x = torch.zeros(3, 1, 32)
    words = r"pooled_attention ran and does not use .*interface\. 1 of 3 attention layers did not run"
    with pytest.warns(CaptureWarning, match=words) as seen:
        capture_of(model, lambda: (model(IDS), model.pooled_attention(x, x, x)))
    assert len(seen) == 1


def git() -> Any:
    torch.manual_seed(0)
    vision = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    vision |= {"num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    config = transformers.GitConfig(vision_config=vision, **SIZES | {"num_hidden_layers": 2, "eos_token_id": 2})
    return transformers.GitForCausalLM._from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("with_image", [True, False])
def test_attention_that_ran_and_cannot_be_heard_is_refused_by_name(with_image: bool) -> None:
    model = git()
    image = {"pixel_values": torch.zeros(1, 3, 16, 16)} if with_image else {}
    words = r"captured in part: git\.encoder\.layer\.0\.attention\.self, git\.encoder\.layer\.1\.attention\.self ran"
    with pytest.raises(ValueError, match=words), capture(model):
        model(input_ids=IDS, **image)
    if with_image:
        cache = capture_of(model, lambda: model(input_ids=IDS, **image), layers=[0, 1])
        assert cache.n_layers == 2


# ---- where layers come from


def test_layers_keep_the_numbers_names_and_heads_of_the_model(tmp_path: Any) -> None:
    model = llama(10)
    cache = capture_of(model, lambda: model(IDS), layers=[5, 9], heads=[2, 3])
    assert cache.sources == tuple(
        LayerSource(f"model.layers.{layer}.self_attn", layer, heads=(2, 3), kind="self") for layer in (5, 9)
    )
    with AttentionCache.create(tmp_path / "run") as on_disk:
        pass
    with capture(model, layers=[5, 9], into=tmp_path / "run") as on_disk:
        model(IDS)
    on_disk.close()
    assert [source.layer for source in on_disk.sources if source] == [5, 9]


def test_self_and_cross_attention_of_a_decoder_are_told_apart() -> None:
    model = bart()
    cache = capture_of(model, lambda: model(input_ids=IDS, decoder_input_ids=IDS))
    places = [(source.stack, source.kind, source.layer) for source in cache.sources if source]
    encoder = [("encoder", "self", 0), ("encoder", "self", 1)]
    decoder = [("decoder", kind, layer) for layer in (0, 1) for kind in ("self", "cross")]
    assert places == encoder + decoder


def test_vision_and_text_of_one_model_are_told_apart() -> None:
    vision = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    vision |= {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    text = SIZES | {"num_hidden_layers": 3, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    cache = capture_of(model, lambda: model(input_ids=IDS, pixel_values=torch.zeros(1, 3, 32, 32)))
    places = sorted((source.stack or "", source.layer or 0) for source in cache.sources if source)
    assert places == [("text", 0), ("text", 1), ("text", 2), ("vision", 0), ("vision", 1)]


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_with_one_stack_has_one_number_for_each_layer(name: str) -> None:
    model = make(name)
    cache = capture_of(model, lambda: model(**inputs()))
    assert [(source.layer, source.kind, source.stack) for source in cache.sources if source] == [
        (layer, "self", None) for layer in range(4)
    ]
