"""``attncache.capture_runs``: each forward of a model as a run of its own, in memory or in a directory."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy.typing as npt

from attncache.adapters.capture.opening import Capture, Settings
from attncache.array_input import StoredDType, stored_dtype
from attncache.cache import AttentionCache
from attncache.notices import CaptureWarning, warn_user
from attncache.progress import Meter, Progress
from attncache.runs.directory import Runs
from attncache.selections import Selector

if TYPE_CHECKING:
    import torch

    from attncache.adapters.capture.chosen import Layers
    from attncache.adapters.capture.recorder import Recorder
    from attncache.adapters.capture.seams.listening import Heard
    from attncache.files.directory import DiskCache

_NAME = "forward-{}"


@overload
def capture_runs(
    model: torch.nn.Module,
    directory: None = None,
    *,
    every: int = 1,
    store: Literal["pattern", "qk"] = "pattern",
    layers: Layers = None,
    heads: Selector = None,
    dtype: npt.DTypeLike | StoredDType | None = "float16",
    n_heads: int | None = None,
    check: bool = True,
    progress: Progress = False,
) -> Capture[list[AttentionCache]]: ...
@overload
def capture_runs(
    model: torch.nn.Module,
    directory: str | PathLike[str],
    *,
    every: int = 1,
    store: Literal["pattern", "qk"] = "pattern",
    layers: Layers = None,
    heads: Selector = None,
    dtype: npt.DTypeLike | StoredDType | None = "float16",
    n_heads: int | None = None,
    check: bool = True,
    progress: Progress = False,
) -> Capture[Runs]: ...
def capture_runs(
    model: torch.nn.Module,
    directory: str | PathLike[str] | None = None,
    *,
    every: int = 1,
    store: Literal["pattern", "qk"] = "pattern",
    layers: Layers = None,
    heads: Selector = None,
    dtype: npt.DTypeLike | StoredDType | None = "float16",
    n_heads: int | None = None,
    check: bool = True,
    progress: Progress = False,
) -> Capture[list[AttentionCache]] | Capture[Runs]:
    """Capture each forward of a model as a run of its own: prompts, batches, or the steps of a diffusion.

    A forward is a call of ``model`` itself, from its begin to its end; of a pipeline, give the part that runs at each step
    (``pipe.unet``). A forward that fails leaves no run. Everything else is as for ``attncache.capture``.

    Args:
        model: the model.
        directory: None, or where the runs go: each becomes a cache on disk, so that memory holds one layer at a time. It is made
            if it is not there, and may hold other runs.
        every: how many forwards apart the captured ones are: the first, and each ``every``-th after it.
        store, layers, heads, dtype, n_heads, check, progress: as for ``attncache.capture``, of every run.

    Returns:
        A context manager. Without a directory it gives a list, to which each forward adds a cache. With one it gives Runs of
        that directory, which each forward adds to; they are named by the number of their forward, "forward-0" and so on,
        and open for ``open_runs`` and ``map_runs``. ``metadata["forward"]`` of a run has that number too.

    Raises:
        As ``attncache.capture``, what it raises at its end from the model's forward. TypeError, ValueError: every is not
        a number above 0. FileExistsError: the directory holds runs of an earlier call.

    Warns:
        CaptureWarning: as ``attncache.capture``, of each run; or the model itself was never called.

    Example::

        with attncache.capture_runs(pipe.unet, "steps", every=5, layers="*.attn2") as runs:
            pipe("a red bicycle", num_inference_steps=50)
        maps = attncache.map_runs(lambda cache: cache.columns(0, 5), runs)
    """
    settings = Settings(store, layers, heads, stored_dtype(dtype), n_heads, check)
    settings.check_with(model, progress)
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every must be an int, got {type(every).__name__}")
    if every < 1:
        raise ValueError(f"every must be 1 or more, got {every}")
    if directory is not None and not isinstance(directory, str | PathLike):
        raise TypeError(f"directory must be None, a string or a path, got {type(directory).__name__}")
    return Capture(_captured(model, directory, every, settings, progress), "capture_runs")


@contextmanager
def _captured(
    model: torch.nn.Module, directory: str | PathLike[str] | None, every: int, settings: Settings, progress: Progress
) -> Iterator[Any]:
    """``capture_runs`` with checked arguments."""
    from attncache.adapters.capture.recorder import BETWEEN  # noqa: PLC0415 (loaded by the first capture)
    from attncache.adapters.capture.seams.listening import listening  # noqa: PLC0415 (loaded by the first capture)

    runs: list[AttentionCache] | Runs = [] if directory is None else _empty_runs(Path(directory).absolute())
    shown = Meter(progress)
    forwards = _Forwards(model, runs, every, settings, shown)
    with ExitStack() as stack:
        stack.callback(shown.close)
        stack.callback(forwards.abandon)
        stack.enter_context(forwards.hooked.hooks.attached())
        stack.enter_context(listening(forwards))
        yield runs
    if not forwards.n_begun:
        name = type(model).__name__
        words = (
            f"no forward of this {name} ran: capture_runs counts calls of the very object that it was given; what is called "
            "instead, such as the encoder of a model, must be given to it"
        )
        warn_user(words, CaptureWarning, through=BETWEEN)


def _empty_runs(directory: Path) -> Runs:
    """The directory, made if it is not there.

    Raises:
        OSError: it cannot be made, or holds runs of an earlier call.
    """
    directory.mkdir(parents=True, exist_ok=True)
    earlier = next(directory.glob(_NAME.format("*")), None)
    if earlier is not None:
        raise FileExistsError(f"{directory}: directory must hold no runs of an earlier call, got {earlier.name}")
    return Runs(directory, ())


class _Forwards:
    """Listens and watches with another recorder in each forward, and keeps what it recorded.

    Args:
        model: the model.
        runs: where the runs go.
        every: how many forwards apart they are.
        settings: what to keep of each.
        meter: told of each layer.
    """

    def __init__(
        self, model: torch.nn.Module, runs: list[AttentionCache] | Runs, every: int, settings: Settings, meter: Meter
    ) -> None:
        from attncache.adapters.capture.hooks import Hooked  # noqa: PLC0415 (loaded by the first capture)

        self.hooked = Hooked.of(model, settings.n_heads)
        self.n_begun = 0  # forwards
        self._runs = runs
        self._every = every
        self._settings = settings
        self._meter = meter
        self._thread = threading.get_ident()
        self._depth = 0  # of a model that calls itself
        self._recorder: Recorder | None = None
        self._cache = AttentionCache()
        self._on_disk: tuple[DiskCache, Path] | None = None  # the cache, and where it is until it is whole
        self._error_before: BaseException | None = None
        self.hooked.hooks.watcher = self
        self._new_recorder()  # which says if layers selects nothing of the model

    # ---- what the seams tell

    def heard(self, attention: Heard) -> None:
        if self._recorder is not None:
            self._recorder.heard(attention)

    def unheard(self, what: str) -> None:
        if self._recorder is not None:
            self._recorder.unheard(what)

    def reordered(self) -> None:
        if self._recorder is not None:
            self._recorder.reordered()

    # ---- forwards

    def before_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self._thread:
            return
        self._depth += 1
        if self._depth == 1:
            number, self.n_begun = self.n_begun, self.n_begun + 1
            if number % self._every == 0:
                self._error_before = sys.exc_info()[1]
                self._cache = self._new_cache(number)
                self._recorder = self._new_recorder()
                self._recorder.before_model(args, kwargs)

    def after_model(self) -> None:
        """Keep the run, unless the model failed.

        Raises:
            ValueError: not all was captured that was asked for.
        """
        if threading.get_ident() != self._thread:
            return
        self._depth -= 1
        if self._depth or self._recorder is None:
            return
        error = sys.exc_info()[1]
        if error is not None and error is not self._error_before:
            self.abandon()
            return
        try:
            self._recorder.finish()
            self._keep()
        except BaseException:
            self.abandon()
            raise

    def before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recorder is not None:
            self._recorder.before_forward(module, args, kwargs)

    def after_forward(self, module: torch.nn.Module) -> None:
        if self._recorder is not None:
            self._recorder.after_forward(module)

    def abandon(self) -> None:
        """Leave nothing of a forward that did not end."""
        self._recorder, on_disk, self._on_disk = None, self._on_disk, None
        if on_disk is not None:
            cache, path = on_disk
            cache.close()
            shutil.rmtree(path)

    def _new_recorder(self) -> Recorder:
        is_on_disk = self._on_disk is not None
        return self._settings.recorder(self.hooked, self._cache, self._meter, is_on_disk=is_on_disk)

    def _new_cache(self, number: int) -> AttentionCache:
        dtype = self._settings.dtype
        if isinstance(self._runs, Runs):
            path = self._runs.directory / f".{_NAME.format(number)}"
            shutil.rmtree(path, ignore_errors=True)  # of a process that was killed
            on_disk = AttentionCache.create(path, dtype)
            self._on_disk = on_disk, path
        cache = AttentionCache(dtype) if self._on_disk is None else self._on_disk[0]
        cache.metadata = {"forward": number}
        return cache

    def _keep(self) -> None:
        self._recorder, on_disk, self._on_disk = None, self._on_disk, None
        if isinstance(self._runs, Runs):
            assert on_disk is not None
            cache, path = on_disk
            cache.close()
            name = path.name.removeprefix(".")
            path.rename(path.with_name(name))
            self._runs._add(name)
        else:
            self._runs.append(self._cache)
