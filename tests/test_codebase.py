"""Holds what the code base promises of itself: floors, clean level objects, one version, names that agree.

Covered: includes of C++ and imports of Python between floors, symbols of the SIMD objects (built without optimisation, where nothing
hides by inlining), the version in all places, stubs and registry against the real class, commands of the README.
Not covered: style (ruff and clang-format in CI) and types (mypy and stubtest in CI).
"""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attncache
from attncache import _core, reference

ROOT = Path(__file__).resolve().parent.parent
CPP = ROOT / "cpp"
PACKAGE = ROOT / "python" / "attncache"
LEVEL_FLAGS = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"],
    "neon": [],
}

# The floors of the package, bottom to top: modules, and folders with all that another floor does not name more closely.
PYTHON_FLOORS = {
    "words": ("notices", "progress", "axes", "layer_source", "tokens", "text", "results", "reference", "simd"),
    "input": ("array_input", "pattern_check", "scoring", "factored"),
    "device": ("cuda",),
    "adapters": ("adapters",),
    "cache": ("selections", "taking", "cache"),
    "parts": ("factored_parts", "parts"),
    "files": ("files",),
    "runs and captures": ("runs", "adapters.capture"),
    "package": ("",),
    "commands": ("commands", "cli", "__main__"),
}
# What a floor reaches of those above it, inside a function or for its types: the methods that open the way to them.
DOORS = {
    ("scoring", "device"),  # a key mask on a device
    ("cache", "parts"),  # part
    ("cache", "files"),  # save, load, create, metadata
}


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#include [<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), re.MULTILINE)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (CPP / folder).rglob("*") if path.suffix in {".hpp", ".cpp"})


def offenders(paths: list[Path], forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {name}" for path in paths for name in includes(path) if re.match(forbidden, name)
    ]


def test_the_core_does_not_know_python() -> None:
    assert sources("include", "src")
    assert offenders(sources("include", "src"), r"pybind11|Python\.h|numpy|.*bindings") == []


def test_intrinsics_stay_in_the_simd_folder() -> None:
    outside = [path for path in sources("include", "src", "bindings") if "simd" not in path.parent.parts]
    assert offenders(outside, r"immintrin|arm_neon|x86intrin") == []


def test_kernels_use_no_containers_or_algorithms() -> None:
    kernels = sources("src/kernels/rows", "src/kernels/simd", "src/kernels/levels")
    allowed = {"immintrin.h", "arm_neon.h", "intrin.h", "cstring", "item.hpp", "attncache/types.hpp"}
    found = {name for path in kernels for name in includes(path) if not name.startswith("../")}
    assert found <= allowed


def test_public_headers_include_only_the_standard_library_and_each_other() -> None:
    assert offenders(sources("include"), r".*/(?!.*)|\.\.|immintrin") == []
    for path in sources("include"):
        assert all(name.startswith("attncache/") or "." not in name for name in includes(path)), path


def test_kernels_are_reached_only_through_their_table() -> None:
    above = [path for path in sources("src", "bindings") if "kernels" not in path.parent.parts]
    assert offenders(above, r".*(rows/|levels/|make_table|kernels/simd)") == []


CPP_FLOORS = ["kernels", "system", "layers", "device", "queries", "."]  # the folders of cpp/src, and the files in it


def test_a_floor_of_the_core_includes_those_below_it() -> None:
    for path in sources("src"):
        floor, *_ = path.relative_to(CPP / "src").parent.parts or (".",)
        for name in includes(path):
            included = (path.parent / name).resolve()
            if not included.exists():
                continue  # a header of the standard library, or a public one
            other, *_ = included.relative_to(CPP / "src").parent.parts or (".",)
            assert CPP_FLOORS.index(other) <= CPP_FLOORS.index(floor), f"{path.relative_to(CPP)} includes {name}"


def test_bindings_include_no_private_header_of_the_core() -> None:
    assert offenders(sources("bindings"), r".*src/") == []


def test_bindings_hold_no_loops_over_weights() -> None:
    assert offenders(sources("bindings"), r".*(kernels|parallel)") == []


def test_every_folder_of_levels_has_one_file_per_level() -> None:
    for folder in ("simd", "levels"):
        names = {path.stem for path in (CPP / "src" / "kernels" / folder).iterdir() if path.suffix in {".hpp", ".cpp"}}
        assert names - {"item"} == set(LEVEL_FLAGS)


