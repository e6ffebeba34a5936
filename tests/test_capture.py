"""``attncache.capture`` on small random models: every kind of attention it reads, every way to refuse.

Covered: both stores against the weights that the same forward returns under eager attention, logits with and without a
capture bit by bit, padding at both sides, windows, soft-capping, sinks, grouped heads, selections, generation with
growing, static and sliding caches, restoration, nesting, threads, compiled models, masks read back, progress.
Sizes: 4 layers, 4 heads, 12 tokens, 2 texts. Tolerance: support.capturing.allowed, derived there from the queries and keys; two
backends differ in their rounding, so patterns are compared with those of the same forward.
Not covered: flash attention and devices other than the CPU, which need hardware; real weights (test_models.py).
"""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers
from transformers import DynamicCache
from transformers.modeling_utils import AttentionInterface

from attncache import AttentionCache, CaptureWarning, capture, progress
from attncache.capturing.calls import Call
from attncache.capturing.interface import Heard, listening
from attncache.capturing.masks import continued, read_sight
from attncache.factored import key_heads_for
from attncache.taking import indices
from tests.support.capturing import (
    BATCH,
    CAUSAL,
    GROUPED,
    HEAD_DIM,
    LENGTH,
    MAKERS,
    N_HEADS,
    N_LAYERS,
    SIZES,
    allowed,
    go_on,
    hearing,
    inputs,
    make,
)

PADDING = ("none", "left", "right")
STORES = ("pattern", "qk")
GET_INTERFACE = AttentionInterface.get_interface


@pytest.fixture(autouse=True)
def _leaves_transformers_alone() -> Any:
    with torch.no_grad():
        yield
    assert AttentionInterface.get_interface is GET_INTERFACE, "a capture left its patch behind"


def dense(cache: AttentionCache) -> list[np.ndarray]:
    """Every weight of every layer, of whichever kind."""
    return [cache.edges(None, None, layers=layer, heads=None, batch=slice(None)) for layer in range(cache.n_layers)]


def assert_same_patterns(cache: AttentionCache, outputs: Any, heard: list[Any]) -> None:
    """Within what rounding allows wherever a query sees a key; zero where it sees none."""
    for pattern, attention, call in zip(dense(cache), outputs.attentions, heard, strict=True):
        theirs = attention.numpy()
        sees = pattern.any(axis=-1)
        assert (np.abs(pattern - theirs) <= allowed(call, theirs))[sees].all()
        assert not np.ptp(theirs[~sees], axis=-1).any()  # transformers gives all keys the same where all are hidden


# ---- one forward


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", MAKERS)
def test_patterns_are_those_of_the_same_forward(name: str, padding: str, store: Any) -> None:
    model = make(name, attn_implementation="eager")
    with capture(model, store, dtype="float32") as cache, hearing(model) as heard:
        outputs = model(**inputs(padding), output_attentions=True)
    assert cache.n_layers == N_LAYERS
    assert cache.kinds == (("dense",) if store == "pattern" else ("factored",)) * N_LAYERS
    assert_same_patterns(cache, outputs, heard)


@pytest.mark.parametrize("name", CAUSAL)
def test_queries_in_left_padding_see_nothing_and_have_rows_of_zeros(name: str) -> None:
    model = make(name, attn_implementation="eager")
    with capture(model) as cache:
        model(**inputs("left"))
    for pattern in cache:
        sees = pattern.any(axis=-1)
        assert not sees[0, :, : LENGTH // 4].any()
        assert sees[0, :, LENGTH // 4 :].all()
        assert sees[1].all()
        assert not pattern[0, :, :, : LENGTH // 4].any()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", MAKERS)
def test_the_model_computes_the_same_bits_with_its_own_backend(name: str, padding: str, store: Any) -> None:
    model = make(name)
    backend = model.config._attn_implementation
    assert backend == ("eager" if "gemma2" in name or "gpt-oss" in name else "sdpa")
    plain = model(**inputs(padding))[0]
    with capture(model, store) as cache:
        assert model.config._attn_implementation == backend
        captured = model(**inputs(padding))[0]
    assert torch.equal(plain, captured)
    assert cache.n_layers == N_LAYERS
    assert torch.equal(plain, model(**inputs(padding))[0])


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", MAKERS)
def test_sdpa_gives_the_first_layer_of_eager(name: str, store: Any) -> None:
    """Only the first layer's queries and keys are the same bits under both backends."""
    if "gemma2" in name or "gpt-oss" in name:
        pytest.skip("transformers runs this model with eager attention only")
    model = make(name)
    with capture(model, store, layers=0, dtype="float32") as cache, hearing(model) as heard:
        model(**inputs("right"))
    model.set_attn_implementation("eager")
    theirs = model(**inputs("right"), output_attentions=True).attentions[0].numpy()
    (pattern,) = dense(cache)
    sees = pattern.any(axis=-1)
    assert (np.abs(pattern - theirs) <= allowed(heard[0], theirs))[sees].all()


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "float16"), ("float32", "float32"), (None, "bfloat16")])
@pytest.mark.parametrize("store", STORES)
def test_layers_are_stored_in_the_dtype_asked_for_or_the_models_own(store: Any, dtype: Any, stored: str) -> None:
    model = make("llama: grouped heads").to(torch.bfloat16)
    with capture(model, store, dtype=dtype) as cache:
        model(**inputs())
    assert set(cache.dtypes) == {stored}


