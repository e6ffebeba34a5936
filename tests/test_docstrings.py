"""Runs the examples in the public docstrings and in README.md: what is shown is what happens.

Not covered: examples marked as needing a model or an optional package.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import axes, cache, factored, layer_source, pattern_check, scoring, simd, taking, text, tokens
from attncache.adapters import numbering
from attncache.runs import directory, map_runs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    str(page.relative_to(ROOT))
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
    if ">>> " in page.read_text("utf-8")
]


def names_for_examples() -> dict[str, Any]:
    return {
        "np": np,
        "AttentionCache": attncache.AttentionCache,
        "attncache": attncache,
        "LayerSource": attncache.LayerSource,
    }


def run_examples(text: str, name: str, extra: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(text, {**names_for_examples(), **extra}, name, name, 0)
    failures, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert failures == 0


PUBLIC_METHODS = [name for name in dir(attncache.AttentionCache) if not name.startswith("_")]


@pytest.mark.parametrize("name", PUBLIC_METHODS)
def test_examples_of_a_method_run_as_shown(name: str) -> None:
    run_examples(getattr(attncache.AttentionCache, name).__doc__ or "", name, {})


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (cache, "AttentionCache"),
        (factored, "pattern_from_qk"),
        (scoring, "key_heads_for"),
        (text, "readable_bytes"),
        (simd, "use"),
        (directory, "open_runs"),
        (map_runs, "map_runs"),
        (axes, "checked_axes"),
        (axes, "of_one_array"),
        (pattern_check, "unlike_weights"),
        (pattern_check, "with_positions_first"),
        (numbering, "layer_numbers"),
        (tokens, "checked_tokens"),
        (layer_source, "LayerSource"),
        (layer_source.LayerSource, "to_dict"),
        (layer_source.LayerSource, "from_dict"),
        (taking, "as_slice"),
        (layer_source, "group_of"),
        (layer_source, "layers_in_words"),
        (layer_source, "numbers_in_words"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_examples_of_a_function_run_as_shown(module: ModuleType | type, name: str) -> None:
    names = vars(module) if isinstance(module, ModuleType) else vars(layer_source)
    run_examples(getattr(module, name).__doc__ or "", name, dict(names))


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_on_a_page_print_what_they_show(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # they may write files
    text = (ROOT / page).read_text(encoding="utf-8")
    examples = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if ">>>" in block]
    run_examples("\n".join(examples), page, {})


def test_the_bytes_in_the_format_document_are_those_of_a_real_file(tmp_path: Path) -> None:
    lines = re.findall(
        r"^[0-9a-f]{8}: ((?:[0-9a-f]{4} )+)", (ROOT / "docs" / "format.md").read_text("utf-8"), re.MULTILINE
    )
    cache = attncache.AttentionCache()
    cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
    cache.tokens = ["a", "b"]
    cache.save(tmp_path / "run.safetensors")
    assert bytes.fromhex("".join(lines)) == (tmp_path / "run.safetensors").read_bytes()
