"""The C interface for ctypes, as its header says it: cpp/include/attncache/cuda.h is read, nothing is written twice."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

HEADER = Path(__file__).resolve().parents[2] / "cpp" / "include" / "attncache" / "cuda.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
PREFIX = "attncache_cuda_"

_TYPES: dict[str, Any] = {
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "const char*": ctypes.c_char_p,
}


def _type(words: str) -> Any:
    """The type of a declaration without its name."""
    words = words.strip()
    if words in _TYPES:
        return _TYPES[words]
    of_struct = re.fullmatch(r"(?:const )?struct (\w+)(\*?)", words)
    if of_struct:
        struct = STRUCTS[of_struct[1]]
        return ctypes.POINTER(struct) if of_struct[2] else struct
    if not words.endswith("*"):
        raise ValueError(f"a type that nobody has taught: {words}")
    return ctypes.c_void_p


def _fields(body: str) -> list[tuple[str, Any]]:
    fields = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        first, *more = declaration.split(",")
        kind, name = re.fullmatch(r"(.*\W)(\w+)", first.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
        of_list = kind.strip() == "const int64_t*"  # which an array of ctypes can be put into
        fields += [(each.strip(), ctypes.POINTER(ctypes.c_int64) if of_list else _type(kind)) for each in (name, *more)]
    return fields


STRUCTS: dict[str, type[ctypes.Structure]] = {}
for _name, _body in re.findall(r"struct (\w+) \{(.*?)\};", TEXT, re.DOTALL):
    STRUCTS[_name] = type(_name, (ctypes.Structure,), {"_fields_": _fields(_body)})
Pattern, Selection, Factored = (STRUCTS[PREFIX + each] for each in ("pattern", "selection", "factored"))

CONSTANTS = {name: int(value) for name, value in re.findall(rf"{PREFIX.upper()}(\w+)\s*=?\s*(-?\d+)\b", TEXT)}
BAD_ARGUMENT, TOO_LARGE = CONSTANTS["BAD_ARGUMENT"], CONSTANTS["TOO_LARGE"]


def _parameters(words: str) -> tuple[Any, ...]:
    pairs = (
        re.fullmatch(r"(.*\W)(\w+)", each.strip(), re.DOTALL) for each in words.split(",") if each.strip() != "void"
    )
    return tuple(_type(pair[1]) for pair in pairs if pair)


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    name: (_type(result), _parameters(" ".join(parameters.split())))
    for result, name, parameters in re.findall(rf"{PREFIX.upper()}API ([^;(]*?)\s*{PREFIX}(\w+)\(([^)]*)\);", TEXT)
}


class Library:
    """A loaded library with the types of all its functions."""

    def __init__(self, path: Path) -> None:
        self.loaded = ctypes.CDLL(str(path))
        for name, (result, parameters) in FUNCTIONS.items():
            function = getattr(self.loaded, PREFIX + name)
            function.restype, function.argtypes = result, parameters

    def status(self, name: str, *arguments: Any) -> int:
        """What a function returns."""
        return int(getattr(self.loaded, PREFIX + name)(*arguments))

    def message(self, status: int) -> str:
        """The words for a status."""
        return str(self.loaded.attncache_cuda_message(status).decode())

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function that is to succeed."""
        if (status := self.status(name, *arguments)) != 0:
            raise RuntimeError(f"{PREFIX}{name}: {self.message(status)} (status {status})")