def test_a_float64_model_is_narrowed() -> None:
    model = make("llama: grouped heads").double()
    with capture(model, dtype=None) as cache:
        model(**inputs())
    assert set(cache.dtypes) == {"float32"}


def test_a_forward_that_tracks_gradients_can_be_captured() -> None:
    model = make("llama: grouped heads")
    with torch.enable_grad(), capture(model) as cache:
        loss = model(**inputs(), labels=inputs()["input_ids"]).loss
        loss.backward()
    assert cache.n_layers == N_LAYERS
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize("padding", PADDING)
def test_inference_mode_is_captured_too(padding: str) -> None:
    model = make("mistral: window")
    with torch.inference_mode(), capture(model) as cache:
        model(**inputs(padding))
    with capture(model) as other:
        model(**inputs(padding))
    for pattern, same in zip(cache, other, strict=True):
        assert np.array_equal(pattern, same)


PEAK = """
import resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from attncache import capture

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=8)
model = LlamaForCausalLM(LlamaConfig(vocab_size=99, max_position_embeddings=4096, **sizes)).eval()
ids = torch.randint(5, 90, (1, 2048))
options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
with capture(model):
    model.generate(ids[:, :64], **{**options, "attention_mask": options["attention_mask"][:, :64]})
model.generate(ids, **options)
before = peak()
with capture(model) as cache:
    model.generate(ids, **options)
print(peak() - before, cache.nbytes, cache.n_layers)
"""


CAPTURES_QUERIES_AND_KEYS = """
import resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from attncache import capture

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

sizes = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=24, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=99, max_position_embeddings=4096, **sizes)).eval().model
ids = torch.randint(5, 90, (1, 4096))
with torch.no_grad():
    model(ids, use_cache=False)
    before = peak()
    with capture(model, "qk") as cache:
        model(ids, use_cache=False)
print(peak() - before, cache.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux counts it")
def test_factored_layers_add_little_more_than_their_bytes_to_the_peak() -> None:
    run = subprocess.run([sys.executable, "-c", CAPTURES_QUERIES_AND_KEYS], capture_output=True, text=True, check=True)
    grown, n_bytes = map(int, run.stdout.split())
    assert n_bytes == 24 * 2 * 4096 * 256 * 2
    assert grown < n_bytes + 60e6


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux counts it")
def test_dense_layers_take_the_result_and_one_layer_more() -> None:
    """Half a layer is for queries, keys and the allocator; steps of generation join layer by layer."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=300)
    growth, nbytes, n_layers = map(int, done.stdout.split())
    assert nbytes == 4 * 8 * 2050 * 2050 * 2
    assert growth <= nbytes + 1.5 * nbytes / n_layers


