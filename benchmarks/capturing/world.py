"""A vision transformer that calls scaled_dot_product_attention, another that writes it out, and loops of small calls."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from attncache import capture
from benchmarks.core.case import OURS, World
from benchmarks.core.timing import QUICK, Plan

CALLS = "calls"
N_CALLS = 2000
FORWARDS, LOOPS = Plan(0, 20.0, 15, 25), Plan(0, 1.0, 9, 25)


class ViT(NamedTuple):
    """A vision transformer: how many blocks, heads of 64, patches beside its class token, and pictures."""

    name: str
    blocks: int
    heads: int
    patches: int
    pictures: int

    def __str__(self) -> str:
        return f"{self.name}, [{self.pictures}, {self.heads}, {self.patches + 1}, {self.patches + 1}] in {self.blocks} blocks"


BASE, LARGE, QUICK_VIT = ViT("ViT-B", 12, 12, 196, 1), ViT("DINOv2-S", 12, 6, 1369, 1), ViT("tiny", 2, 2, 16, 1)


def vision_transformer(size: ViT, *, written_out: bool) -> Any:
    """A model with weights from a seed; written out it returns its weights too."""
    torch = importlib.import_module("torch")
    nn, functional = torch.nn, torch.nn.functional
    width = 64 * size.heads

    class Attention(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            q, k, v = self.qkv(x).unflatten(-1, (3, size.heads, 64)).permute(2, 0, 3, 1, 4)
            if written_out:
                weights = (q @ k.mT * 0.125).softmax(-1)
                return self.proj((weights @ v).transpose(1, 2).flatten(2)), weights
            return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(), nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Any) -> Any:
            attended, weights = self.attn(self.norm1(x))
            x = x + attended
            return x + self.mlp(self.norm2(x)), weights

    class Model(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Linear(588, width)
            self.blocks = nn.ModuleList(Block() for _ in range(size.blocks))

        def forward(self, picture: Any) -> Any:
            x, kept = self.patches(picture), []
            for block in self.blocks:
                x, weights = block(x)
                kept.append(weights)
            return x, kept

    torch.manual_seed(3)
    return Model().eval()


class ViTWorld(World):
    """The same model twice, and a picture that is patches already."""

    dtype = "float32"

    def __init__(self, size: ViT, threads: int, *, quick: bool) -> None:
        self.size, self.shape, self.plan, self.threads = size, str(size), QUICK if quick else FORWARDS, 0
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self.model = vision_transformer(size, written_out=False)
        self.eager = vision_transformer(size, written_out=True)
        generator = self.torch.Generator().manual_seed(5)
        self.picture = self.torch.randn(size.pictures, size.patches + 1, 588, generator=generator)
        self.output, _ = alone(self.model, self.picture)
        _, self.weights = written_out(self.eager, self.picture)

    @property
    def names(self) -> dict[str, Any]:
        """What expressions can refer to."""
        ways = {f.__name__: f for f in (alone, heard, queries_and_keys, patterns, written_out)}
        return {**ways, "model": self.model, "eager": self.eager, "picture": self.picture}


class CallsWorld(World):
    """Loops of calls that do next to nothing."""

    dtype, shape = "float32", f"{N_CALLS} calls of one item each"

    def __init__(self, *, quick: bool) -> None:
        torch = self.torch = importlib.import_module("torch")
        self.plan = QUICK if quick else LOOPS
        self.item, self.neg = torch.zeros(1), torch.neg
        nn = torch.nn
        lookalike = nn.Sequential()
        lookalike.add_module("attention", nn.ModuleDict({"q": nn.Linear(2, 2), "k": nn.Linear(2, 2)}))
        lookalike.attention.forward = lambda item: item
        self.model = nn.ModuleDict({"plain": nn.Identity(), "holder": lookalike})

    @property
    def names(self) -> dict[str, Any]:
        """What expressions can refer to."""
        return {f.__name__: f for f in (self.with_capture, self.operations, self.modules, self.lookalikes)}

    def with_capture(self, loop: Any) -> Any:
        """A loop under a capture that keeps nothing."""
        with capture(self.model, layers=[]):
            return loop()

    def operations(self) -> int:
        """Calls of a tensor function."""
        item, neg = self.item, self.neg
        for _ in range(N_CALLS):
            neg(item)
        return N_CALLS

    def modules(self) -> int:
        """Calls of a module without attention."""
        return self._calls(self.model["plain"])

    def lookalikes(self) -> int:
        """Calls of a module that looks like attention, and is watched."""
        return self._calls(self.model["holder"].attention)

    def _calls(self, module: Any) -> int:
        for _ in range(N_CALLS):
            module(None)
        return N_CALLS


def alone(model: Any, picture: Any) -> tuple[Any, Any]:
    """A forward without a capture."""
    torch = importlib.import_module("torch")
    with torch.inference_mode():
        return model(picture)[0], None


def heard(model: Any, picture: Any) -> tuple[Any, Any]:
    """A forward whose every attention is heard, and none kept."""
    with capture(model, layers=[]):
        return alone(model, picture)


def queries_and_keys(model: Any, picture: Any) -> tuple[Any, Any]:
    """A forward whose queries and keys are kept."""
    with capture(model, "qk", dtype="float32") as cache:
        output, _ = alone(model, picture)
    return output, cache


def patterns(model: Any, picture: Any) -> tuple[Any, Any]:
    """A forward whose patterns are kept."""
    with capture(model, dtype="float32") as cache:
        output, _ = alone(model, picture)
    return output, cache


def written_out(model: Any, picture: Any) -> tuple[Any, Any]:
    """A forward of the model that returns its weights."""
    torch = importlib.import_module("torch")
    with torch.inference_mode():
        output, weights = model(picture)
    return output, weights


def judged(world: ViTWorld, contender: str, answer: tuple[Any, Any]) -> bool:
    """Whether an output has the bits of the model alone, and what was kept is the weights of the one written out."""
    output, kept = answer
    if kept is None:
        return bool((output == world.output).all())
    if not contender.startswith(OURS):
        return bool((output - world.output).abs().max() < 1e-4)
    pairs = zip(layer_weights(kept), world.weights, strict=True)
    close = all(np.abs(ours - theirs.numpy()).max() < 1e-5 for ours, theirs in pairs)
    return close and bool((output == world.output).all())


def layer_weights(cache: Any) -> list[Any]:
    """The weights of every layer, of either kind."""
    return [cache.edges(None, None, layers=layer, heads=None, batch=slice(None)) for layer in range(cache.n_layers)]