@pytest.mark.parametrize("level", attncache.simd.compiled())
def test_a_level_object_shares_no_symbol_with_other_code(level: str, tmp_path: Path) -> None:
    compiler, nm = shutil.which("g++") or shutil.which("clang++"), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("needs g++ or clang++, and nm")
    built = tmp_path / "level.o"
    source = CPP / "src" / "kernels" / "levels" / f"{level}.cpp"
    command = [compiler, "-std=c++20", "-O0", *LEVEL_FLAGS[level], f"-I{CPP / 'include'}", "-c", str(source)]
    subprocess.run([*command, "-o", str(built)], check=True, capture_output=True)
    listed = subprocess.run([nm, "-C", str(built)], check=True, capture_output=True, text=True).stdout
    symbols = [line.split(maxsplit=2 if line[0] != " " else 1)[-2:] for line in listed.splitlines()]
    shared = [name for kind, name in symbols if kind in "WVuTDBR" and not name.startswith(f"attncache::{level}::")]
    needed = {name for kind, name in symbols if kind == "U"}
    assert shared == []
    assert needed <= {"memcpy", "memset", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}


def module_of(path: Path) -> str:
    """The name of a module inside the package; "" for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, *, when_loaded: bool) -> set[str]:
    """The full names of what a file imports: all of it, or only what it imports as soon as it is loaded."""
    names, nodes = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif not when_loaded or not (isinstance(node, ast.FunctionDef) or is_for_types(node)):
            nodes += ast.iter_child_nodes(node)
    return names


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported_modules(module: str, *, when_loaded: bool) -> set[str]:
    """What a module imports of the package; not the core, which is below all of it."""
    names = {
        name.removeprefix("attncache").removeprefix(".")
        for name in imports(MODULES[module], when_loaded=when_loaded)
        if name.partition(".")[0] == "attncache"
    }
    names = {name if name in MODULES else name.rpartition(".")[0] for name in names if not name.startswith("_core")}
    return names - {module}


def floor_of(module: str) -> str:
    """The floor that names a module or its folder most closely."""
    named = {name: floor for floor, names in PYTHON_FLOORS.items() for name in names}
    while module not in named:
        assert "." in module, f"{module}.py is on no floor"
        module = module.rpartition(".")[0]
    return named[module]


def upward_imports() -> set[tuple[str, str]]:
    """(module, floor): a module that imports one of a floor above its own, wherever it does."""
    floors = list(PYTHON_FLOORS)
    pairs = ((module, floor_of(other)) for module in MODULES for other in imported_modules(module, when_loaded=False))
    return {(module, floor) for module, floor in pairs if floors.index(floor) > floors.index(floor_of(module))}


def test_a_python_floor_uses_those_below_it_and_others_only_through_a_door() -> None:
    assert upward_imports() == DOORS


def test_python_modules_import_each_other_in_no_circle() -> None:
    graph = {module: imported_modules(module, when_loaded=True) for module in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


def test_no_door_is_open_while_a_module_is_loaded() -> None:
    floors = {module: {floor_of(other) for other in imported_modules(module, when_loaded=True)} for module, _ in DOORS}
    assert not [(module, floor) for module, floor in DOORS if floor in floors[module]]


def test_the_floors_of_python_are_those_on_their_page() -> None:
    page = (ROOT / "docs" / "floors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| `python/", page, re.MULTILINE)
    assert rows == [floor for floor in PYTHON_FLOORS if floor != "package"]


def test_the_package_imports_only_numpy_and_the_standard_library() -> None:
    for module, path in MODULES.items():
        top_level = {name.partition(".")[0] for name in imports(path, when_loaded=True)} - {"numpy", "attncache"}
        assert top_level <= set(sys.stdlib_module_names), module


def test_importing_attncache_loads_nothing_that_only_commands_need() -> None:
    code = "import sys, attncache; print(*sorted(name for name in sys.modules if name.startswith('attncache')))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {
        "attncache.cli",
        "attncache.cuda",
        "attncache.commands",
        "attncache.files",
        "attncache.reference",
    } & set(loaded)


def test_the_version_is_the_same_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared is not None
    version = declared.group(1)
    assert attncache.__version__ == _core.__version__ == version
    assert importlib.metadata.version("attncache") == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", reference.QUERIES)
def test_each_registered_query_is_a_documented_method(name: str) -> None:
    documentation = inspect.getdoc(getattr(attncache.AttentionCache, name)) or ""
    for part in (
        "Args:",
        "Returns:",
        "Raises:",
        ">>>",
        "Exact" if reference.QUERIES[name].family == "exact" else "Bounded",
    ):
        assert part in documentation, part


@pytest.mark.parametrize("name", reference.QUERIES)
def test_each_registered_query_has_a_row_in_the_documentation(name: str) -> None:
    assert f"`{name}" in (ROOT / "docs" / "queries.md").read_text(encoding="utf-8")


def test_the_readme_and_ci_use_the_same_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install . && attncache demo" in readme
    assert 'pip install ".[test]" && pytest' in readme
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install ".[test]" && pytest' in ci


def test_the_readme_is_short_and_narrow_enough_to_be_read() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    code = [
        line for block in re.findall(r"```.*?\n(.*?)```", "\n".join(lines), re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) <= 120
    assert max(map(len, code)) <= 88


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} -> {target}"