# ---- selections


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("layers", [0, -1, [1, -1], slice(1, 3), np.array([2]), [3, 0, 3], []], ids=str)
def test_layers_selects_among_the_models_layers_in_their_order(layers: Any, store: Any) -> None:
    model = make("llama: grouped heads")
    with capture(model, store) as every, capture(model, store, layers) as some:
        model(**inputs())
    numbers = sorted(set(indices(layers, N_LAYERS, "layers", "n_layers")))
    assert some.n_layers == len(numbers)
    for number, pattern in zip(numbers, dense(some), strict=True):
        assert np.array_equal(pattern, dense(every)[number])


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("heads", [0, -1, [0, 1], [0, 2], [0, 1, 2], [3, 0], slice(2, None), [1, 1]], ids=str)
@pytest.mark.parametrize("name", ["llama: grouped heads", "gpt-oss: sinks, window in every other layer"])
def test_heads_selects_query_heads_with_their_key_heads_and_sinks(name: str, heads: Any, store: Any) -> None:
    model = make(name)
    with capture(model, store, dtype="float32") as every, capture(model, store, None, heads, "float32") as some:
        model(**inputs())
    wanted = list(indices(heads, N_HEADS, "heads", "n_heads"))
    for whole, pattern in zip(dense(every), dense(some), strict=True):
        assert pattern.shape == (BATCH, len(wanted), LENGTH, LENGTH)
        assert np.array_equal(pattern, whole[:, wanted])


