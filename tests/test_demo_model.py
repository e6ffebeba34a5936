"""``attncache demo --model``: how a model is found and loaded, what is said when it is not, the pages of an encoder.

Covered: folders, gguf files and packages by name, missing packages, options that make no sense together; a tiny causal
model saved to a folder, where torch and transformers are installed. Real weights are in test_models.py.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from attncache import cli
from attncache.demo import model, report
from attncache.demo.one_layer import one_layer
from attncache.demo.overview import overview
from attncache.demo.sample import choose, load_sample

needs_transformers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "tokenizers")),
    reason="needs torch and transformers",
)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["demo", "--no-timing", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("attncache: error: ")
    assert errors.count("\n") == 1
    return errors.removeprefix("attncache: error: ").rstrip()


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("{}")
    return path


def test_a_model_is_found_in_a_folder_a_file_or_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = folder_with(tmp_path / "plain", "config.json", "model.safetensors")
    gguf = folder_with(tmp_path / "quantised", "some.Q4_1.gguf")
    package = folder_with(tmp_path / "carrying_package", "__init__.py")
    inside = folder_with(package / "model", "config.json", "pytorch_model.bin")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert model.find_model(str(plain)) == (plain, None, "plain")
    assert model.find_model(str(gguf)) == (gguf, "some.Q4_1.gguf", "some.Q4_1")
    assert model.find_model(str(gguf / "some.Q4_1.gguf")) == (gguf, "some.Q4_1.gguf", "some.Q4_1")
    assert model.find_model("carrying-package") == (inside, None, "carrying_package")


@pytest.mark.parametrize(
    "name", ["no_such_package", "no/such/folder", "no.such.name", "missing.gguf", "json.tool", "re"]
)
def test_a_model_that_is_nowhere_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str], name: str) -> None:
    words = error_of(capsys, "--model", name)
    assert "must" in words
    assert name in words or "re:" in words


def test_a_folder_without_a_model_says_what_it_must_hold(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "empty", "config.json")
    assert error_of(capsys, "--model", str(folder)).startswith(f"{folder}: must hold a .gguf file, or a config.json")


def test_missing_packages_are_named_with_the_command_that_installs_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(tmp_path / "quantised", "some.gguf")
    present = importlib.util.find_spec
    absent = ("torch", "gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else present("json"))
    words = error_of(capsys, "--model", str(folder))
    assert words == "--model needs torch and gguf: pip install torch transformers gguf accelerate"


def test_text_without_a_model_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--text", "a b c"])
    assert stop.value.code == 2
    assert "argument --text: needs --model" in capsys.readouterr().err


def test_the_pages_of_an_encoder_leave_out_what_only_a_causal_model_has() -> None:
    causal = load_sample()
    encoder = replace(causal, next_token=None, is_causal=False)
    choice = choose(causal, None, None, -1, 5)
    everything = " ".join(" ".join(overview(encoder, choice)).split())
    assert "Token 0 itself is not counted." in everything
    assert "goes on with" not in everything
    assert "Token 0 itself is not counted." in " ".join(" ".join(one_layer(encoder, replace(choice, layer=3))).split())
    assert "Token 0 itself can attend to nothing else and is not counted." in " ".join(
        " ".join(overview(causal, choice)).split()
    )


def test_the_suggestion_repeats_the_command_of_the_sample() -> None:
    sample = replace(load_sample(), command="attncache demo --model 'a b'")
    pages = overview(sample, choose(sample, None, None, -1, 5))
    assert "Look closer: attncache demo --model 'a b' --layer 17 --head 4." in " ".join(" ".join(pages).split())


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A causal model of two layers with random weights and a word tokenizer, in a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[UNK]", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=8, **sizes))
    folder = tmp_path / "tiny"
    network.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


@needs_transformers
def test_a_model_in_a_folder_is_captured_and_shown(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--no-timing", "--model", str(tiny_model), "--text", "a b c a b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "attncache demo: tiny, 2 layers, 2 heads, 5 tokens, 0.00 MB of float16"
    assert lines[3].split() == ["a", "b", "c", "a", "b"]
    everything = " ".join(" ".join(lines).split())
    assert f"Look closer: attncache demo --model {tiny_model} --text 'a b c a b' --layer" in everything
    assert "The model goes on with" in everything


@needs_transformers
def test_timing_takes_a_text_shorter_than_its_list_of_keys(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attncache.demo import timing

    small = timing.synthetic((2, 1, 4, 32, 32))
    monkeypatch.setattr(timing, "synthetic", lambda: small)
    *_, page = report(None, None, -1, 5, True, model=str(tiny_model), text="a b c")
    assert any("top_attended_positions, k=3" in line for line in page)


@needs_transformers
@pytest.mark.parametrize(("text", "count"), [("a", 1), ("", 0), ("a " * 9, 9)])
def test_a_text_that_does_not_fit_the_model_is_refused(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], text: str, count: int
) -> None:
    words = error_of(capsys, "--model", str(tiny_model), "--text", text)
    assert words == f"--text must give at least 2 tokens and at most 8, got {count}"


@needs_transformers
@pytest.mark.parametrize("damage", ["{", json.dumps({"model_type": "no such"})])
def test_a_damaged_model_is_an_error_of_one_line(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (tiny_model / "config.json").write_text(damage)
    assert f"{tiny_model}: must be a model that transformers can load, got: " in error_of(
        capsys, "--model", str(tiny_model)
    )
