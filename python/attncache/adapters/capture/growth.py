"""What one layer of a running model has seen so far, and how its next call goes on with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from attncache.adapters.capture.calls import Call, Weights
from attncache.adapters.capture.masks import Sight, continued, read_sight

if TYPE_CHECKING:
    import torch

_REMEMBERED = 64  # keys and queries kept per layer to notice another text
_RUNS = "open a new capture for each forward, or attncache.capture_runs, which keeps each as a run of its own"
_NEARLY = 0.25  # how far keys of a compressed cache may move, relative to how far they lie from their mean


@dataclass(frozen=True)
class Growth:
    """One layer so far, as the model runs.

    Attributes:
        number: its number in the cache.
        n_keys: how many keys the sequence has.
        n_queries: how many of them have asked, in the last call.
        sight: what its queries see; None if causal, window and hidden keys cannot say it.
        is_cross: whether its keys are of another sequence, and stay.
        has_keys: whether its queries and keys were heard, or its weights alone.
        last_keys, last_queries: the last of them, [batch, head, position, head_dim]; of weights alone, the values of the
            last keys, and the last row of weights.
    """

    number: int
    n_keys: int
    n_queries: int
    sight: Sight | None
    is_cross: bool
    has_keys: bool
    last_keys: torch.Tensor
    last_queries: torch.Tensor


@dataclass(frozen=True)
class Step:
    """How a call goes on with its layer.

    Attributes:
        n_keys: how many keys the sequence has after it.
        first_key: the position of the first key that it was given.
        sight: what all queries see after it; None if that cannot be said.
        why_not: why it cannot, as an error says it.
    """

    n_keys: int
    first_key: int
    sight: Sight | None
    why_not: str | None = None

    @property
    def n_given(self) -> int:
        """How many of the keys that the call was given are in use."""
        return self.n_keys - self.first_key

    @property
    def seen(self) -> Sight | None:
        """What the queries see, counted from the first key that the call was given."""
        if self.sight is None or self.first_key == 0:
            return self.sight
        mask = self.sight.key_mask
        return replace(self.sight, n_keys=self.n_given, key_mask=None if mask is None else mask[:, self.first_key :])


ONLY_WEIGHTS = "only the result of a softmax was heard"


def remembered(call: Call | Weights, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """The last keys and queries of a call, kept to compare the next with."""
    first, end = max(step.n_given - _REMEMBERED, 0), step.n_given
    if isinstance(call, Weights):
        return call.values[..., first:end, :].clone(), call.weights[:, :, -1:].clone()
    return call.key[:, :, first:end].clone(), call.query[:, :, -_REMEMBERED:].clone()


def is_repeated(layer: Growth, call: Call | Weights) -> bool:
    """Whether the call is the layer's last one again, as where a backward pass runs a checkpointed layer anew."""
    n_known = layer.last_keys.shape[-2]
    if (
        isinstance(call, Weights) == layer.has_keys
        or call.n_queries != layer.n_queries
        or not n_known <= call.n_given <= layer.n_keys
    ):
        return False
    if isinstance(call, Weights):
        pairs = (call.weights[:, :, -1:], layer.last_queries), (call.values[..., -n_known:, :], layer.last_keys)
    else:
        pairs = (call.query[:, :, -_REMEMBERED:], layer.last_queries), (call.key[:, :, -n_known:], layer.last_keys)
    return all(_same(now, before) for now, before in pairs)


