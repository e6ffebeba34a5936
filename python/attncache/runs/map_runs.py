"""Asks many runs at once: one function of every cache in a directory, through threads or any other executor.

An executor gets the function and the path of a run, never a cache: the run is opened where it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attncache._core import get_num_threads
from attncache.cache import AttentionCache
from attncache.progress import Meter, Progress, checked_progress
from attncache.runs.directory import Runs, open_runs

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from queue import SimpleQueue

Result = TypeVar("Result")

_MOST_SHOWN, _MOST_LETTERS = 20, 500  # of failed runs in a message, and of what each says
_AT_ONCE = 1024  # runs that an executor has at a time: more than it has workers, few enough to be cancelled quickly
_LONGEST_WAIT = 0.1  # seconds: wait in slices: a signal that arrives just before the wait does not interrupt it


class RunErrors(Exception):
    """Some runs of a ``map_runs`` failed; the message says which and why, and ``__cause__`` is the first of their errors.

    Attributes:
        directory: where the runs are.
        results: what ``map_runs`` would have returned, None where a run failed.
        errors: the exception of each run that failed, by its name.
    """

    def __init__(self, directory: Path, results: list[Any], errors: dict[str, Exception]) -> None:
        lines = [f"{len(errors)} of {len(results)} runs in {directory} failed (results has the others):"]
        for name, error in islice(errors.items(), _MOST_SHOWN):
            words = f"{name}: {type(error).__name__}: {error}"
            lines.append(words if len(words) <= _MOST_LETTERS else f"{words[:_MOST_LETTERS]}..")
        if len(errors) > _MOST_SHOWN:
            lines.append(f"and {len(errors) - _MOST_SHOWN} more, see errors")
        super().__init__("\n  ".join(lines))
        self.directory, self.results, self.errors = directory, results, errors
        self.__cause__ = next(iter(errors.values()), None)

    def __reduce__(self) -> tuple[Any, ...]:
        return RunErrors, (self.directory, self.results, self.errors)


def map_runs(
    fn: Callable[[AttentionCache], Result],
    directory: str | PathLike[str] | Runs,
    executor: Executor | None = None,
    *,
    progress: Progress = True,
) -> list[Result]:
    """``fn(cache)`` of every run in a directory, several at a time.

    Each run is opened, mapped, where and when it is asked, and closed after it. A worker in another process or on another
    machine gets ``fn`` and the path of a run, and must find it there; only what ``fn`` returns comes back.

    Args:
        fn: what to ask of each run. For threads any callable that may run in several at once; for processes one that can
            be pickled, as a function of a module.
        directory: what holds the runs, as for ``open_runs``, or Runs such as ``open_runs(directory)[:10]``.
        executor: None for as many threads as ``get_num_threads()``, or any concurrent.futures.Executor, such as a
            ProcessPoolExecutor or ``client.get_executor(pure=False)`` of dask. It is not shut down.
        progress: True for a bar on stderr once it takes longer than a second, or a callable that is told (done, total)
            after each run; None and False for neither.

    Returns:
        The results in the order of the runs.

    Raises:
        RunErrors: ``fn`` or the opening of a run failed, or an executor broke; all other runs were asked all the same.
        TypeError: an argument is of the wrong kind. OSError, ValueError: as for ``open_runs``.
        KeyboardInterrupt: Ctrl-C; what had begun ends by itself, and nothing else is begun, except that an executor other
            than threads may still begin the one run that it was just being given.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for n in (1, 2, 3):
    ...         cache = AttentionCache()
    ...         cache.push(np.full((1, 2, n, n), 1 / n, np.float32))
    ...         cache.save(f"{folder}/prompt-{n}.safetensors")
    ...     map_runs(lambda cache: cache.shapes[0][-1], folder)
    [1, 2, 3]
    """
    from concurrent.futures import CancelledError, ThreadPoolExecutor  # noqa: PLC0415

    _check_arguments(fn, executor, progress)
    runs = directory if isinstance(directory, Runs) else open_runs(directory)
    pool = ThreadPoolExecutor(get_num_threads(), "attncache-runs") if executor is None else executor
    shown = Meter(progress)
    shown.begin("asking", len(runs), "run")
    pending: dict[Future[Result], int] = {}
    is_over = False

    def ask_here(path: Path) -> Result:
        if is_over:  # a run that was just being given out when Ctrl-C came, which nobody can cancel
            raise CancelledError("map_runs was interrupted")
        return _ask(fn, path)

    def submit(path: Path) -> Future[Result]:
        is_here = isinstance(pool, ThreadPoolExecutor)
        return pool.submit(ask_here, path) if is_here else pool.submit(_ask_elsewhere, fn, path)

    try:
        results, errors = _ask_all(submit, runs, pending, shown)
    except BaseException:
        is_over = True  # at once: threads begin other runs while these are cancelled
        for future in pending:
            future.cancel()
        raise
    finally:
        shown.close()
        if executor is None:
            pool.shutdown(wait=False)
    if errors:
        raise RunErrors(runs.directory, results, errors)
    return results


def _check_arguments(fn: Any, executor: Any, progress: Any) -> None:
    """Refuse what cannot be used.

    Raises:
        TypeError: one of these arguments is of the wrong kind.
    """
    from concurrent.futures import Executor  # noqa: PLC0415

    if not callable(fn):
        raise TypeError(f"fn must be callable, got {type(fn).__name__}")
    if executor is not None and not isinstance(executor, Executor):
        got = f"{type(executor).__name__} (for a dask client: client.get_executor(pure=False))"
        raise TypeError(f"executor must be None or a concurrent.futures.Executor, got {got}")
    checked_progress(progress)


def _ask_all(
    submit: Callable[[Path], Future[Result]], runs: Runs, pending: dict[Future[Result], int], shown: Meter
) -> tuple[list[Any], dict[str, Exception]]:
    """The results of all runs, None where one failed, and the errors of those that did, in the order of the runs.

    ``pending`` has the runs that an executor has and their places, for a caller who has to cancel them.
    """
    from queue import SimpleQueue  # noqa: PLC0415

    results: list[Any] = [None] * len(runs)
    errors: dict[int, Exception] = {}
    ended: SimpleQueue[Future[Result]] = SimpleQueue()
    paths = enumerate(runs.directory / name for name in runs.names)
    while True:
        for at, path in islice(paths, _AT_ONCE - len(pending)):
            future = _submitted(submit, path)
            pending[future] = at
            future.add_done_callback(ended.put)
        if not pending:
            return results, {runs.names[at]: errors[at] for at in sorted(errors)}
        future = _first(ended)
        at = pending.pop(future)
        error = _error_of(future)
        if error is None:
            results[at] = future.result()
        else:
            errors[at] = error
        shown.advance()


def _first(ended: SimpleQueue[Future[Result]]) -> Future[Result]:
    """Waits for a run to end, and ends itself soon after Ctrl-C."""
    from queue import Empty  # noqa: PLC0415

    while True:
        try:
            return ended.get(timeout=_LONGEST_WAIT)
        except Empty:  # noqa: PERF203 (it costs nothing against the wait)
            continue


def _submitted(submit: Callable[[Path], Future[Result]], path: Path) -> Future[Result]:
    """A run given to an executor; one that has failed if it takes none, as a broken one does."""
    from concurrent.futures import Future  # noqa: PLC0415

    try:
        return submit(path)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is why this run failed)
        refused: Future[Result] = Future()
        refused.set_exception(error)
        return refused


def _error_of(future: Future[Result]) -> Exception | None:
    """Why a run that has ended failed, or None; KeyboardInterrupt and SystemExit are raised."""
    from concurrent.futures import CancelledError  # noqa: PLC0415

    if future.cancelled():
        return CancelledError("the executor cancelled it")
    error = future.exception()
    if error is None or isinstance(error, Exception):
        return error
    raise error


def _ask(fn: Callable[[AttentionCache], Result], path: Path) -> Result:
    """What a worker does with a run."""
    try:
        return fn(AttentionCache.load(path))
    except BaseException as error:
        _forget_variables(error)
        raise


def _ask_elsewhere(fn: Callable[[AttentionCache], Result], path: Path) -> Result:
    """``_ask`` for a worker whose exceptions are pickled: one that cannot be read back would break a process pool."""
    import pickle  # noqa: PLC0415

    try:
        return _ask(fn, path)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 (any class may do anything when it is pickled)
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def _forget_variables(error: BaseException | None) -> None:
    """Empty the frames of an error, whose variables would keep the run open as long as the error is kept."""
    from traceback import clear_frames  # noqa: PLC0415

    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        clear_frames(error.__traceback__)
        error = error.__context__
