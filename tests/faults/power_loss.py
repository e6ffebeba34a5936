"""Power loss: what may be on the disk when the machine stops at any moment, rebuilt from the calls that strace saw.

The model is that of ALICE (Pillai et al., OSDI 2014), stricter than common file systems: what was not flushed may be
there, not there, or there in part, and changes of names in one folder may reach the disk in any order, until the folder
is flushed. A state is rebuilt as files and judged like any other; a step that had returned must be there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tests.faults.child import Report
from tests.faults.judging import Bench, empty
from tests.faults.matrix import Row
from tests.faults.strace import Call

_HARMLESS = frozenset(
    [
        "read",
        "pread64",
        "preadv",
        "preadv2",
        "newfstatat",
        "fstat",
        "stat",
        "lstat",
        "statx",
        "lseek",
        "flock",
        "fcntl",
        "getdents64",
        "ioctl",
        "access",
        "faccessat",
        "faccessat2",
        "readlink",
        "readlinkat",
        "fchmod",
        "dup",
        "dup3",
        "fadvise64",
        "getcwd",
        "mmap",
        "msync",
        "chmod",
    ]
)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*)")

Files: TypeAlias = dict[str, bytes | None]  # by path from the folder on; None is a folder
Change: TypeAlias = tuple[str, "int | None", str]  # a name in a folder, its file from now on, the name it had before


class _File:
    """The bytes of a file that are safe, and what was written since the last flush."""

    def __init__(self, safe: bytes = b"") -> None:
        self.safe = safe
        self.pending: list[tuple[int, bytes | None]] = []  # bytes at an offset; None sets the size

    def after(self, changes: Sequence[tuple[int, bytes | None]]) -> bytes:
        """Its bytes when these changes have reached the disk."""
        data = bytearray(self.safe)
        for at, piece in changes:
            if piece is None:
                data = data[:at].ljust(at, b"\0")
            else:
                data = data.ljust(at + len(piece), b"\0")
                data[at : at + len(piece)] = piece
        return bytes(data)

    def possible(self) -> set[bytes]:
        """What may be found after a loss of power."""
        if not self.pending:
            return {self.safe}
        whole = self.after(self.pending)
        found = {self.safe, whole, bytes(len(whole)), self.after(self.pending[: len(self.pending) // 2])}
        at, piece = self.pending[-1]
        if piece is not None:
            found.add(self.after([*self.pending[:-1], (at, piece[: len(piece) // 2])]))
        return found


class Disk:
    """Files and folders under a folder, as they are and as they are known to be on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._files: list[_File] = []
        self._safe: dict[str, dict[str, int | None]] = {"": {}}  # folders, and in each its names
        self._pending: dict[str, list[Change]] = {"": []}
        self._open: dict[int, tuple[int, int]] = {}  # descriptors: file and position
        for path in sorted(folder.rglob("*")):
            parent, name = self._split(str(path))
            if path.is_dir():
                self._safe[parent][name] = None
                self._safe[f"{parent}/{name}"], self._pending[f"{parent}/{name}"] = {}, []
            else:
                self._safe[parent][name] = self._new_file(path.read_bytes())

    def apply(self, call: Call) -> bool:
        """Let a call happen; whether it changed anything.

        Raises:
            ValueError: it is none that the model knows.
        """
        if call.result.startswith("-") or call.name in _HARMLESS:
            if call.name == "mmap" and "MAP_SHARED" in call.arguments and "PROT_WRITE" in call.arguments:
                raise ValueError(f"a file is written through a mapping: {call.arguments[:80]}")
            return False
        if call.name == "close":
            self._open.pop(_descriptor(call)[0], None)
            return False
        handler = getattr(self, f"_{call.name}", None)
        if handler is None:
            raise ValueError(f"the model does not know {call.name}({call.arguments[:80]})")
        return bool(handler(call, [bytes.fromhex(text.replace("\\x", "")) for text in _STRING.findall(call.arguments)]))

    def possible(self) -> Iterator[Files]:
        """What may be found after a loss of power."""
        folders = list(self._safe)
        for chosen in itertools.product(*(_orders(self._pending[folder]) for folder in folders)):
            names = {folder: _renamed(self._safe[folder], each) for folder, each in zip(folders, chosen, strict=True)}
            there = {folder for folder in folders if _is_there(names, folder)}
            found = [(f"{folder}/{name}", file) for folder in sorted(there) for name, file in names[folder].items()]
            contents = [[None] if file is None else self._files[file].possible() for _, file in found]
            for each in itertools.product(*contents):
                yield {path.lstrip("/"): data for (path, _), data in zip(found, each, strict=True)}

    def _new_file(self, safe: bytes = b"") -> int:
        self._files.append(_File(safe))
        return len(self._files) - 1

    def _split(self, path: str) -> tuple[str, str]:
        """The folder, from the folder on, and the name of a path."""
        parent, _, name = path.removeprefix(self._folder).rpartition("/")
        return parent, name

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self._folder + "/")

    def _now(self, folder: str) -> dict[str, int | None]:
        return _renamed(self._safe[folder], self._pending[folder])

    def _openat(self, call: Call, strings: list[bytes]) -> bool:
        path = strings[0].decode()
        if not self._is_inside(path) or "O_DIRECTORY" in call.arguments:
            return False
        parent, name = self._split(path)
        file = self._now(parent).get(name)
        created = file is None
        if file is None:
            file = self._new_file()
            self._pending[parent].append((name, file, ""))
        elif "O_TRUNC" in call.arguments:
            self._files[file].pending.append((0, None))
        self._open[int(call.result.partition("<")[0])] = file, 0
        return created or "O_TRUNC" in call.arguments

    def _pwrite64(self, call: Call, strings: list[bytes]) -> bool:
        size, offset = call.arguments.rsplit(", ", 2)[1:]
        return self._put(call, strings[0], int(size), int(offset))

    def _write(self, call: Call, strings: list[bytes]) -> bool:
        fd = _descriptor(call)[0]
        if fd not in self._open:
            return False
        file, position = self._open[fd]
        self._open[fd] = file, position + int(call.result)
        return self._put(call, strings[0], int(call.arguments.rsplit(", ", 1)[1]), position)

    def _put(self, call: Call, data: bytes, size: int, offset: int) -> bool:
        if len(data) != size:
            raise ValueError(f"strace must tell all bytes, got {len(data)} of {size}")
        return self._change(call, offset, data[: int(call.result)])

    def _ftruncate(self, call: Call, _: list[bytes]) -> bool:
        return self._change(call, int(call.arguments.rsplit(", ", 1)[1]), None)

    def _fallocate(self, call: Call, _: list[bytes]) -> bool:
        offset, size = map(int, call.arguments.rsplit(", ", 2)[1:])
        if _descriptor(call)[0] not in self._open:
            return False
        file, _position = self._open[_descriptor(call)[0]]
        now = len(self._files[file].after(self._files[file].pending))
        return self._change(call, max(now, offset + size), None)

    def _change(self, call: Call, at: int, data: bytes | None) -> bool:
        fd = _descriptor(call)[0]
        if fd in self._open:
            self._files[self._open[fd][0]].pending.append((at, data))
        return fd in self._open

    def _fsync(self, call: Call, _: list[bytes]) -> bool:
        fd, path = _descriptor(call)
        if fd in self._open:
            file = self._files[self._open[fd][0]]
            file.safe, file.pending = file.after(file.pending), []
        elif path == self._folder or self._is_inside(path):
            folder = path.removeprefix(self._folder)
            self._safe[folder], self._pending[folder] = self._now(folder), []
        return True

    _fdatasync = _fsync

    def _rename(self, _: Call, strings: list[bytes]) -> bool:
        (parent, name), (other, new) = (self._split(string.decode()) for string in strings)
        if parent != other:
            raise ValueError(f"the model knows no rename from {parent} to {other}")
        self._pending[parent].append((new, self._now(parent)[name], name))
        return True

    _renameat = _renameat2 = _rename

    def _unlink(self, _: Call, strings: list[bytes]) -> bool:
        parent, name = self._split(strings[0].decode())
        self._pending[parent].append(("", None, name))
        return True

    _unlinkat = _unlink

    def _mkdir(self, _: Call, strings: list[bytes]) -> bool:
        parent, name = self._split(strings[0].decode())
        self._pending[parent].append((name, None, ""))
        self._safe[f"{parent}/{name}"], self._pending[f"{parent}/{name}"] = {}, []
        return True


