"""The arguments of a capture, checked, and what a ``with`` statement begins; for ``capture`` and ``capture_runs``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

from attncache.array_input import StoredDType
from attncache.cache import AttentionCache
from attncache.progress import Meter, checked_progress
from attncache.selections import Selector

if TYPE_CHECKING:
    from attncache.adapters.capture.chosen import Layers
    from attncache.adapters.capture.hooks import Hooked
    from attncache.adapters.capture.recorder import Recorder

Captured = TypeVar("Captured")


class Capture(AbstractContextManager[Captured], Generic[Captured]):
    """A capture that begins with its ``with`` statement and ends with it.

    Args:
        context: does both.
        name: the function that made it, for an error.
    """

    _name = "capture"  # of the class too: a copy that is being made has no attributes yet

    def __init__(self, context: AbstractContextManager[Captured], name: str = "capture") -> None:
        self._context = context
        self._name = name

    def __enter__(self) -> Captured:
        return self._context.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, traceback)  # which lets every exception pass

    def __getattr__(self, name: str) -> NoReturn:
        given = "cache" if self._name == "capture" else "runs"
        raise AttributeError(
            f"a capture has no attribute {name!r} before it begins: with attncache.{self._name}(model) as {given}: model(..)"
        )


class Settings(NamedTuple):
    """What a capture keeps, and how: the arguments of ``capture`` of these names."""

    store: Literal["pattern", "qk"]
    layers: Layers
    heads: Selector
    dtype: StoredDType | None
    n_heads: int | None
    check: bool

    def recorder(self, hooked: Hooked, cache: AttentionCache, meter: Meter, *, is_on_disk: bool) -> Recorder:
        """What records one run into an empty cache.

        Raises:
            IndexError, TypeError, ValueError: layers does not select from the model.
        """
        from attncache.adapters.capture.chosen import ChosenLayers  # noqa: PLC0415 (loaded by the first capture)
        from attncache.adapters.capture.recorder import Recorder  # noqa: PLC0415 (loaded by the first capture)
        from attncache.adapters.capture.stores import DenseLayers, FactoredLayers  # noqa: PLC0415 (loaded by the first capture)

        layers = ChosenLayers(self.layers, hooked.places.paths, hooked.places.interface)
        dtype, is_dense = self.dtype, self.store == "pattern"
        store = DenseLayers(cache, dtype) if is_dense else FactoredLayers(cache, dtype, is_on_disk)
        return Recorder(hooked, layers, self.heads, store, meter=meter, check=self.check)

    def check_with(self, model: Any, progress: Any) -> None:
        """Refuse arguments and packages that cannot be used.

        Raises:
            TypeError, ValueError: one of these arguments is not what it must be. ImportError: a package is missing.
        """
        try:
            import torch  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(f"capture needs torch ({error}): pip install torch") from error
        if not hasattr(torch.compiler, "set_stance"):
            raise ImportError(f"capture needs torch 2.6 or newer, got {torch.__version__}")
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{_what_to_pass(model)}")
        if self.store not in ("pattern", "qk"):
            raise ValueError(f"store must be 'pattern' or 'qk', got {self.store!r}")
        n_heads = self.n_heads
        if n_heads is not None and (isinstance(n_heads, bool) or not isinstance(n_heads, int)):
            raise TypeError(f"n_heads must be None or an int, got {type(n_heads).__name__}")
        if n_heads is not None and n_heads < 1:
            raise ValueError(f"n_heads must be 1 or more, got {n_heads}")
        if not isinstance(self.check, bool):
            raise TypeError(f"check must be True or False, got {type(self.check).__name__}")
        checked_progress(progress)


def _what_to_pass(given: Any) -> str:
    """The model inside what another library has wrapped around it, as the end of an error; "" if there is none."""
    import torch  # noqa: PLC0415

    names = ("original_model", "_model", "model", "module", "unet", "transformer")
    inner = next((name for name in names if isinstance(getattr(given, name, None), torch.nn.Module)), None)
    return "" if inner is None else f"; pass its .{inner}, and run that"
