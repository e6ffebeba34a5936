"""What only a real device shows: torch's and CuPy's own arrays, their memory pools and streams, layers of real size.

Sizes: up to 32 heads x 2048 and 131,072 keys. Tolerance: none for dense layers, the bits of the same layer in CPU memory;
for factored ones the bound written in cpp/include/attncache/factored.hpp. Skipped without a device, torch or CuPy.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

import attncache.cuda
from attncache import AttentionCache, reference
from attncache.cuda import on_stream
from cuda.compilers import DEVICE_ALONE
from cuda.test_device_factored import assert_within_bound
from tests.support.patterns import assert_same

torch = pytest.importorskip("torch", reason="needs torch and a CUDA device")
reason = attncache.cuda.why_not() if torch.cuda.is_available() else "torch finds no CUDA device"
if reason is not None:
    if os.environ.get(DEVICE_ALONE):
        raise RuntimeError(f"a device was to be asked, but {reason}")
    pytest.skip(reason, allow_module_level=True)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHAPES = ((1, 12, 1024, 1024), (1, 32, 2048, 2048), (2, 5, 333, 1301), (1, 2, 3, 100_003))
LONG = 150_000_000  # clock cycles that a stream is kept busy: about a tenth of a second


def soft(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Any:
    """A causal softmax pattern on the device."""
    generator = torch.Generator("cuda").manual_seed(seed)
    scores = 2 * torch.randn(shape, generator=generator, device="cuda")
    ahead = torch.ones(shape[-2:], dtype=torch.bool, device="cuda").triu(1 + max(0, shape[-1] - shape[-2]))
    return scores.masked_fill_(ahead, -torch.inf).softmax(-1).to(DTYPES[dtype])


def ties(shape: tuple[int, ...], dtype: str) -> Any:
    """Few different weights, zeros of both signs among them."""
    numbers = torch.tensor([0.0, -0.0, 0.25, 0.5, 0.25], device="cuda")
    chosen = torch.randint(5, shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    return numbers[chosen].to(DTYPES[dtype])


def holes(shape: tuple[int, ...], dtype: str) -> Any:
    """Numbers of both signs over a wide range with NaN and infinities among them."""
    generator = torch.Generator("cuda").manual_seed(2)
    numbers = torch.randn(shape, generator=generator, device="cuda").pow_(5)
    places = torch.randint(40, shape, generator=generator, device="cuda")
    for at, special in enumerate((torch.nan, torch.inf, -torch.inf)):
        numbers[places == at] = special
    return numbers.to(DTYPES[dtype])


MAKERS = {"soft": soft, "ties": ties, "holes": holes}


def cache_of(*tensors: Any) -> AttentionCache:
    cache = AttentionCache(index="off")
    for tensor in tensors:
        cache.push(tensor)
    return cache


def on_host(tensor: Any) -> AttentionCache:
    return cache_of(tensor.cpu())


def empty(*shape: int) -> Any:
    """An array for an answer."""
    return torch.empty(shape, device="cuda")


def questions(shape: tuple[int, ...]) -> dict[str, Any]:
    """Calls of every query by name, small and whole."""
    n_heads, n_queries, n_keys = shape[1:]
    some_queries, some_keys = ([0, n // 3, n - 1, n // 2, 0] for n in (n_queries, n_keys))
    heads = [n_heads - 1, 0, n_heads // 2]
    k = min(300, n_keys)
    return {
        "attention_from_position": lambda cache: cache.attention_from_position(0, -1),
        "attention_to_position": lambda cache: cache.attention_to_position(0, n_keys // 2),
        "top_attended_positions": lambda cache: cache.top_attended_positions(0, n_queries // 2, 10),
        "head_mean": lambda cache: cache.head_mean(0),
        "rows, mean": lambda cache: cache.rows(positions=some_queries, batch=None),
        "rows, heads": lambda cache: cache.rows(positions=some_queries, heads=heads),
        "rows, all": lambda cache: cache.rows(heads=None, batch=None),
        "columns, mean": lambda cache: cache.columns(positions=some_keys),
        "columns, heads": lambda cache: cache.columns(positions=some_keys, heads=heads, batch=None),
        "columns, all": lambda cache: cache.columns(),
        "edges": lambda cache: cache.edges(some_queries, some_keys, heads=None),
        "edges, mean": lambda cache: cache.edges(None, some_keys, heads="mean"),
        "top_k": lambda cache: tuple(cache.top_k(10, heads=None)),
        "top_k, many": lambda cache: tuple(cache.top_k(k, positions=some_queries, heads=heads)),
        "top_k, all": lambda cache: tuple(cache.top_k(n_keys, positions=some_queries[:2])),
        "top_k, to": lambda cache: tuple(cache.top_k(3, direction="to", positions=some_keys, heads=heads)),
    }


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layers_of_real_size_have_the_bits_of_the_cpu(shape: tuple[int, ...], dtype: str, kind: str) -> None:
    tensor = MAKERS[kind](shape, dtype)
    device, host = cache_of(tensor), on_host(tensor)
    assert device.devices == ("cuda:0",)
    for name, ask in questions(shape).items():
        if name == "rows, all" and tensor.numel() > 20_000_000:
            continue
        assert_same(ask(device), ask(host), name)
    assert_same(device.cpu()[0], host[0])


LAYOUTS = {
    "heads inside queries": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "a slice that begins off 16 bytes": lambda t: t[..., 3:-2],
    "every second query": lambda t: t[:, :, ::2],
    "one item for all of the batch": lambda t: t[:1].expand(3, -1, -1, -1),
    "heads chosen by steps": lambda t: t[:, 1::2],
    "needs a gradient": lambda t: t.clone().requires_grad_(True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_of_torch_are_read_as_they_are(dtype: str, layout: str) -> None:
    tensor = LAYOUTS[layout](soft((2, 4, 130, 131), dtype))
    device, host = cache_of(tensor), on_host(tensor.detach().contiguous())
    for name, ask in questions(tuple(tensor.shape)).items():
        assert_same(ask(device), ask(host), name)


FACTORED = {
    "grouped heads": ((1, 8, 1500, 128), (1, 2, 1500, 128), {}),
    "a window": ((2, 4, 700, 64), (2, 4, 700, 64), {"window": 100}),
    "both directions, soft-capped": ((1, 4, 600, 80), (1, 4, 900, 80), {"causal": False, "softcap": 2.0}),
    "131,072 keys": ((1, 8, 5, 128), (1, 2, 131_072, 128), {}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FACTORED)
def test_factored_layers_of_real_size_lie_within_their_bound(case: str, dtype: str) -> None:
    query_shape, key_shape, options = FACTORED[case]
    generator = torch.Generator("cuda").manual_seed(3)
    query, key = (
        torch.randn(shape, generator=generator, device="cuda").to(DTYPES[dtype]) for shape in (query_shape, key_shape)
    )
    cache = AttentionCache()
    cache.push_qk(query, key, **options)
    expected = reference.factored(query.float().cpu().numpy(), key.float().cpu().numpy(), **options)
    rows = cache.rows(0, heads=None, batch=None)
    assert_within_bound(rows, expected.pattern, expected.bound)
    top = cache.top_k(5, layers=0, heads=None, batch=None)
    assert_same(np.take_along_axis(rows, top.positions, -1), top.weights)
    assert_same(cache.head_mean(0), cache.rows(0))


# Memory: whoever owns it, and when it is used again


def test_a_layer_keeps_memory_of_the_pool_and_gives_it_back() -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    tensor = soft((1, 8, 512, 512))
    host = on_host(tensor)
    cache = cache_of(tensor)
    del tensor
    others = [torch.full((1, 8, 512, 512), 7.0, device="cuda") for _ in range(20)]
    assert_same(cache.rows(heads=None), host.rows(heads=None))
    del others
    cache.clear()
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_memory_that_goes_back_to_the_pool_is_no_longer_read() -> None:
    tensor = soft((1, 32, 2048, 2048), "float16")
    expected = on_host(tensor).head_mean(0)
    cache = cache_of(tensor)
    del tensor
    answer = empty(2048, 2048)
    torch.cuda._sleep(LONG)
    cache.head_mean(0, out=answer)
    cache.clear()
    overwritten = torch.full((1, 32, 2048, 2048), 7.0, device="cuda", dtype=torch.float16)
    with torch.cuda.stream(torch.cuda.Stream()):
        overwritten.fill_(9.0)
    assert_same(answer.cpu().numpy(), expected)


def test_memory_of_a_private_pool_is_taken() -> None:
    if not hasattr(torch.cuda, "use_mem_pool"):
        pytest.skip("this torch has no torch.cuda.use_mem_pool")
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        tensor = soft((1, 3, 65, 65))
    assert_same(cache_of(tensor).rows(heads=None), on_host(tensor).rows(heads=None))


POOLS = """
import torch
from attncache import AttentionCache
tensor = torch.rand(1, 3, 65, 65, device="cuda")
cache = AttentionCache()
cache.push(tensor)
assert (cache.rows(heads=None)[0] == tensor[0].cpu().numpy()).all()
answer = cache.head_mean(0, out=torch.empty(65, 65, device="cuda"))
print(float((answer - tensor[0].mean(0)).abs().max()) < 1e-6)
"""


@pytest.mark.parametrize("pool", ["backend:cudaMallocAsync", "expandable_segments:True"])
def test_other_pools_of_torch_are_taken_and_the_process_ends_in_peace(pool: str) -> None:
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": pool, "PYTORCH_ALLOC_CONF": pool}
    ran = subprocess.run(
        [sys.executable, "-c", POOLS], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stdout) == (0, "True\n"), ran.stderr


def test_an_answer_too_large_for_the_device_is_an_error_and_harms_nobody() -> None:
    tensor = soft((1, 4, 256, 4096))
    cache, host = cache_of(tensor), on_host(tensor)
    many = np.zeros(60_000, np.int64)
    with pytest.raises(MemoryError, match=r"out of memory on the CUDA device|allocate"):  # of the device, or of NumPy
        cache.rows(positions=many, heads=[0] * 200)
    assert_same(cache.rows(), host.rows())
    assert float(torch.ones(3, device="cuda").sum()) == 3


# Streams: work is in the order in which it was written


def test_a_push_waits_for_what_the_tensor_is_computed_by() -> None:
    right = soft((1, 4, 300, 300))
    expected = on_host(right).rows(heads=None)
    for give in (lambda tensor, _: tensor, on_stream):
        tensor = torch.zeros_like(right)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG)
            tensor.copy_(right)
            cache = cache_of(give(tensor, stream))
        assert_same(cache.rows(heads=None), expected)


def test_an_answer_on_another_stream_waits_for_that_of_the_layers() -> None:
    tensor = soft((1, 4, 300, 300))
    expected = on_host(tensor).rows(heads=None)
    answer = empty(*expected.shape)
    torch.cuda.synchronize()
    layers, readers = torch.cuda.Stream(), torch.cuda.Stream()
    cache = cache_of(on_stream(tensor, layers))
    with torch.cuda.stream(layers):
        torch.cuda._sleep(LONG)
    cache.rows(heads=None, out=on_stream(answer, readers))
    with torch.cuda.stream(readers):
        doubled = answer * 2
    readers.synchronize()
    assert_same(doubled.cpu().numpy(), 2 * expected)


def test_an_answer_waits_for_what_its_array_was_used_for() -> None:
    tensor = soft((1, 4, 300, 300))
    cache, expected = cache_of(tensor), on_host(tensor).head_mean(0)
    answer = torch.zeros_like(tensor[0, 0])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(LONG)
        before = answer + 1
        cache.head_mean(0, out=answer)
    torch.cuda.synchronize()
    assert (before == 1).all()
    assert_same(answer.cpu().numpy(), expected)


def test_an_answer_on_the_device_is_not_waited_for() -> None:
    tensor = soft((1, 4, 300, 300))
    cache = cache_of(tensor)
    calls = (
        partial(cache.rows, positions=[0, 5], out=empty(1, 2, 300)),
        partial(cache.columns, positions=7, out=empty(1, 300)),
        partial(cache.edges, 3, [1, 2], out=empty(1, 4, 2)),
        partial(cache.head_mean, 0, out=empty(300, 300)),
    )
    for call in calls:  # the first makes the pinned memory for lists
        call()
    torch.cuda.synchronize()
    for call in calls:
        done = torch.cuda.Event()
        torch.cuda._sleep(LONG)
        done.record(torch.cuda.default_stream())
        begin = time.perf_counter()
        call()
        took = time.perf_counter() - begin
        assert not done.query(), f"the call took {took:.3f} s"
    torch.cuda.synchronize()


def test_two_threads_ask_on_two_streams_at_once() -> None:
    tensors = [soft((1, 8, 400, 400), seed=seed) for seed in (1, 2)]
    expected = [on_host(tensor).rows(heads=None) for tensor in tensors]
    answers = [empty(*each.shape) for each in expected]
    torch.cuda.synchronize()
    wrong: list[str] = []

    def ask(at: int) -> None:
        stream = torch.cuda.Stream()
        cache, answer = cache_of(on_stream(tensors[at], stream)), answers[at]
        for _ in range(50):
            cache.rows(heads=None, out=on_stream(answer, stream))
            stream.synchronize()
            if not np.array_equal(answer.cpu().numpy(), expected[at]):
                wrong.append(f"thread {at}")

    threads = [threading.Thread(target=ask, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_layers_on_two_streams_are_answered_together() -> None:
    tensors = [soft((1, 4, 200, 200), seed=seed) for seed in (1, 2, 3)]
    expected = cache_of(*(tensor.cpu() for tensor in tensors)).rows(heads=None)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    cache = cache_of(*(on_stream(tensor, streams[at % 2]) for at, tensor in enumerate(tensors)))
    for _ in range(20):
        assert_same(cache.rows(heads=None), expected)


# Other libraries


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_arrays_of_cupy_come_in_and_go_out(dtype: str) -> None:
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    tensor = soft((2, 3, 65, 130), dtype)
    host = on_host(tensor)
    array = cupy.asarray(tensor)
    for each in (array, array[:, ::2], array[..., 1:]):
        expected = cache_of(each.get())
        assert_same(cache_of(each).rows(heads=None, batch=None), expected.rows(heads=None, batch=None))
    expected = host.rows(heads=None)
    answer = cupy.empty(expected.shape, cupy.float32)
    assert cache_of(array).rows(heads=None, out=answer) is answer
    assert_same(answer.get(), expected)
    with pytest.raises(ValueError, match="out must be a writable"):
        cache_of(array).rows(heads=None, out=answer[..., ::-1])


def test_a_stream_of_cupy_is_the_layers_stream() -> None:
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    right = soft((1, 3, 65, 130)).cpu().numpy()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        array = cupy.zeros(right.shape, cupy.float32)
        array[...] = cupy.asarray(right)
        cache = cache_of(on_stream(array, stream))
    assert_same(cache.rows(heads=None), cache_of(right).rows(heads=None))


def test_an_answer_goes_on_in_torch_and_comes_back_as_a_layer() -> None:
    tensor = soft((1, 4, 100, 100))
    answer = cache_of(tensor).rows(0, heads=None, batch=None, out=torch.empty_like(tensor))
    squared = answer.square()
    assert_same(cache_of(squared).rows(heads=None), cache_of(squared.cpu()).rows(heads=None))
    assert_same(cache_of(answer).rows(heads=None), on_host(tensor).rows(heads=None))


# A model


@pytest.fixture
def model() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return transformers.LlamaForCausalLM(config).eval().cuda()


def test_a_capture_on_the_device_is_what_the_model_computes_there(model: Any) -> None:
    ids = torch.randint(99, (1, 120), generator=torch.Generator().manual_seed(0)).cuda()
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        for store in ("pattern", "qk"):
            with torch.no_grad(), attncache.capture(model, store, dtype="float32") as cache:
                model(ids)
            model.set_attn_implementation("eager")
            with torch.no_grad():
                attentions = model(ids, output_attentions=True).attentions
            model.set_attn_implementation(implementation)
            assert cache.n_layers == 3
            for layer, attention in enumerate(attentions):
                expected = attention[0].float().cpu().numpy()
                np.testing.assert_allclose(cache.rows(layer, heads=None), expected, atol=2e-3)


def test_attentions_of_a_model_are_answered_where_they_lie(model: Any) -> None:
    ids = torch.randint(99, (1, 120), generator=torch.Generator().manual_seed(0)).cuda()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    cache = cache_of(*attentions)
    assert cache.devices == ("cuda:0",) * 3
    host = cache_of(*(each.cpu() for each in attentions))
    assert_same(cache.rows(heads=None), host.rows(heads=None))
    assert_same(tuple(cache.top_k(4, heads=None)), tuple(host.top_k(4, heads=None)))