def _descriptor(call: Call) -> tuple[int, str]:
    """The number and path of the descriptor that is a call's first argument."""
    match = _DESCRIPTOR.match(call.arguments)
    return (int(match[1]), bytes.fromhex(match[2].replace("\\x", "")).decode()) if match else (-1, "")


def _orders(changes: Sequence[Change]) -> list[Sequence[Change]]:
    """Which of the changes of a folder may have reached the disk: the first few, all but one, or one."""
    found: list[Sequence[Change]] = [changes[:size] for size in range(len(changes) + 1)]
    for at in range(len(changes)):
        found += [[*changes[:at], *changes[at + 1 :]], [changes[at]]]
    return list({tuple(each): each for each in found}.values())


def _renamed(names: dict[str, int | None], changes: Iterable[Change]) -> dict[str, int | None]:
    """The names of a folder after changes."""
    after = dict(names)
    for name, file, before in changes:
        if before:
            after.pop(before, None)
        if name:
            after[name] = file
    return after


def _is_there(names: dict[str, dict[str, int | None]], folder: str) -> bool:
    """Whether a folder's own name has reached the disk."""
    parent, _, name = folder.rpartition("/")
    return folder == "" or (name in names[parent] and _is_there(names, parent))


class _Moment(NamedTuple):
    """What may be found at a moment, when so many steps had returned."""

    done: int
    files: Files


def _moments(bench: Bench, calls: Sequence[Call], n_steps: int) -> Iterator[_Moment]:
    """Everything that may be found, each once."""
    disk = Disk(bench.reset())
    seen: set[tuple[int, frozenset[tuple[str, bytes | None]]]] = set()
    following = [*calls[1:], None]
    for call, after in zip(calls, following, strict=True):
        changed = disk.apply(call)
        returned = n_steps if after is None else after.step
        for done in {call.step, returned} if changed or returned != call.step else ():
            for files in disk.possible():
                key = done, frozenset(files.items())
                if key not in seen:
                    seen.add(key)
                    yield _Moment(done, files)


def row(bench: Bench, calls: Sequence[Call]) -> Row:
    """A row with a point for each thing that may be found on the disk."""
    found = Row(bench.path.name, "power loss")
    for number, moment in enumerate(list(_moments(bench, calls, len(bench.path.steps)))):
        empty(bench.folder)
        for name, data in moment.files.items():
            if data is None:
                (bench.folder / name).mkdir()
            else:
                (bench.folder / name).write_bytes(data)
        verdict = bench.judge(Report(moment.done, [], [], True, ""))
        sizes = {name: None if data is None else len(data) for name, data in moment.files.items()}
        found.add(f"state {number} after {moment.done} steps, {sizes}", verdict)
    return found
