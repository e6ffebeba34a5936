"""The layers of cases on a device: made there by torch, borrowed there by ours, read by the checks where they ask.

Nothing is made on the host, and no layer ever lies there whole.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache
from benchmarks.core.case import OURS, TORCH, Case, Way, World
from benchmarks.dense.contenders import torch_heaviest
from benchmarks.dense.world import SEED, Size
from benchmarks.device import contenders
from benchmarks.device.clocks import ARRIVED, DEVICE, ENQUEUED, Clocks, Plans
from benchmarks.factored.contenders import Factors
from benchmarks.factored.world import Shape

if TYPE_CHECKING:
    from benchmarks.device.cases import DeviceCase

Array = npt.NDArray[Any]

FULLY_CHECKED = 1 << 20  # weights in a layer; larger layers are checked on SAMPLED positions
SAMPLED = 8
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Place:
    """A device, as torch and ours see it.

    Attributes:
        device: torch's name for it.
        given: what is pushed for a tensor there.
        empty: a float32 array there of some shape, for an answer of ours to be written into.
    """

    torch: Any
    device: str
    given: Callable[[Any], Any]
    empty: Callable[[tuple[int, ...]], Any]
    plans: Plans
    clocks: Clocks

    def dtype(self, name: str) -> Any:
        """Torch's dtype of that name."""
        return getattr(self.torch, name)

    def free(self) -> None:
        """Give back what nobody uses any more."""
        gc.collect()
        if self.device != "cpu":
            self.torch.cuda.empty_cache()

    def on_host(self, answer: Any, part: Array | None = None) -> Any:
        """An answer as NumPy arrays, once it is there; of its axis -2 only ``part``, which is picked where it lies."""
        if hasattr(answer, "positions"):
            answer = (answer.positions, answer.weights)
        if isinstance(answer, tuple):
            return tuple(self.on_host(each, part) for each in answer)
        if not isinstance(answer, self.torch.Tensor):
            return answer if part is None else answer[..., part, :]
        if part is not None:
            answer = answer[..., self.torch.from_numpy(part).to(answer.device), :]
        return numpy_of(self.torch, answer)


def numpy_of(torch: Any, tensor: Any) -> Array:
    """A tensor as a NumPy array; bfloat16 as that of ml_dtypes."""
    if tensor.dtype != torch.bfloat16:
        return np.asarray(tensor.cpu().numpy())
    import ml_dtypes  # noqa: PLC0415 - only bfloat16 needs it

    items: Array = tensor.contiguous().view(torch.int16).cpu().numpy()
    return items.view(ml_dtypes.bfloat16)


class OnDevice:
    """A tensor that gives NumPy arrays of what is asked of it, and reads no more from the device."""

    def __init__(self, torch: Any, tensor: Any) -> None:
        self.torch, self.tensor = torch, tensor

    def __getitem__(self, index: Any) -> Array:
        parts = index if isinstance(index, tuple) else (index,)
        return numpy_of(self.torch, self.tensor[tuple(map(self._there, parts))])

    def _there(self, part: Any) -> Any:
        """A list of positions as a tensor on the device; whatever else as it is."""
        if isinstance(part, list | np.ndarray):
            return self.torch.as_tensor(np.asarray(part, np.int64)).to(self.tensor.device)
        return part


class DeviceWorld(World):
    """What worlds of both kinds share: a case is timed on the device and on the host."""

    place: Place

    def runnable(self, case: Case) -> dict[str, str]:
        """Ours and torch's."""
        return dict(case.contenders)

    def ways(self, case: DeviceCase) -> Iterable[Way]:  # type: ignore[override]
        """On the device, with the answer left there; small ones also on the host, and what comes as NumPy arrays only so."""
        plans, clocks = self.place.plans, self.place.clocks
        ours, theirs = case.contenders[OURS], case.contenders[TORCH]
        if case.out is not None:
            self.names["out"] = self.place.empty(case.out(self))
            codes = {OURS: f"{ours[:-1]}, out=out)", TORCH: theirs}
            yield Way(DEVICE, codes, plans.small if case.is_small else plans.whole, clocks.device)
            if case.is_small:
                yield Way(ENQUEUED, codes, plans.host, clocks.enqueue, is_limited=False)
        if case.out is None or case.is_small:
            codes = {OURS: ours, TORCH: f"arrived({theirs})"}
            plan = plans.host if case.is_small else plans.whole
            yield Way(ARRIVED, codes, plan, clocks.complete, is_limited=False)

    def close(self) -> None:
        """Give back the memory of the device."""
        vars(self).clear()


