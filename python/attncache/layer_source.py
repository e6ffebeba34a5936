"""Where a layer comes from: the attention module of a model that computed it; captures write it, caches and files keep it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["self", "cross"]
Stack: TypeAlias = Literal["encoder", "decoder", "vision", "audio", "text"]
Seam: TypeAlias = Literal["interface", "sdpa", "softmax"]

_WORDS: dict[str, tuple[str | None, ...]] = {
    "kind": (*get_args(Kind), None),
    "stack": (*get_args(Stack), None),
    "seam": (*get_args(Seam), None),
}
_LONGEST = 1000  # characters of a path of a module
_GREATEST = 2**31 - 1  # number of a layer, a head or a call
_NUMBERS_SHOWN = 4


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
        seam: where a capture heard it: at transformers' attention "interface", at PyTorch's scaled_dot_product_attention
            ("sdpa"), or at a "softmax" that multiplies; None where it was not heard.
        windows: how many windows of one input item lie side by side in the batch axis; None if there are none.

    Raises:
        TypeError: an attribute is of the wrong kind. ValueError: kind, stack or seam is none of these words, a number is
            negative or above 2**31 - 1, or module has more than 1,000 characters.

    >>> LayerSource("model.layers.5.self_attn", layer=5, kind="self")
    LayerSource(module='model.layers.5.self_attn', layer=5, kind='self')
    """

    module: str = ""
    layer: int | None = None
    heads: tuple[int, ...] | None = None
    kind: Kind | None = None
    stack: Stack | None = None
    call: int = 0
    seam: Seam | None = None
    windows: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, str):
            raise TypeError(f"module must be a string, got {type(self.module).__name__}")
        if len(self.module) > _LONGEST:
            raise ValueError(f"module must have at most {_LONGEST:,} characters, got {len(self.module):,}")
        for name, number in (
            ("layer", self.layer),
            ("call", self.call),
            ("windows", self.windows),
            *(("heads", head) for head in self.heads or ()),
        ):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
                raise TypeError(f"{name} must be an int, got {type(number).__name__}")
            if number is not None and not 0 <= number <= _GREATEST:
                raise ValueError(f"{name} must be from 0 to 2**31 - 1, got {number}")
        for name, words in _WORDS.items():
            word = getattr(self, name)
            if word is not None and not isinstance(word, str):
                raise TypeError(f"{name} must be a string or None, got {type(word).__name__}")
            if word not in words:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, got {word!r}")

    def __repr__(self) -> str:
        return f"LayerSource({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON values; ``from_dict`` reads it.

        >>> LayerSource("encoder.layer.0", layer=0, heads=(1, 3)).to_dict()
        {'module': 'encoder.layer.0', 'layer': 0, 'heads': [1, 3]}
        """
        values = {"module": self.module, "layer": self.layer, "heads": self.heads and list(self.heads)}
        values |= {"kind": self.kind, "stack": self.stack, "call": self.call or None}
        values |= {"seam": self.seam, "windows": self.windows}
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


def checked_layer_source(source: Any, n_heads: int) -> LayerSource | None:
    """The argument ``source`` of a push of a layer with so many heads.

    Raises:
        TypeError: it is neither None nor a LayerSource. ValueError: it names another number of heads.
    """
    if source is not None and not isinstance(source, LayerSource):
        raise TypeError(f"source must be None or a LayerSource, got {type(source).__name__}")
    if source is not None and source.heads is not None and len(source.heads) != n_heads:
        rule = f"source must name one head of the model for each head of the layer, n_heads={n_heads}"
        raise ValueError(f"{rule}, got {len(source.heads)}")
    return source


def group_of(source: LayerSource) -> str | None:
    """The word for the layers that a model would list together: "cross", or the stack; None in a model with one stack.

    >>> group_of(LayerSource(kind="cross", stack="decoder")), group_of(LayerSource(kind="self", stack="decoder"))
    ('cross', 'decoder')
    """
    return "cross" if source.kind == "cross" else source.stack


def layers_in_words(sources: Sequence[LayerSource | None]) -> str:
    """Which layers of the model these are; "" if they are not known, or are simply 0, 1, 2, .. of its only stack.

    >>> layers_in_words([LayerSource(layer=5), LayerSource(layer=9)])
    '5 and 9 of the model'
    >>> layers_in_words([LayerSource(stack="decoder"), LayerSource(stack="decoder", kind="cross")])
    '1 decoder, 1 cross'
    >>> layers_in_words([LayerSource(kind="self"), LayerSource(kind="cross")])
    '1 self, 1 cross'
    """
    known = [source for source in sources if source is not None]
    if len(known) < len(sources):
        return ""
    groups = Counter(map(group_of, known))
    if groups.keys() - {None}:
        rest = "self" if groups.keys() <= {None, "cross"} else "other"
        return ", ".join(f"{n} {group or rest}" for group, n in groups.items())
    numbers = [source.layer for source in known if source.layer is not None]
    if len(numbers) < len(known) or numbers == list(range(len(numbers))):
        return ""
    return f"{numbers_in_words(numbers)} of the model"


def numbers_in_words(numbers: Sequence[int]) -> str:
    """Numbers, of many the first and the last.

    >>> numbers_in_words([5]), numbers_in_words([5, 9]), numbers_in_words(range(4, 20)), numbers_in_words(range(3, 32, 4))
    ('5', '5 and 9', '4 to 19', '3, 7, 11, .., 31')
    """
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and list(numbers) == list(range(first, last + 1)):
        return f"{first} to {last}"
    shown = list(map(str, numbers))
    if len(shown) > _NUMBERS_SHOWN:
        return ", ".join([*shown[: _NUMBERS_SHOWN - 1], "..", shown[-1]])
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
