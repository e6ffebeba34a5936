"""What is measured of files: each case is one thing to do, and how each contender does it.

The expressions of a case that writes see ``folder``, empty and new for each call. Those that ask see a random ``layer`` and
``position``. "Cold" ones begin with none of the files in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.core.case import NUMPY, OURS, TORCH, Case, Judged, nothing
from benchmarks.dense import questions
from benchmarks.files.contenders import ARCHIVE, CP, FROM_FILE, OURS_VERIFIED, SAFETENSORS
from benchmarks.files.world import FilesWorld

HALF = ("float16",)
OPENING = "opening"  # the kind of world in which opening is measured against the size of the file

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
OPENED = {
    OURS: "load_ours(kept, mmap=True)",
    NUMPY: "load_numpy(kept, n_layers, 'r')",
    SAFETENSORS: "open_safetensors(kept)",
    TORCH: "load_torch(kept, n_layers, mmap=True)",
}
ASKED = {
    OURS: "ask_ours(kept, layer, position)",
    NUMPY: "ask_numpy(kept, layer, position)",
    ARCHIVE: "ask_archive(kept, layer, position)",
    SAFETENSORS: "ask_safetensors(kept, layer, position)",
    TORCH: "ask_torch(kept, layer, position)",
}


def n_bytes(world: FilesWorld) -> int:
    """Bytes of all weights."""
    return world.n_bytes


def writing(
    name: str, about: str, contenders: Mapping[str, str], is_right: Callable[[FilesWorld, str, Any], bool]
) -> Case:
    """Writing the whole cache into an empty folder."""
    return Case(
        name,
        ("folder",),
        lambda world: (world.fresh,),
        contenders,
        lambda world, folder: Judged(lambda contender, _answer: is_right(world, contender, folder)),
        n_bytes,
        CP,
        dtypes=HALF,
        checks=1,
        before=FilesWorld.empty_fresh,
        about=about,
    )


def loading(name: str, about: str, before: Callable[[FilesWorld], None] | None = None) -> Case:
    """Reading all layers into memory."""
    return Case(
        name,
        (),
        nothing,
        READ,
        lambda world: Judged(world.is_loaded),
        n_bytes,
        FROM_FILE,
        None,
        HALF,
        checks=1,
        before=before,
        about=about,
    )


def asking(name: str, about: str, before: Callable[[FilesWorld], None] | None = None) -> Case:
    """Opening and asking one query."""
    return Case(
        name,
        ("layer", "position"),
        lambda world: questions.a_line(world.world),
        ASKED,
        lambda world, layer, position: questions.row(world.world, layer, position),
        dtypes=HALF,
        checks=1,
        before=before,
        about=about,
    )


CASES = (
    writing(
        "save, on the disk",
        "The final fsync is counted for all; attncache never goes without it, the others are followed by one.",
        {OURS: "save_ours(cache, folder)"} | {name: f"synced({code}, folder)" for name, code in WRITTEN.items()},
        FilesWorld.is_saved,
    ),
    writing(
        "save, not waiting for the disk",
        "The final fsync is left out for all; of attncache by taking os.fsync and the early start of the disk away from it, "
        "which users cannot ask for.",
        {OURS: "save_ours_without_sync(cache, folder)"} | WRITTEN,
        FilesWorld.is_saved,
    ),
    writing(
        "push to disk, layer by layer",
        "Into an empty directory, each layer on the disk before the next is written; per cache.",
        {
            OURS: "pushed_to_disk(patterns, folder)",
            NUMPY: "each_synced(save_numpy, patterns, folder)",
            SAFETENSORS: "each_synced(save_safetensors, patterns, folder)",
            TORCH: "each_synced(save_torch, tensors, folder)",
            CP: "synced(copy_file(source, folder), folder)",
        },
        FilesWorld.is_pushed,
    ),
    loading(
        "load into memory",
        "The files are in the page cache. attncache and the archive verify checksums, the others have none.",
    ),
    loading("load into memory, cold", "The files are on the disk alone.", FilesWorld.cool),
    Case(
        "open, all layers",
        (),
        nothing,
        OPENED,
        lambda world: Judged(lambda _contender, answer: len(answer) == world.size.layers),
        dtypes=HALF,
        checks=1,
        about="Nothing is read but headers.",
    ),
    asking(
        "open and ask one query",
        "A new open and the mean over heads of one query's weights; the files are in the page cache.",
    ),
    asking("open and ask one query, cold", "The same with the files on the disk alone.", FilesWorld.cool),
    Case(
        "open, against the size of the file",
        (),
        nothing,
        {**OPENED, SAFETENSORS: f"open_safetensors(kept, FILES[{OURS!r}])"},
        lambda world: Judged(world.is_opened),
        dtypes=HALF,
        kinds=(OPENING,),
        checks=1,
        about="All layers, nothing read but headers; the files are in the page cache.",
    ),
)
