"""Compares a call with what its queries, keys and mask give, and makes of it what a store can keep; for recorder.py."""

from __future__ import annotations

from dataclasses import replace

from attncache.adapters.capture.calls import Call, Weights
from attncache.adapters.capture.growth import Step
from attncache.adapters.capture.stores import Piece
from attncache.adapters.capture.weights import Difference, difference
from attncache.layer_source import LayerSource
from attncache.selections import Selector
from attncache.taking import indices


def checked_piece(
    call: Call | Weights, step: Step, source: LayerSource, selected: Selector, *, check: bool = True
) -> Piece:
    """The chosen heads of a call, in the form in which the store can keep what the function computed.

    Args:
        call, step, source: what was heard, how it goes on with its layer, and where it comes from.
        selected: which heads.
        check: whether to compare; weights that were heard themselves need no comparison.

    Raises:
        ValueError: the function computed something else than its queries, keys and mask give.
    """
    heads = list(indices(selected, call.n_heads, "heads", "n_heads"))
    found, has_sinks, why_not = None, True, step.why_not
    if isinstance(call, Call):
        if check and not call.has_dropout:
            found, has_sinks = _difference(call, step)
        why_not = _why_not(call, found) or why_not
    return Piece(
        call=call,
        step=step,
        source=source if selected is None else replace(source, heads=tuple(heads)),
        heads=heads,
        has_sinks=has_sinks,
        is_as_returned=found is not None,
        why_not_factored=why_not,
    )


def _why_not(call: Call, found: Difference | None) -> str | None:
    """Why queries and keys do not give the weights of a call, beside its mask; None if they do."""
    if found is not None:
        return f"its function returned other weights than its queries, keys and mask give: the {found}"
    if not call.scale > 0:
        return f"its scale is {call.scale:g}, and queries and keys are kept with one above zero"
    return "it adds a position bias to the scores (position_bias)" if call.bias is not None else None


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
            "AttentionCache.from_attentions; or leave the comparison out with check=False"
        )
    if found is not None and call.sinks is not None:
        without = difference(call, step.seen, step.n_given, sinks=False)
        return (None, False) if without is None else (found, True)
    return found, True