@pytest.mark.parametrize(
    ("heads", "kept"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1]),
        ([0, 1, 4, 5], [0, 1]),
        ([4, 5, 6], [1]),
        ([0, 4], [0, 1]),
        ([0, 4, 5], [0, 1, 1]),
        ([0, 1, 4, 5, 6, 7], [0, 1, 1]),
        ([4, 0, 5, 1], [1, 0, 1, 0]),
        ([7], [1]),
        ([], []),
    ],
    ids=str,
)
def test_chosen_heads_keep_as_few_key_heads_as_an_even_grouping_allows(heads: list[int], kept: list[int]) -> None:
    found = key_heads_for(heads, 8, 2)
    assert found == kept
    assert all(found[at // (len(heads) // len(found))] == head // 4 for at, head in enumerate(heads))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"layers": 4}, IndexError, "layer 4 is out of range for n_layers=4"),
        ({"layers": [0, -5]}, IndexError, "layer -5 is out of range for n_layers=4"),
        ({"layers": "all"}, TypeError, "layers must be None, an int, a slice or a sequence of ints, got str"),
        ({"layers": True}, TypeError, "layers must be None, an int, a slice or a sequence of ints, got bool"),
        ({"heads": 4}, IndexError, "head 4 is out of range for n_heads=4"),
        ({"heads": 1.0}, TypeError, "heads must be None, an int, a slice or a sequence of ints, got float"),
        ({"store": "keys"}, ValueError, "store must be 'pattern' or 'qk', got 'keys'"),
        ({"dtype": "int8"}, ValueError, "dtype must be None, 'float16', 'bfloat16' or 'float32', got 'int8'"),
        ({"progress": 1}, TypeError, "progress must be True or False, got int"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    model = make("llama: grouped heads")
    with pytest.raises(error, match="^" + words.replace("(", r"\(")), capture(model, **arguments):
        model(**inputs())


def test_what_is_not_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"), capture("gpt2"):  # type: ignore[arg-type]
        pass


# ---- generation


def generate(model: Any, padding: str, **options: Any) -> torch.Tensor:
    wanted = {"max_new_tokens": 8, "do_sample": False, "disable_compile": True, **options}
    tokens = model.generate(**inputs(padding), **wanted)
    assert isinstance(tokens, torch.Tensor)
    return tokens


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("growth", "padding"), [("dynamic", "left"), ("static", "none")])
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_is_one_causal_pattern_over_prompt_and_answer(
    name: str, padding: str, growth: str, store: Any
) -> None:
    """Against one eager forward over all tokens, whose rounding differs: weights to 1e-5, at scores of a few units."""
    model = make(name, attn_implementation="eager")
    options = {} if growth == "dynamic" else {"cache_implementation": "static"}
    plain = generate(model, padding, **options)
    with capture(model, store, dtype="float32") as cache:
        tokens = generate(model, padding, **options)
    assert torch.equal(plain, tokens)
    seen = tokens[:, :-1]  # the last token is never read
    mask = torch.cat(
        [inputs(padding)["attention_mask"], torch.ones(BATCH, seen.shape[1] - LENGTH, dtype=torch.long)], 1
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    outputs = model(seen, attention_mask=mask, position_ids=positions, output_attentions=True)
    for pattern, attention in zip(dense(cache), outputs.attentions, strict=True):
        assert pattern.shape == (BATCH, N_HEADS, seen.shape[1], seen.shape[1])
        sees = pattern.any(axis=-1)
        assert np.abs(pattern - attention.numpy())[sees].max() <= 1e-5
        assert not np.triu(pattern, 1).any()
        assert int((~sees).sum()) == (N_HEADS * LENGTH // 4 if padding == "left" else 0)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_from_a_prompt_shorter_than_the_window_narrows_later(name: str, store: Any) -> None:
    model = make(name)
    prompt = inputs()["input_ids"][:, :3]
    with capture(model, store, dtype="float32") as cache:
        tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
    with capture(model, dtype="float32") as whole:
        model(tokens[:, :-1])
    for pattern, other in zip(dense(cache), dense(whole), strict=True):
        assert np.abs(pattern - other).max() <= 1e-5


def test_a_prompt_read_in_chunks_is_one_pattern() -> None:
    model = make("mistral: window")
    ids = inputs()["input_ids"]
    past = DynamicCache(config=model.config)
    with capture(model, dtype="float32") as cache:
        go_on(model, ids[:, :4], past)
        go_on(model, ids[:, 4:], past)
    with capture(model, dtype="float32") as whole:
        model(ids)
    for pattern, other in zip(dense(cache), dense(whole), strict=True):
        assert np.abs(pattern - other).max() <= 1e-5


@pytest.mark.parametrize("store", STORES)
def test_a_capture_that_begins_in_the_middle_of_a_text_has_more_keys_than_queries(store: Any) -> None:
    model = make("llama: grouped heads")
    ids = inputs()["input_ids"]
    past = DynamicCache(config=model.config)
    go_on(model, ids[:, :7], past)
    with capture(model, store, dtype="float32") as cache:
        go_on(model, ids[:, 7:], past)
    with capture(model, dtype="float32") as whole:
        model(ids)
    for pattern, other in zip(dense(cache), dense(whole), strict=True):
        assert pattern.shape == (BATCH, N_HEADS, LENGTH - 7, LENGTH)
        assert np.abs(pattern - other[:, :, 7:]).max() <= 1e-5


@pytest.mark.parametrize("layers", [None, 0])
def test_beam_search_is_refused_because_it_reorders_the_keys(layers: Any) -> None:
    model = make("llama: grouped heads")
    with pytest.raises(ValueError, match="was reordered, as beam search does"), capture(model, layers=layers):
        generate(model, "none", num_beams=3)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (lambda model, ids: model(ids), "got 12 more queries over 12 keys that do not continue the 12 before"),
        (lambda model, ids: model(ids[:1]), "a layer must keep its batch size, got 1 after 2"),
        (lambda model, ids: model.generate(ids, max_new_tokens=2), "that do not continue the 12 before"),
        (
            lambda model, ids: model.generate(
                ids + 1, max_new_tokens=20, cache_implementation="static", disable_compile=True
            ),
            "before position 12",
        ),
    ],
    ids=["the same text", "another batch", "generate", "a static cache"],
)
def test_a_second_text_needs_a_second_capture(second: Any, words: str) -> None:
    model = make("llama: grouped heads")
    with capture(model) as cache:
        model(**inputs())
        with pytest.raises(ValueError, match=rf"layer 0 \(model\.layers\.0\.self_attn\) cannot be captured: .*{words}"):
            second(model, inputs()["input_ids"])
    assert cache.shapes == ((BATCH, N_HEADS, LENGTH, LENGTH),) * N_LAYERS


def test_tokens_taken_back_are_refused() -> None:
    model = make("llama: grouped heads")
    ids = inputs()["input_ids"]
    past = DynamicCache(config=model.config)
    with capture(model):
        go_on(model, ids, past)
        past.crop(-2)
        with pytest.raises(ValueError, match="got 1 more queries over 11 keys that do not continue the 12 before"):
            go_on(model, ids[:, :1], past)


def test_generation_without_a_cache_says_to_use_one() -> None:
    model = make("llama: grouped heads")
    with pytest.raises(ValueError, match="generate with use_cache=True"), capture(model):
        generate(model, "none", use_cache=False)


# ---- what cannot be captured


def refused(model: Any, store: Any = "pattern", **options: Any) -> str:
    with pytest.raises(ValueError, match="cannot be captured") as caught, capture(model, store):
        model(inputs()["input_ids"], **options)
    return str(caught.value)


def test_queries_and_keys_cannot_carry_a_position_bias() -> None:
    config = transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    encoder = transformers.T5ForConditionalGeneration(config).eval().get_encoder()
    words = refused(encoder, store="qk")
    assert words.startswith("layer 0 (block.0.layer.0.SelfAttention) cannot be captured: its queries and keys alone")
    assert "it adds a position bias to the scores" in words
    assert "store='pattern' keeps the weights themselves" in words


def test_the_encoder_of_an_encoder_decoder_is_captured_alone() -> None:
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = transformers.BartConfig(vocab_size=99, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, **sizes)
    model = transformers.BartModel(config).eval()
    with capture(model.get_encoder()) as cache:
        model(inputs()["input_ids"])
    assert cache.n_layers == 2


def test_queries_and_keys_cannot_carry_chunked_attention_but_whole_layers_beside_it() -> None:
    options = {
        "attention_chunk_size": 4,
        "num_local_experts": 2,
        "intermediate_size_mlp": 32,
        "no_rope_layers": [1, 1, 1, 0],
    }
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**HEAD_DIM, **options)).eval()
    assert "attention_mask must be causal or bidirectional" in refused(model, store="qk")
    with capture(model, "qk", layers=3) as cache:
        model(inputs()["input_ids"])
    assert cache.n_layers == 1


