"""What a capture did not hear of a model, and the words with which it says so at its end; for recorder.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attncache.adapters.capture.modules import related

_SHOWN = 5  # names in a message
_WAY_OUT = (
    "Attention of flash_attn, xformers, flex attention and scripted code is not heard: choose another backend, or pass what "
    "the model returns with output_attentions=True to AttentionCache.from_attentions"
)
_DROPOUT = (
    "the model ran with dropout: the capture holds the weights before dropout, which could not be compared with what the "
    "model computed; model.eval() switches dropout off"
)


class Missed:
    """Notes what ran and what was heard.

    Attributes:
        name: the class of the model.
        heard: paths of modules whose attention was heard.
        ran: paths of modules that look like attention and ran.
        passed: paths of modules whose attention cannot be heard, each with what it does.
        is_elsewhere: whether the model ran in another thread.
        has_dropout: whether weights were dropped at random.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: set[str] = set()
        self.ran: set[str] = set()
        self.passed: dict[str, str] = {}
        self.is_elsewhere = self.has_dropout = False

    def check_any(self) -> None:
        """Refuse a capture in which nothing was kept though attention ran.

        Raises:
            ValueError: names it.
        """
        if unheard := self.unheard():
            raise ValueError(f"{self.name} cannot be captured: {unheard}. {_WAY_OUT}")

    def unheard(self) -> str:
        """What looks like attention, ran, and was not heard, and why; "" if there is nothing."""
        told = [f"{path or self.name} {what}" for path, what in self.passed.items()]
        silent = [path for path in sorted(self.ran) if not any(related(path, p) for p in (*self.heard, *self.passed))]
        if silent:
            them = "it" if len(silent) == 1 else "them"
            told.append(f"{listed(silent)} ran, and no softmax or scaled_dot_product_attention of {them} was heard")
        return "; ".join(told)

    def nothing(self) -> str:
        """Why the capture is empty."""
        if self.is_elsewhere:
            return f"the capture saw no attention of this {self.name}: it ran in another thread than the capture"
        return (
            f"the capture saw no attention of this {self.name}: was it another object than the one given that ran? A copy, a "
            "compiled or wrapped model, or a pipeline's own model must be given to capture itself"
        )

    def dropout(self) -> str:
        """That the weights are not those that multiplied; "" if they are."""
        return _DROPOUT if self.has_dropout else ""


def became_patterns(names: Sequence[str], reasons: Mapping[int, str]) -> list[str]:
    """Which layers are patterns where queries and keys were wanted, and why; ``names`` has all layers by their number."""
    told = []
    for why in dict.fromkeys(reasons.values()):
        those = [names[layer] for layer, reason in reasons.items() if reason == why]
        they = "is a pattern" if len(those) == 1 else "are patterns"
        told.append(f"{listed(those)} {they}, since queries and keys alone do not give the weights: {why}")
    return told


def listed(names: Sequence[str]) -> str:
    """Names, of many the first."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
