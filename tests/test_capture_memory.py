"""The memory that a capture takes beside its result, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")


PEAK = """
import resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from attncache import capture

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=8)
model = LlamaForCausalLM(LlamaConfig(vocab_size=99, max_position_embeddings=4096, **sizes)).eval()
ids = torch.randint(5, 90, (1, 1500))
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

sizes = dict(hidden_size=512, intermediate_size=64, num_hidden_layers=14, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=99, max_position_embeddings=4096, **sizes)).eval().model
ids = torch.randint(5, 90, (1, 2048))
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
    assert n_bytes == 14 * 2 * 2048 * 512 * 2
    assert grown < n_bytes + 60e6


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux counts it")
def test_dense_layers_take_the_result_and_one_layer_more() -> None:
    """Half a layer is for queries, keys and the allocator; steps of generation join layer by layer."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=300)
    growth, nbytes, n_layers = map(int, done.stdout.split())
    assert nbytes == 4 * 8 * 1502 * 1502 * 2
    assert growth <= nbytes + 1.5 * nbytes / n_layers