def test_queries_and_keys_cannot_carry_packed_texts() -> None:
    positions = torch.arange(LENGTH).expand(BATCH, -1) % 5
    words = refused(make("llama: grouped heads"), store="qk", position_ids=positions, use_cache=False)
    assert "got another mask of shape [2, 1, 12, 12]" in words


def test_queries_and_keys_cannot_carry_a_biased_mask() -> None:
    mask = torch.zeros(BATCH, 1, LENGTH, LENGTH)
    mask[..., 3] = -1.5
    words = refused(make("llama: grouped heads"), store="qk", attention_mask=mask)
    assert "got a mask that adds other numbers to the scores than 0 and -inf" in words


def test_a_model_without_the_attention_interface_is_refused() -> None:
    model = transformers.BloomModel(transformers.BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4))
    assert refused(model).startswith("BloomModel cannot be captured: none of its modules uses")
    assert refused(torch.nn.Linear(2, 2)).startswith("Linear cannot be captured: none of its modules uses")


def test_a_layer_that_passes_the_interface_by_is_refused() -> None:
    model = make("gpt2: one key head per head", attn_implementation="eager", reorder_and_upcast_attn=True)
    assert "it computed its attention without transformers' attention interface" in refused(model)


def test_a_layer_that_passes_the_interface_by_in_its_second_call_is_refused() -> None:
    model = make("gpt2: one key head per head", attn_implementation="eager")
    past = DynamicCache(config=model.config)
    with capture(model, layers=0):
        go_on(model, inputs()["input_ids"], past)
        model.transformer.h[0].attn.reorder_and_upcast_attn = True
        with pytest.raises(ValueError, match="without transformers' attention interface"):
            go_on(model, inputs()["input_ids"][:, :1], past)


def run_layer(model: Any, number: int) -> None:
    hidden = torch.zeros(1, 3, 32)
    model.model.layers[number](hidden, position_embeddings=model.model.rotary_emb(hidden, torch.arange(3)[None]))


def test_a_transformers_without_the_method_it_listens_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama: grouped heads")
    monkeypatch.delattr(AttentionInterface, "get_interface")
    words = r"capture needs transformers 5\.1 and torch 2\.6, or newer, got 5\."
    with pytest.raises(ImportError, match=words), capture(model):
        pass
    monkeypatch.undo()


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


# ---- the model afterwards


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = make("llama: grouped heads")
    before = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    plain = model(**inputs()).logits
    caches = []

    def fail() -> None:
        with capture(model) as cache:
            caches.append(cache)
            model(**inputs())
            raise KeyError("of the user")

    with pytest.raises(KeyError):
        fail()
    assert caches[0].n_layers == N_LAYERS
    assert {name: dict(module._forward_hooks) for name, module in model.named_modules()} == before
    assert "get_interface" in vars(AttentionInterface)
    assert torch.equal(plain, model(**inputs()).logits)


