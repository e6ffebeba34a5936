# The C++ core: cpp/bindings/ holds what this file describes.

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from attncache.cuda.device_array import DeviceArray
from attncache.cuda.layers import Layer

__version__: str

_Source: TypeAlias = tuple[npt.NDArray[Any], str, str, bool]  # array, dtype, dtype to store, whether memory is shared

class Store:
    def __init__(self) -> None: ...
    def _push(self, array: npt.NDArray[Any], dtype: str, stored: str, shares_memory: bool) -> None: ...
    def _push_qk(
        self,
        query: _Source,
        key: _Source,
        scale: float,
        softcap: float,
        causal: bool,
        window: int,
        hidden_keys: Sequence[Sequence[tuple[int, int]]],
        sinks: npt.NDArray[np.float32] | None,
        lse: npt.NDArray[np.float32] | None,
    ) -> None: ...
    def _append_qk(
        self,
        layer: Any,
        query: npt.NDArray[Any],
        query_dtype: str,
        key: npt.NDArray[Any],
        key_dtype: str,
        hidden_keys: Sequence[Sequence[tuple[int, int]]],
    ) -> None: ...
    def _queries(self, layer: Any) -> npt.NDArray[Any]: ...
    def _keys(self, layer: Any) -> npt.NDArray[Any]: ...
    def _lse(self, layer: Any, progress: Callable[[int, int], object] | None) -> npt.NDArray[np.float32]: ...
    def _push_dense_of(self, source: Store, layer: Any, dtype: str) -> None: ...
    def _put_layer(self, at: Any, source: Store, layer: Any) -> None: ...
    def _memory(self, layer: Any) -> tuple[npt.NDArray[Any], ...]: ...
    def _options(
        self, layer: Any
    ) -> tuple[float, float, bool, int, list[list[tuple[int, int]]], list[float], bool]: ...
    def _row_sums(self, layer: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None: ...
    def _set_row_sums(self, layer: Any, greatest: npt.NDArray[np.float32], sums: npt.NDArray[np.float32]) -> None: ...
    def _push_qk_over(
        self,
        query: npt.NDArray[Any],
        key: npt.NDArray[Any],
        dtype: str,
        scale: float,
        softcap: float,
        causal: bool,
        window: int,
        hidden_keys: Sequence[Sequence[tuple[int, int]]],
        sinks: Sequence[float],
    ) -> None: ...
    def _give_row_sums(self, layer: Any, greatest: npt.NDArray[np.float32], sums: npt.NDArray[np.float32]) -> None: ...
    def _set_index(
        self, layer: Any, batch: Any, by_query: npt.NDArray[np.float32], by_key: npt.NDArray[np.float32]
    ) -> None: ...
    @property
    def kinds(self) -> tuple[Literal["dense", "factored"], ...]: ...
    def _push_device(self, layer: Layer) -> None: ...
    def _device_layer(self, layer: Any) -> Layer | None: ...
    @property
    def devices(self) -> tuple[str, ...]: ...
    def _reserve(self, n_layers: int) -> None: ...
    def _clear(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def is_empty(self) -> bool: ...
    def _set_index_policy(self, index: str) -> None: ...
    def _drop_index(self) -> None: ...
    @property
    def index(self) -> Literal["off", "auto", "eager"]: ...
    @property
    def index_nbytes(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], ...]: ...
    @property
    def dtypes(self) -> tuple[Literal["float16", "bfloat16", "float32"], ...]: ...
    @overload
    def __getitem__(self, layer: int, /) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, layer: slice, /) -> tuple[npt.NDArray[Any], ...]: ...
    def get_layer(self, layer: int) -> npt.NDArray[Any] | None: ...
    @overload
    def attention_from_position(
        self,
        layer: int,
        position: int,
        batch: int = 0,
        *,
        out: npt.NDArray[np.float32] | None = None,
        device_result: Literal[False] = False,
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def attention_from_position(
        self, layer: int, position: int, batch: int = 0, *, out: None = None, device_result: Literal[True]
    ) -> DeviceArray: ...
    @overload
    def attention_to_position(
        self,
        layer: int,
        position: int,
        batch: int = 0,
        *,
        out: npt.NDArray[np.float32] | None = None,
        device_result: Literal[False] = False,
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def attention_to_position(
        self, layer: int, position: int, batch: int = 0, *, out: None = None, device_result: Literal[True]
    ) -> DeviceArray: ...
    def top_attended_positions(
        self, layer: int, from_position: int, k: int, batch: int = 0
    ) -> list[tuple[int, float]]: ...
    @overload
    def head_mean(
        self,
        layer: int,
        batch: int = 0,
        *,
        out: npt.NDArray[np.float32] | None = None,
        device_result: Literal[False] = False,
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def head_mean(
        self, layer: int, batch: int = 0, *, out: None = None, device_result: Literal[True]
    ) -> DeviceArray: ...

def rows(
    store: Store,
    layers: Any,
    positions: Any,
    heads: Any,
    batch: Any,
    out: npt.NDArray[np.float32] | None,
    device_result: bool,
) -> npt.NDArray[np.float32] | DeviceArray: ...
def columns(
    store: Store,
    layers: Any,
    positions: Any,
    heads: Any,
    batch: Any,
    out: npt.NDArray[np.float32] | None,
    device_result: bool,
) -> npt.NDArray[np.float32] | DeviceArray: ...
def edges(
    store: Store,
    from_positions: Any,
    to_positions: Any,
    layers: Any,
    heads: Any,
    batch: Any,
    out: npt.NDArray[np.float32] | None,
    device_result: bool,
) -> npt.NDArray[np.float32] | DeviceArray: ...
def top_k(
    store: Store, k: Any, layers: Any, positions: Any, heads: Any, batch: Any, direction: str, device_result: bool
) -> tuple[Any, Any]: ...
def row_sample(array: npt.NDArray[Any], dtype: str) -> tuple[int, float, float, float]: ...
def dlpack_taken(
    capsule: Any,
) -> tuple[Any, int, tuple[int, int], tuple[int, int, int], tuple[int, ...], tuple[int, ...]]: ...
def dlpack_given(
    owner: object,
    address: int,
    device: tuple[int, int],
    dtype: tuple[int, int],
    shape: Sequence[int],
    is_versioned: bool,
) -> Any: ...
def simd_compiled() -> tuple[str, ...]: ...
def simd_available() -> tuple[str, ...]: ...
def simd_active() -> str: ...
def simd_active_instructions() -> str: ...
def simd_use(level: str) -> None: ...
def give_back_freed_memory() -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
