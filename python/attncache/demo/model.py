"""Loads a model that lies on this machine and captures one text with it: ``attncache demo --model``."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from attncache import capture
from attncache.demo.sample import Sample

# The second half repeats a phrase and stops in the middle of it, so that induction heads have something to copy.
TEXT = (
    "The old lighthouse keeper climbed the spiral stairs and lit the lamp. Every ship that passed the island "
    "knew its light. But tonight the fog is thick, so once more the old lighthouse keeper climbed the spiral"
)
_CAUSAL = ("ForCausalLM", "LMHeadModel")


class Source(NamedTuple):
    """Where a model lies: its folder, the gguf file in it if it is one, and what to call it."""

    folder: Path
    gguf: str | None
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """How ``from_pretrained`` finds it, without a network."""
        found = {"pretrained_model_name_or_path": str(self.folder), "local_files_only": True}
        return found if self.gguf is None else {**found, "gguf_file": self.gguf}


def capture_model(model: str, text: str | None) -> Sample:
    """Run a text through a model and keep the pattern of every layer and head.

    Args:
        model: a folder with a transformers model, a .gguf file, or the name of an installed package that carries one.
        text: what the model reads; None takes a text with a repeated phrase.

    Raises:
        ImportError: a package is missing; the message says what to install.
        OSError, ValueError: there is no such model, or it cannot be loaded or captured, or the text is too short or
            too long for it.
    """
    source = find_model(model)
    needed = ["torch", "transformers", *(["gguf", "accelerate"] if source.gguf else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"--model needs {' and '.join(missing)}: pip install {' '.join(needed)}")
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokenizer, network, is_causal = load(source)
    words = TEXT if text is None else text
    inputs = tokenizer(words, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    _check_length(len(ids), network)
    with torch.no_grad(), capture(network) as cache:
        outputs = network(**inputs)
    cache.tokens = tuple(str(tokenizer.decode([token])) for token in ids)
    return Sample(
        cache=cache,
        model=source.name,
        next_token=str(tokenizer.decode([int(outputs.logits[0, -1].argmax())])) if is_causal else None,
        command=f"attncache demo --model {shlex.quote(model)}" + (f" --text {shlex.quote(text)}" if text else ""),
        is_causal=is_causal,
    )


def find_model(model: str) -> Source:
    """Where a model lies, by path or by the package that carries it.

    Raises:
        FileNotFoundError: there is no such folder, file or package. ValueError: it holds no model.
    """
    path = Path(model)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return Source(path.resolve().parent, path.name, path.stem)
    if path.is_dir():
        return _in_folder(path.resolve(), path.resolve().name)
    name = model.replace("-", "_")
    package = importlib.util.find_spec(name) if name.isidentifier() else None
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            f"--model must be a folder with a model, a .gguf file or an installed package that carries one, got {model!r}"
        )
    return _in_folder(Path(next(iter(package.submodule_search_locations))), name)


def _in_folder(folder: Path, name: str) -> Source:
    """The first model in a folder or below it: a gguf file, or a config.json beside its weights."""
    files = sorted(folder.rglob("*.gguf"))
    if files:
        return Source(files[0].parent, files[0].name, files[0].stem)
    for config in sorted(folder.rglob("config.json")):
        if any(config.parent.glob("*.safetensors")) or any(config.parent.glob("*.bin")):
            return Source(config.parent, None, name)
    raise ValueError(
        f"{folder}: must hold a .gguf file, or a config.json beside .safetensors or .bin weights, got neither"
    )


def load(source: Source) -> tuple[Any, Any, bool]:
    """Tokenizer, model in float32, and whether it is a causal one.

    Raises:
        ValueError: transformers cannot load them.
    """
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        is_causal = source.gguf is not None
        if not is_causal:
            kinds = getattr(AutoConfig.from_pretrained(**source.arguments), "architectures", None) or []
            is_causal = any(kind.endswith(_CAUSAL) for kind in kinds)
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        kind = AutoModelForCausalLM if is_causal else AutoModel
        return tokenizer, kind.from_pretrained(**source.arguments, dtype=torch.float32).eval(), is_causal
    except Exception as error:  # configurations, tokenizers and weights fail in many ways; all of them end here
        raise ValueError(f"{source.folder}: must be a model that transformers can load, got: {error}") from error


def _check_length(n_tokens: int, network: Any) -> None:
    longest = getattr(network.config, "max_position_embeddings", None)
    if n_tokens < 2 or (longest is not None and n_tokens > longest):
        limit = "" if longest is None else f" and at most {longest}"
        raise ValueError(f"--text must give at least 2 tokens{limit}, got {n_tokens}")