def test_nothing_is_recorded_after_the_capture() -> None:
    model = make("llama: grouped heads")
    with capture(model) as cache:
        model(**inputs())
    model(**inputs())
    assert cache.n_layers == N_LAYERS


def test_a_capture_may_follow_or_surround_another() -> None:
    model = make("llama: grouped heads")
    with capture(model, dtype="float32") as outer, capture(model, "qk", layers=[0], dtype="float32") as inner:
        model(**inputs())
    with capture(model, dtype="float32") as again:
        model(**inputs())
    assert (outer.n_layers, inner.n_layers) == (N_LAYERS, 1)
    for first, second in zip(dense(outer), dense(again), strict=True):
        assert np.array_equal(first, second)


def test_two_models_are_captured_at_once_each_into_its_own_cache() -> None:
    causal, encoder = make("llama: grouped heads"), make("bert: bidirectional")
    first, second = capture(causal), capture(encoder, layers=0)
    one = first.__enter__()
    two = second.__enter__()
    causal(**inputs())
    first.__exit__(None, None, None)  # not in the order of entering
    encoder(**inputs())
    second.__exit__(None, None, None)
    assert (one.n_layers, two.n_layers) == (N_LAYERS, 1)
    assert np.triu(two[0], 1).any()


def test_threads_capture_a_model_each() -> None:
    models = [make(name) for name in ("llama: grouped heads", "gpt2: one key head per head")]
    caches: dict[int, AttentionCache] = {}

    def work(number: int) -> None:
        with torch.no_grad(), capture(models[number]) as cache:
            for _ in range(1):
                models[number].generate(**inputs(), max_new_tokens=8, do_sample=False)
        caches[number] = cache

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, model in enumerate(models):
        with capture(model) as alone:
            model.generate(**inputs(), max_new_tokens=8, do_sample=False)
        for together, pattern in zip(caches[number], alone, strict=True):
            assert np.array_equal(together, pattern)


@pytest.mark.filterwarnings("default")  # torch.compile warns about Python itself
def test_a_compiled_model_runs_uncompiled_while_it_is_captured() -> None:
    model = make("llama: grouped heads")
    compiled = torch.compile(model, backend="eager")
    compiled(**inputs())
    with capture(model) as cache:
        compiled(**inputs())
    assert cache.n_layers == N_LAYERS
    with capture(compiled) as cache:
        compiled(**inputs())
    assert cache.n_layers == N_LAYERS


def test_a_listener_hears_every_model_and_the_implementation() -> None:
    calls: list[Heard] = []

    class Notes:
        def heard(self, call: Heard) -> None:
            calls.append(call)

        def reordered(self) -> None:
            raise AssertionError

    with listening(Notes()):
        make("bert: bidirectional")(**inputs())
    names = [(type(call.args[0]).__name__, call.implementation) for call in calls]
    assert names == [("BertSelfAttention", "sdpa")] * N_LAYERS


# ---- masks


def call(
    mask: Any, *, queries: int = 7, keys: int = 7, window: int | None = None, causal: bool = True, flash: bool = False
) -> Call:
    key = torch.zeros(2, 2, keys, 8)
    return Call(torch.zeros(2, 4, queries, 8), key, key, mask, causal, window, flash, 1.0)


def mask_of(causal: bool, window: int | None, shown: Any, *, queries: int = 7, keys: int = 7) -> torch.Tensor:
    ahead = np.arange(keys) - (np.arange(queries) + keys - queries)[:, None]
    seen = ahead <= 0 if causal else np.ones(ahead.shape, bool)
    if window is not None:
        seen = seen & (ahead > -window if causal else np.abs(ahead) <= window)
    return torch.tensor(seen & np.asarray(shown, bool)[:, None, None])


SHOWN = {"none": [[1] * 7] * 2, "left": [[0, 0, 1, 1, 1, 1, 1], [1] * 7], "right": [[1] * 7, [1, 1, 1, 1, 0, 0, 0]]}


@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_a_mask_is_read_back_as_what_made_it(causal: bool, window: int | None, shown: str, additive: bool) -> None:
    mask = mask_of(causal, window, SHOWN[shown])
    given = torch.where(mask, 0.0, torch.finfo(torch.float32).min) if additive else mask
    sight = read_sight(call(given, window=window))
    assert (sight.causal, sight.window, sight.n_keys) == (causal, window, 7)
    assert (sight.key_mask is None) == (shown == "none")
    if sight.key_mask is not None:
        assert sight.key_mask.tolist() == torch.tensor(SHOWN[shown], dtype=torch.bool).tolist()