class DenseDeviceWorld(DeviceWorld):
    """Dense layers of one size and dtype, causal softmax of normal scores with deviation 2."""

    def __init__(self, place: Place, size: Size, dtype: str) -> None:
        self.place, self.size, self.dtype = place, size, dtype
        self.shape = str(size)
        self.itemsize = ITEM_BYTES[dtype]
        self.rng = np.random.default_rng([SEED, size.heads, size.seq])
        self.turn = cycle(range(size.layers))
        place.torch.manual_seed(SEED)
        self.tensors = [self._layer() for _ in range(size.layers)]
        self.patterns = [OnDevice(place.torch, tensor) for tensor in self.tensors]
        self.cache = AttentionCache(index="off")
        for tensor in self.tensors:
            self.cache.push(place.given(tensor))
        some = np.array([0, *self.rng.choice(np.arange(1, size.seq - 1), SAMPLED - 2, replace=False), size.seq - 1])
        self.sample = np.sort(some) if size.weights > FULLY_CHECKED else np.arange(size.seq)

    def _layer(self) -> Any:
        """One layer [1, head, query, key], a head at a time so that float32 takes little memory."""
        torch, device, seq = self.place.torch, self.place.device, self.size.seq
        shape = (1, self.size.heads, seq, seq)
        layer = torch.empty(shape, dtype=self.place.dtype(self.dtype), device=device)
        future = torch.ones((seq, seq), dtype=torch.bool, device=device).triu_(1)
        for head in layer[0]:
            scores = torch.randn((seq, seq), device=device).mul_(2).masked_fill_(future, -torch.inf)
            head.copy_(torch.softmax(scores, -1))
        return layer

    def queries(self, layer: int, positions: Any) -> list[Array]:
        """One layer cut down to some query positions, as the reference wants it."""
        return [self.patterns[layer][:, :, positions]]

    def keys(self, layer: int, positions: Any) -> list[Array]:
        """One layer cut down to some key positions, as the reference wants it."""
        return [self.patterns[layer][..., positions]]

    @cached_property
    def names(self) -> dict[str, Any]:
        """What the expressions may use."""
        return {
            **vars(contenders),
            "torch_heaviest": torch_heaviest,
            "cache": self.cache,
            "tensors": self.tensors,
            "torch": self.place.torch,
        }


class FactoredDeviceWorld(DeviceWorld):
    """One layer of queries and keys, larger than any cache, whose scores have deviation 2."""

    def __init__(self, place: Place, shape: Shape, dtype: str) -> None:
        self.place, self.layer, self.dtype = place, shape, dtype
        self.shape = str(shape)
        self.itemsize = ITEM_BYTES[dtype]
        self.rng = np.random.default_rng([SEED, shape.heads, shape.seq_k])
        self.scale = shape.head_dim**-0.5
        place.torch.manual_seed(SEED)
        self.query = self._items(shape.heads, shape.seq_q, 2)
        self.key = self._items(shape.key_heads, shape.seq_k, 1)
        self.cache = AttentionCache()
        queries, keys = place.given(self.query), place.given(self.key)
        self.cache.push_qk(queries, keys, scale=self.scale, causal=shape.causal)

    def _items(self, heads: int, length: int, deviation: float) -> Any:
        shape = (1, heads, length, self.layer.head_dim)
        items = self.place.torch.randn(shape, device=self.place.device).mul_(deviation)
        return items.to(self.place.dtype(self.dtype))

    @cached_property
    def factors(self) -> Factors:
        """The layer on the host, which exact rows need whole."""
        query, key = (numpy_of(self.place.torch, items)[0] for items in (self.query, self.key))
        return Factors(query, key, None, self.scale, self.layer.causal)

    @cached_property
    def names(self) -> dict[str, Any]:
        """What the expressions may use."""
        return {
            **vars(contenders),
            "torch_heaviest": torch_heaviest,
            "cache": self.cache,
            "query": self.query[0],
            "key": self.key[0],
            "scale": self.scale,
            "np": np,
            "torch": self.place.torch,
        }
