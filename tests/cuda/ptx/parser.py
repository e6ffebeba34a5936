"""PTX text to the values of `program`. Knows the grammar that nvcc emits, and no instruction's meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath

from .faults import Fault
from .program import (
    SIZES,
    Address,
    Instruction,
    Kernel,
    Module,
    Number,
    Operand,
    Pack,
    Pair,
    Register,
    Symbol,
    Variable,
)

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>shared|local|global|const|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?(?:\.ptr[^,]*?\s)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?"
    r"(?P<name>[\w$%]+)(?P<sizes>(?:\[\d*\])*)(?:\s*=\s*(?P<content>.*))?$",
    re.DOTALL,
)
LABEL = re.compile(r"([\w$%]+)\s*:")
LINE_DIRECTIVE = re.compile(r"\.(loc|file|section|version|target|address_size)\b[^\n]*")


def without_comments(text: str) -> str:
    """The text with comments blanked, so that offsets and lines stay."""
    return COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def matching_brace(text: str, opening: int) -> int:
    """Where the block ends that opens at `opening`."""
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, opening):
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"the block at offset {opening} does not end")


def split(text: str) -> list[str]:
    """The parts between commas outside of braces and brackets."""
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()] if text.strip() else []


def number(text: str) -> Number | None:
    """A literal, or None if it is something else."""
    as_float = re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text)
    if as_float:
        return Number(int(as_float[1] or as_float[2], 16), 32 if as_float[1] else 64)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Number(int(text.rstrip("U"), 0))
    return None


def variable(text: str) -> Variable | None:
    """A declaration of memory, or None."""
    found = VARIABLE.match(text)
    if not found:
        return None
    item = SIZES[found["type"]]
    size = item
    for count in re.findall(r"\[(\d*)\]", found["sizes"]):
        size *= int(count or 0)
    values = [int(value, 0) for value in split((found["content"] or "").strip().strip("{}"))]
    content = b"".join((value % 256**item).to_bytes(item, "little") for value in values)
    return Variable(found["name"], found["space"], size, int(found["align"] or item), content)


class BodyParser:
    """Reads what stands in a kernel's braces."""

    def __init__(self, kernel: Kernel, files: dict[int, str]) -> None:
        self.kernel = kernel
        self.files = files
        self.scopes: list[dict[str, str]] = [{}]  # what a name means: inner blocks may hide outer registers
        self.n_scopes = 0
        self.source = ""

    def parse(self, text: str, begin: int, end: int) -> None:
        for place, statement in self.statements(text, begin, end):
            line = text.count("\n", 0, place) + 1
            if statement == "{":
                self.n_scopes += 1
                self.scopes.append({})
            elif statement == "}":
                self.scopes.pop()
            elif statement.split()[0] == ".loc":
                _, file, source_line, *_ = statement.replace(",", " ").split()
                self.source = f"{self.files.get(int(file), file)}:{source_line}"
            elif statement.endswith(":"):
                self.kernel.labels[statement[:-1].strip()] = len(self.kernel.code)
            elif statement.startswith(".reg"):
                self.declare_registers(statement)
            elif statement.startswith("."):
                found = variable(statement)
                if found:
                    self.kernel.variables.append(found)
                elif not statement.startswith(".pragma"):
                    raise Fault("unsupported", f"the directive of PTX line {line}: {statement}")
            else:
                self.kernel.code.append(self.instruction(statement, line))

    @staticmethod
    def statements(text: str, begin: int, end: int) -> Iterator[tuple[int, str]]:
        """(offset, statement) of every statement: an instruction, directive, label or brace."""
        blank = re.compile(r"[\s;]*")
        while True:
            begin = blank.match(text, begin, end).end()  # type: ignore[union-attr]
            if begin >= end:
                return
            found = LABEL.match(text, begin, end) or LINE_DIRECTIVE.match(text, begin, end)
            if text[begin] in "{}":
                stop = begin + 1
            elif found:
                stop = found.end()
            else:
                stop = text.index(";", begin, end)
            yield begin, text[begin:stop].strip()
            begin = stop

    def declare_registers(self, statement: str) -> None:
        _, kind, names = statement.split(None, 2)
        for name in split(names):
            family = re.fullmatch(r"(%?\w+)<(\d+)>", name)
            for each in [f"{family[1]}{index}" for index in range(int(family[2]))] if family else [name]:
                unique = each if len(self.scopes) == 1 else f"{each}@{self.n_scopes}"
                self.scopes[-1][each] = unique
                self.kernel.registers[unique] = kind[1:]

    def register(self, name: str) -> str | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def instruction(self, statement: str, line: int) -> Instruction:
        guard, rest = None, statement
        if statement.startswith("@"):
            guard_text, rest = statement[1:].split(None, 1)
            guard = self.operand(guard_text)
            assert isinstance(guard, Register)
        name, _, operands = rest.partition(" ") if " " in rest.split("\t")[0] else rest.partition("\t")
        parsed = tuple(self.operand(part) for part in split(operands))
        text = " ".join(statement.split())
        return Instruction(tuple(name.split(".")), parsed, guard, line, self.source, text)

    def operand(self, text: str) -> Operand | None:
        text = text.strip()
        literal = number(text)
        if text == "_":
            return None
        if literal is not None:
            return literal
        if text.startswith("{"):
            return Pack(tuple(self.operand(part) for part in split(text[1:-1])))
        if text.startswith("["):
            return self.address(text[1:-1])
        if "|" in text:
            first, second = (self.operand(part) for part in text.split("|"))
            assert isinstance(first, Register | None)
            assert isinstance(second, Register | None)
            return Pair(first, second)
        if text.startswith("!"):
            plain = self.operand(text[1:])
            assert isinstance(plain, Register)
            return replace(plain, negated=True)
        name = self.register(text)
        if name or text.startswith("%"):
            return Register(name or text)
        base, _, offset = text.partition("+")
        return Symbol(base.strip(), int(offset or 0))

    def address(self, text: str) -> Address:
        found = re.fullmatch(r"\s*([\w$%.]+)\s*(?:\+\s*(-?\d+))?\s*", text)
        if not found:
            raise ValueError(f"an address cannot be read: [{text}]")
        base = self.operand(found[1])
        assert isinstance(base, Register | Symbol | Number)
        return Address(base, int(found[2] or 0))


def parse(text: str) -> Module:
    """The module of a PTX file."""
    text = without_comments(text)
    module = Module()
    target = re.search(r"^\.target\s+(\w+)", text, re.MULTILINE)
    module.target = target[1] if target else ""
    files = {
        int(index): PurePath(path).name
        for index, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)
    }
    outside, kept = 0, ""
    for found in ENTRY.finditer(text):
        parameters = [variable(part) for part in split(found[2])]
        if None in parameters:
            raise ValueError(f"the parameters of {found[1]} cannot be read: {found[2]}")
        kernel = Kernel(found[1], [parameter for parameter in parameters if parameter])
        limit = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", found[3])
        if limit:
            kernel.max_threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1)
        end = matching_brace(text, found.end() - 1)
        BodyParser(kernel, files).parse(text, found.end(), end)
        module.kernels[kernel.name] = kernel
        kept += text[outside : found.start()]
        outside = end + 1
    kept += text[outside:]
    if re.search(r"\.func\b", kept):
        raise Fault("unsupported", "a device function that was not inlined (.func)")
    for statement in kept.split(";"):
        lines = [line for line in statement.splitlines() if not LINE_DIRECTIVE.match(line.strip())]
        declared = variable(" ".join(" ".join(lines).split()))
        if declared:
            module.variables.append(declared)
    return module
