"""Compares a call with what its queries, keys and mask give, and makes of it what a store can keep; for recorder.py."""

from __future__ import annotations

from dataclasses import replace

from attncache.adapters.capture.calls import Call
from attncache.adapters.capture.growth import Step
from attncache.adapters.capture.stores import Piece
from attncache.adapters.capture.weights import Difference, difference
from attncache.layer_source import LayerSource
from attncache.selections import Selector
from attncache.taking import indices


def checked_piece(call: Call, step: Step, source: LayerSource, selected: Selector) -> Piece:
    """The chosen heads of a call, in the form in which the store can keep what the function computed.

    Raises:
        ValueError: the function computed something else than its queries, keys and mask give.
    """
    heads = list(indices(selected, call.query.shape[1], "heads", "n_heads"))
    found, has_sinks = (None, True) if call.has_dropout else _difference(call, step)
    why_not = step.why_not
    if call.bias is not None:
        why_not = "it adds a position bias to the scores (position_bias)"
    if found is not None:
        why_not = f"its function returned other weights than its queries, keys and mask give: the {found}"
    return Piece(
        call=call,
        step=step,
        source=source if selected is None else replace(source, heads=tuple(heads)),
        heads=heads,
        has_sinks=has_sinks,
        is_as_returned=found is not None,
        why_not_factored=why_not,
    )


def _difference(call: Call, step: Step) -> tuple[Difference | None, bool]:
    """How the weights that the function returned differ from its queries, keys and mask; and whether its sinks count.

    Raises:
        ValueError: it returned nothing to compare with, or no weights and another output.
    """
    if call.output is None and call.weights is None:
        raise ValueError(
            f"{call.reason or 'its function is not one of transformers'}: it returned neither weights nor an output "
            "[batch, query, head, item] to compare with"
        )
    found = difference(call, step.seen, step.n_given)
    if found is not None and call.weights is None:
        because = f"{call.reason}; " if call.reason else ""
        raise ValueError(
            f"{because}its function did not compute the softmax of its queries, keys and mask: the {found}. Run "
            "the model with output_attentions=True under eager attention, and pass what it returns to "
            "AttentionCache.from_attentions"
        )
    if found is not None and call.sinks is not None:
        without = difference(call, step.seen, step.n_given, sinks=False)
        return (None, False) if without is None else (found, True)
    return found, True
