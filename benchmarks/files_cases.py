"""What is measured of files: each case is one thing to do, and how each contender does it.

The expressions of a case that writes see ``folder``, empty and new for each call. Those that ask see a random ``layer`` and
``position``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.files_contenders import (
    ARCHIVE,
    CP,
    FROM_FILE,
    NUMPY,
    OURS,
    OURS_VERIFIED,
    SAFETENSORS,
    TORCH,
)
from benchmarks.files_world import FilesWorld


@dataclass(frozen=True)
class FileCase:
    """One measured operation.

    name: what the report says. about: what is counted, in a sentence.
    contenders: expression by contender.
    kind: "write" into an empty folder; "read" or "ask" with the files in memory; the "cold" ones with none of them there.
    yardstick: the contender whose speed is the limit; None if there is none.
    is_right: whether an answer is right, of (world, contender, answer, arguments).
    moves_all: whether all bytes of the cache are moved, so that there is a rate.
    """

    name: str
    about: str
    contenders: Mapping[str, str]
    kind: Literal["write", "read", "read cold", "ask", "ask cold"]
    yardstick: str | None
    is_right: Callable[..., bool]
    moves_all: bool = True

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names that the expressions see."""
        return {"write": ("folder",), "read": (), "ask": ("layer", "position")}[self.kind.removesuffix(" cold")]

    @property
    def is_cold(self) -> bool:
        """Whether the files must not be in memory before a call."""
        return self.kind.endswith("cold")


def is_saved(world: FilesWorld, contender: str, _answer: None, folder: Any) -> bool:
    """Whether everything was written."""
    return world.is_saved(contender, folder)


def is_pushed(world: FilesWorld, contender: str, _answer: None, folder: Any) -> bool:
    """Whether everything was written, layer by layer."""
    return world.is_pushed(contender, folder)


def is_loaded(world: FilesWorld, contender: str, answer: Any) -> bool:
    """Whether everything was read."""
    return world.is_loaded(contender, answer)


def is_opened(world: FilesWorld, _contender: str, answer: Any) -> bool:
    """Whether all layers were found."""
    return len(answer) == world.size.layers


def is_answer(world: FilesWorld, contender: str, answer: Any, layer: int, position: int) -> bool:
    """Whether the question was answered."""
    return world.is_answer(contender, answer, layer, position)


WRITTEN = {
    NUMPY: "save_numpy(patterns, folder)",
    ARCHIVE: "save_archive(patterns, folder)",
    SAFETENSORS: "save_safetensors(patterns, folder)",
    TORCH: "save_torch(tensors, folder)",
    CP: "copy_file(source, folder)",
}
READ = {
    OURS: "load_ours(kept, mmap=False)",
    OURS_VERIFIED: "load_ours(kept, mmap=True, verify=True)",
    NUMPY: "load_numpy(kept, n_layers)",
    ARCHIVE: "load_archive(kept, n_layers)",
    SAFETENSORS: "load_safetensors(kept, n_layers)",
    TORCH: "load_torch(kept, n_layers, mmap=False)",
    FROM_FILE: "np.fromfile(source, np.uint8)",
}
ASKED = {
    OURS: "ask_ours(kept, layer, position)",
    NUMPY: "ask_numpy(kept, layer, position)",
    ARCHIVE: "ask_archive(kept, layer, position)",
    SAFETENSORS: "ask_safetensors(kept, layer, position)",
    TORCH: "ask_torch(kept, layer, position)",
}
CASES = (
    FileCase(
        "save, on the disk",
        "The final fsync is counted for all; attncache never goes without it, the others are followed by one.",
        {OURS: "save_ours(cache, folder)"} | {name: f"synced({code}, folder)" for name, code in WRITTEN.items()},
        "write",
        CP,
        is_saved,
    ),
    FileCase(
        "save, not waiting for the disk",
        "The final fsync is left out for all; of attncache by taking os.fsync and the early start of the disk away from it, which users cannot ask for.",
        {OURS: "save_ours_without_sync(cache, folder)"} | WRITTEN,
        "write",
        CP,
        is_saved,
    ),
    FileCase(
        "push to disk, layer by layer",
        "Into an empty directory, each layer on the disk before the next is written; per cache.",
        {
            OURS: "pushed_to_disk(patterns, folder)",
            NUMPY: "each_synced(save_numpy, patterns, folder)",
            SAFETENSORS: "each_synced(save_safetensors, patterns, folder)",
            TORCH: "each_synced(save_torch, tensors, folder)",
            CP: "synced(copy_file(source, folder), folder)",
        },
        "write",
        CP,
        is_pushed,
    ),
    FileCase(
        "load into memory",
        "The files are in the page cache. attncache and the archive verify checksums, the others have none.",
        READ,
        "read",
        FROM_FILE,
        is_loaded,
    ),
    FileCase(
        "load into memory, cold",
        "The files are on the disk alone.",
        READ,
        "read cold",
        FROM_FILE,
        is_loaded,
    ),
    FileCase(
        "open, all layers",
        "Nothing is read but headers.",
        {
            OURS: "load_ours(kept, mmap=True)",
            NUMPY: "load_numpy(kept, n_layers, 'r')",
            SAFETENSORS: "open_safetensors(kept)",
            TORCH: "load_torch(kept, n_layers, mmap=True)",
        },
        "read",
        None,
        is_opened,
        moves_all=False,
    ),
    FileCase(
        "open and ask one query",
        "A new open and the mean over heads of one query's weights; the files are in the page cache.",
        ASKED,
        "ask",
        None,
        is_answer,
        moves_all=False,
    ),
    FileCase(
        "open and ask one query, cold",
        "The same with the files on the disk alone.",
        ASKED,
        "ask cold",
        None,
        is_answer,
        moves_all=False,
    ),
)
