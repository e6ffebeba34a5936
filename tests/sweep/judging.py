"""Runs one model type in every way and says for each what came out; worker.py calls it for type after type."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

import attncache
from tests.sweep.building import Built, NotBuiltError, build
from tests.sweep.comparing import Source, compared
from tests.sweep.inputs import Inputs, Padding
from tests.sweep.oracle import Heard, listening_to
from tests.sweep.settings import STEPS, VARIANTS
from tests.sweep.shrinking import Level
from tests.sweep.verdicts import line, tensors, verdict_of

Store = Literal["pattern", "qk"]
STORES: tuple[Store, ...] = ("pattern", "qk")
LEVELS: tuple[Level, ...] = ("small", "shallow")


@dataclass
class Outcome:
    """What one run of a model with one store came to.

    Its verdict is "right", "refused", "wrong", "silent" (attention was heard that is in no layer and in no warning),
    "none" (nothing was heard and nothing recorded), or "failed" (the model itself, without a capture).
    """

    run: str  # such as "sdpa, padded left" or "eager, generate"
    store: str
    verdict: str
    reason: str = ""  # of a refusal, failure or difference
    layers: int = 0
    worst: float = 0.0  # the largest difference of a weight from the truth
    heard: int = 0  # attentions
    left_out: tuple[str, ...] = ()  # modules whose attention is in no layer


@dataclass
class Judged:
    """One model type, its class and what came of every run and store."""

    model_type: str
    model: str = ""
    level: str = ""  # how far it was made small; "" if it was not built
    reason: str = ""  # why it was not built
    inputs: tuple[str, ...] = ()  # names of the arguments that it ran on
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0


def judge(model_type: str) -> Judged:
    """Build a model type, and run it in every way."""
    began = time.perf_counter()
    judged = Judged(model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            built, inputs = _running(model_type)
        except NotBuiltError as error:
            judged.reason = str(error)
        else:
            judged.model, judged.level = type(built.model).__name__, built.level
            judged.inputs = tuple(inputs.make("none"))
            for run, call in _runs(built, inputs):
                judged.outcomes += _judge_run(built.model, run, call)
    judged.seconds = round(time.perf_counter() - began, 1)
    return judged


def _running(model_type: str) -> tuple[Built, Inputs]:
    """The smallest model that runs, with inputs that it takes.

    Raises:
        NotBuiltError: none does; says all that went wrong.
    """
    errors = []
    for level in LEVELS:
        try:
            built = build(model_type, level)
        except NotBuiltError as error:
            errors.append(str(error))
            continue
        for inputs in _candidates(built, model_type):
            error_text = _try(built, inputs)
            if not error_text:
                return built, inputs
            errors.append(f"{level}: {error_text}")
    raise NotBuiltError(" | ".join(" ".join(error.split())[:240] for error in errors))


def _candidates(built: Built, model_type: str) -> Iterator[Inputs]:
    """Inputs to try, those with pictures and sounds first."""
    inputs = Inputs(built, model_type, True)
    media = {"pixel_values", "pixel_values_videos", "input_values", "input_features"} & set(inputs.known)
    for variant in range(VARIANTS if media else 1):
        yield Inputs(built, model_type, True, variant)
    if inputs.takes_media:
        yield Inputs(built, model_type, False)


def _try(built: Built, inputs: Inputs) -> str:
    """Run a model once, giving its text as many placeholders as it asks for; what went wrong, or ""."""
    try:
        _forward(built.model, inputs.make("none"))
    except Exception as error:
        return _try(built, inputs) if inputs.learn(str(error)) else f"{type(error).__name__}: {error}"
    return ""


def _forward(model: Any, given: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        return model(**given)


def _generate(model: Any, given: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    settings = model.generation_config
    if model.config.is_encoder_decoder and settings.decoder_start_token_id is None and settings.bos_token_id is None:
        settings.decoder_start_token_id = 1
    given = {name: value for name, value in given.items() if not name.startswith("decoder_")}
    with torch.no_grad():
        return model.generate(**given, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, num_beams=1)


def _runs(built: Built, inputs: Inputs) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way to run a model, under the attention implementation that it says."""
    model = built.model
    for implementation in ("sdpa", "eager"):
        with suppress(Exception):
            model.set_attn_implementation(implementation)
        if model.config._attn_implementation != implementation:
            continue
        paddings: tuple[Padding, ...] = ("none", "left", "right") if inputs.can_pad else ("none",)
        for padding in paddings:
            given = inputs.make(padding)
            name = implementation if padding == "none" else f"{implementation}, padded {padding}"
            yield name, partial(_forward, model, given)
        if getattr(model, "can_generate", bool)() and hasattr(model, "generate"):
            yield f"{implementation}, generate", partial(_generate, model, inputs.make("left"))


def _judge_run(model: Any, run: str, call: Callable[[], Any]) -> list[Outcome]:
    """One way to run a model, captured in both stores at once; each alone where one of them refuses."""
    try:
        plain = tensors(call())
    except Exception as error:
        return [Outcome(run, store, "failed", line(error)) for store in STORES]
    together = _captured(model, run, STORES, call, plain)
    if all(outcome.verdict != "refused" for outcome in together):
        return together
    return [outcome for store in STORES for outcome in _captured(model, run, (store,), call, plain)]


def _captured(
    model: Any, run: str, stores: tuple[Store, ...], call: Callable[[], Any], plain: list[Any]
) -> list[Outcome]:
    told: list[warnings.WarningMessage] = []
    caches: list[Any] = []
    heard: list[Heard] = []
    try:
        with ExitStack() as stack:
            told = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            caches = [stack.enter_context(attncache.capture(model, store, dtype="float32")) for store in stores]
            with listening_to(model) as oracle:
                heard = oracle.heard
                output = tensors(call())
    except Exception as error:
        return [Outcome(run, store, "refused", line(error), heard=_count(model, call)) for store in stores]
    pairs = zip(output, plain, strict=False)
    same = len(output) == len(plain) and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    words = " ".join(str(one.message) for one in told if one.category.__name__ == "CaptureWarning")
    outcomes = []
    for store, cache in zip(stores, caches, strict=True):
        comparison = compared(cache, [Source(source.module, source.call) for source in cache.sources], heard)
        verdict, reason = verdict_of(comparison, same, oracle.doubts, words)
        figures = (comparison.n_layers, comparison.worst, len(heard), comparison.absent)
        outcomes.append(Outcome(run, store, verdict, reason, *figures))
    return outcomes


def _count(model: Any, call: Callable[[], Any]) -> int:
    """How many attentions a run has."""
    with listening_to(model) as oracle:
        call()
    return len(oracle.heard)
