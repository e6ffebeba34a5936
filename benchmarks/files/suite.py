"""The command that measures caches in files: ``python -m benchmarks.files``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.core.case import Case, World
from benchmarks.core.machine import version_of
from benchmarks.core.run import Suite
from benchmarks.dense.world import Size
from benchmarks.files.cases import CASES, OPENING
from benchmarks.files.pages import file_system
from benchmarks.files.world import FilesWorld, OpeningWorld, folder_for

FULL_SIZES, QUICK_SIZES = (Size(12, 128, 12), Size(12, 1024, 8), Size(32, 2048, 2)), (Size(3, 32, 2),)
# 10 MB, 100 MB, 500 MB, 2 GB
FULL_OPENED, QUICK_OPENED = [Size(12, seq, 30) for seq in (118, 373, 833, 1667)], [Size(12, seq, 3) for seq in (8, 16)]


class FilesSuite(Suite):
    """Caches in files beside NumPy, safetensors, torch and cp: a table for each operation."""

    module = "benchmarks.files"
    title = "Caches in files in full"
    contenders = ()

    def cases(self, _options: argparse.Namespace) -> Sequence[Case]:
        """Writing, reading, opening and asking."""
        return CASES

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """Caches of some sizes; then files of very different sizes to open."""
        place = {"parent": options.folder, "quick": options.quick}
        for size in QUICK_SIZES if options.quick else FULL_SIZES:
            yield "", "float16", partial(FilesWorld, size, options.threads, **place)
        for size in QUICK_OPENED if options.quick else FULL_OPENED:
            yield OPENING, "float16", partial(OpeningWorld, size, **place)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Where to write."""
        about = "where to write; the system's temporary folder if absent"
        parser.add_argument("--folder", type=Path, metavar="DIR", help=about)

    def described(self, options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, str]:
        """The machine, its file system, and safetensors."""
        with folder_for(options.folder) as folder:
            about = {"file system": file_system(folder)}
        about |= {library: version_of(library) for library in ("torch", "safetensors")}
        return super().described(options, arguments) | about
