"""Where a layer comes from: the attention module of a model that computed it; captures write it, caches and files keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["self", "cross"]
Stack: TypeAlias = Literal["encoder", "decoder", "vision", "audio", "text"]

_KINDS = ("self", "cross", None)
_STACKS = ("encoder", "decoder", "vision", "audio", "text", None)


@dataclass(frozen=True)
class LayerSource:
    """The place in a model that computed one layer of a cache.

    Attributes:
        module: path of the attention module in the model, as ``named_modules`` gives it, such as
            "model.layers.5.self_attn"; "" where it is not known.
        layer: number of the layer in its stack of the model, counted as the model does; None where it is not known.
        heads: the model's number of each head, in the order of the layer's heads; None if they are all of them, in order.
        kind: "self" where queries and keys are of one sequence, "cross" where they are of two; None where it is not known.
        stack: which of several stacks of layers the module belongs to; None in a model with one.
        call: which call of the module within one forward, from 0.

    Raises:
        TypeError: an attribute is of the wrong kind. ValueError: kind or stack is none of these words, or a number is
            negative.

    >>> LayerSource("model.layers.5.self_attn", layer=5, kind="self")
    LayerSource(module='model.layers.5.self_attn', layer=5, kind='self')
    """

    module: str = ""
    layer: int | None = None
    heads: tuple[int, ...] | None = None
    kind: Kind | None = None
    stack: Stack | None = None
    call: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.module, str):
            raise TypeError(f"module must be a string, got {type(self.module).__name__}")
        for name, number in (
            ("layer", self.layer),
            ("call", self.call),
            *(("heads", head) for head in self.heads or ()),
        ):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
                raise TypeError(f"{name} must be an int, got {type(number).__name__}")
            if number is not None and number < 0:
                raise ValueError(f"{name} must be at least 0, got {number}")
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be 'self', 'cross' or None, got {self.kind!r}")
        if self.stack not in _STACKS:
            raise ValueError(f"stack must be one of {', '.join(map(repr, _STACKS))}, got {self.stack!r}")

    def __repr__(self) -> str:
        return f"LayerSource({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON values; ``from_dict`` reads it.

        >>> LayerSource("encoder.layer.0", layer=0, heads=(1, 3)).to_dict()
        {'module': 'encoder.layer.0', 'layer': 0, 'heads': [1, 3]}
        """
        values = {"module": self.module, "layer": self.layer, "heads": self.heads and list(self.heads)}
        values |= {"kind": self.kind, "stack": self.stack, "call": self.call or None}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerSource:
        """The source that ``to_dict`` described; names that it does not know are passed over.

        Raises:
            TypeError, ValueError: a value is none that its attribute may have.

        >>> LayerSource.from_dict({"module": "encoder.layer.0", "layer": 0, "heads": [1, 3]}).heads
        (1, 3)
        """
        known = {name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None}
        if "heads" in known:
            if not isinstance(known["heads"], list | tuple):
                raise TypeError(f"heads must be a list of ints, got {type(known['heads']).__name__}")
            known["heads"] = tuple(known["heads"])
        return cls(**known)


def checked_layer_source(source: Any) -> LayerSource | None:
    """The argument ``source`` of a push.

    Raises:
        TypeError: it is neither None nor a LayerSource.
    """
    if source is not None and not isinstance(source, LayerSource):
        raise TypeError(f"source must be None or a LayerSource, got {type(source).__name__}")
    return source