def next_step(layer: Growth, call: Call | Weights) -> Step:
    """How a call goes on with its layer: new queries, and at the end of its keys those of the new queries.

    Raises:
        ValueError: it does not go on with it.
    """
    n_new, n_given = call.n_queries, call.n_given
    if isinstance(call, Weights) == layer.has_keys:
        heard = "its queries and keys" if layer.has_keys else "only its weights"
        raise ValueError(f"a layer must be heard in one place, got a call of another than before, where {heard} passed")
    n_batch = layer.last_queries.shape[0]
    if call.n_batch != n_batch:
        raise ValueError(f"a layer must keep its batch size, got {call.n_batch} after {n_batch}")
    if layer.is_cross and n_new == layer.n_queries > 1:  # the next run over the same words, as of a diffusion model
        raise ValueError(f"one capture holds one run, got {n_new} queries over the same keys again: {_RUNS}")
    if isinstance(call, Weights):
        return _next_weights(layer, call)
    if layer.is_cross:
        return _next_across(layer, call)
    n_old = min(n_given, layer.n_keys + n_new) - n_new
    forgets_keys = layer.sight is None or layer.sight.window is not None
    if n_old <= 0 or (n_old < layer.n_keys and not forgets_keys):
        raise _other_text(layer, call)
    n_known = min(n_old, layer.last_keys.shape[2])
    now, before = call.key[:, :, n_old - n_known : n_old], layer.last_keys[:, :, layer.last_keys.shape[2] - n_known :]
    how = _likeness(now, before)
    if how == "other":
        raise ValueError(
            f"one capture holds one run over a text, got other keys before position {layer.n_keys} than there were: {_RUNS}"
        )
    total = layer.n_keys + n_new
    first_key = max(total - n_given, 0)
    if layer.sight is not None and not layer.sight.causal:
        return Step(total, first_key, None, "queries see keys after them that a later call does not see alike")
    if layer.sight is None:
        return Step(total, first_key, None, "an earlier call of the layer had a mask that they cannot carry")
    if how == "near":
        why = "the model's cache changed keys that it had kept, as a quantized one does: each step has its own"
        return Step(total, first_key, None, why)
    try:
        return Step(total, first_key, continued(layer.sight, call)[0])
    except ValueError as error:
        return Step(total, first_key, None, str(error))


def _next_weights(layer: Growth, call: Weights) -> Step:
    """More rows of weights, whose keys must be those before and the new queries' own; across, those before.

    Raises:
        ValueError: there are other keys, or they have other values.
    """
    n_keys = layer.n_keys if layer.is_cross else layer.n_keys + call.n_queries
    if call.n_given != n_keys:
        raise _other_text(layer, call)
    n_known = layer.last_keys.shape[-2]
    now = call.values[..., layer.n_keys - n_known : layer.n_keys, :]
    if now.shape != layer.last_keys.shape or _likeness(now, layer.last_keys) == "other":
        raise ValueError(
            f"one capture holds one run over a text, got other values before position {layer.n_keys} than there were: {_RUNS}"
        )
    return Step(n_keys, 0, None, ONLY_WEIGHTS)


def _other_text(layer: Growth, call: Call | Weights) -> ValueError:
    """The error where a call has not the keys to go on with its layer."""
    is_whole = call.n_queries == call.n_given == layer.n_keys + 1  # the text so far, and one more
    return ValueError(
        f"one capture holds one run over a text, got {call.n_queries} more queries over {call.n_given} keys that do not "
        f"continue the {layer.n_keys} before: {'generate with use_cache=True' if is_whole else _RUNS}"
    )


def _next_across(layer: Growth, call: Call) -> Step:
    """Queries over keys of another sequence, which must be the same as before.

    Raises:
        ValueError: they are not.
    """
    n_given = call.key.shape[2]
    known = layer.last_keys
    if (
        n_given != layer.n_keys
        or _likeness(call.key[:, :, layer.n_keys - known.shape[2] : layer.n_keys], known) != "same"
    ):
        raise ValueError(
            f"one capture holds one run, got {n_given} keys of the other sequence that are not the {layer.n_keys} "
            f"before: {_RUNS}"
        )
    try:
        sight = read_sight(call, is_cross=True)
    except ValueError as error:
        return Step(n_given, 0, None, str(error))
    if layer.sight is None or not _hide_the_same(sight, layer.sight):
        return Step(n_given, 0, None, "the mask of this call hides other keys than that of an earlier one")
    return Step(n_given, 0, sight)


def _hide_the_same(one: Sight, other: Sight) -> bool:
    """Whether the queries of two calls over another sequence see the same keys of it."""
    if one.key_mask is None or other.key_mask is None:
        return one.key_mask is other.key_mask
    return bool((one.key_mask == other.key_mask).all())


def _same(now: torch.Tensor, before: torch.Tensor) -> bool:
    return now.shape == before.shape and _likeness(now, before) == "same"


def _likeness(now: torch.Tensor, before: torch.Tensor) -> Literal["same", "near", "other"]:
    """Whether keys are the same as before, the same but for some rounding, or others."""
    import torch  # noqa: PLC0415 (loaded already: it made the tensors)

    if torch.equal(now.nan_to_num(), before.nan_to_num()):
        return "same"
    moved, before = (now.float() - before.float()).norm(), before.float()
    spread = (before - before.mean(dim=-2, keepdim=True)).norm()
    return "near" if float(moved) < _NEARLY * float(spread) else "other"