@pytest.mark.parametrize("shown", SHOWN)
def test_a_window_that_the_module_does_not_name_is_found_in_the_mask(shown: str) -> None:
    assert read_sight(call(mask_of(True, 3, SHOWN[shown]))).window == 3
    assert read_sight(call(mask_of(False, 2, SHOWN[shown]))).window == 2


def test_the_unused_slots_of_a_static_cache_are_left_out() -> None:
    mask = torch.zeros(2, 1, 7, 20, dtype=torch.bool)
    mask[..., :7] = mask_of(True, None, SHOWN["left"])
    sight = read_sight(call(mask, keys=20))
    assert sight.n_keys == 7
    assert read_sight(call(None, keys=20)).n_keys == 7
    step = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    step[..., :8] = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8], dtype=torch.bool)[:, None, None]
    grown, start = continued(sight, call(step, queries=1, keys=20))
    assert (grown.n_keys, start) == (8, 0)
    with pytest.raises(ValueError, match="got no mask at position 7 that shows other keys than before"):
        continued(sight, call(None, queries=1, keys=20))


@pytest.mark.parametrize("what", ["one more key", "one key less", "prefix", "per head", "integers", "nothing like it"])
def test_a_mask_that_differs_in_one_place_is_refused(what: str) -> None:
    mask = mask_of(True, None, SHOWN["none"])
    if what == "one more key":
        mask[1, 0, 2, 5] = True
    elif what == "one key less":
        mask[0, 0, 6, 3] = False
    elif what == "prefix":
        mask[:, :, :3, :3] = True
    elif what == "per head":
        mask = mask.repeat(1, 4, 1, 1)
        mask[0, 2, 3, 1] = False
    elif what == "integers":
        mask = mask.long()
    else:
        mask = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    with pytest.raises(ValueError, match="attention_mask must be causal or bidirectional"):
        read_sight(call(mask))


def test_a_mask_for_all_texts_or_all_queries_is_read() -> None:
    assert read_sight(call(mask_of(True, None, SHOWN["none"])[:1])).key_mask is None
    padding = torch.tensor(SHOWN["right"], dtype=torch.bool)[:, None, None]
    sight = read_sight(call(padding, causal=False))
    assert not sight.causal
    assert sight.key_mask is not None


def test_without_a_mask_the_backend_decides() -> None:
    assert read_sight(call(None)).causal
    assert not read_sight(call(None, causal=False)).causal
    assert read_sight(call(None, window=3)).window is None  # SDPA and eager narrow by their mask only
    assert read_sight(call(None, window=9)).window == 9  # without an effect so far
    assert read_sight(call(None, window=3, flash=True)).window == 3
    assert read_sight(call(None, window=3, flash=True, causal=False)).window == 2
    padding = torch.tensor(SHOWN["left"])
    flash = read_sight(call(padding, flash=True))
    assert flash.key_mask is not None
    grown, _ = continued(flash, call(torch.cat([padding, torch.ones(2, 1)], 1), queries=1, keys=8, flash=True))
    assert grown.key_mask is not None
    assert grown.key_mask.sum(dim=1).tolist() == [6, 8]


# ---- progress


@pytest.mark.parametrize("has_tqdm", [True, False], ids=["tqdm", "a line"])
def test_progress_counts_layers_on_stderr(
    has_tqdm: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model = make("llama: grouped heads")
    with capture(model, progress=True):
        generate(model, "none")
    output, errors = capsys.readouterr()
    assert output == ""
    assert "capturing" in errors
    assert "joining" in errors
    assert "4/4" in errors if has_tqdm else "layer 4 of 4" in errors
    assert errors.endswith("\n")


def test_short_work_and_no_progress_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = make("llama: grouped heads")
    for shown in (True, False):
        with capture(model, progress=shown):
            model(**inputs())
    assert capsys.readouterr().err == ""


def test_the_sizes_of_the_models_are_as_the_tests_say() -> None:
    assert (SIZES["num_hidden_layers"], SIZES["num_attention_heads"]) == (N_LAYERS, N_HEADS)
    assert GROUPED["num_key_value_heads"] == 2
