"""What a small model is run on: tensors for its forward's arguments by their names; judging.py passes them.

A text has 12 tokens; a padded batch is 4 longer, and its first row is filled up at the left or the right."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Literal

import torch

from tests.sweep.building import Built, NotBuiltError
from tests.sweep.hints import INPUTS
from tests.sweep.media import MEDIA, SOUNDS, mels, states
from tests.sweep.settings import BATCH, LENGTH, PADS, setting
from tests.sweep.shrinking import FIRST_SPECIAL_ID

Padding = Literal["none", "left", "right"]

_MISMATCH = re.compile(r"tokens?:? (?:tensor\()?(\d+)\D+features:?\D*(\d+)", re.DOTALL)
_PLACES = {
    "image": ("image_token_id", "image_token_index", "media_placeholder_token_id", "boi_token_id"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index", "audio_token_idx", "sound_token_id"),
}


class Inputs:
    """Makes the arguments of one model's forward, with one of the usual shapes of pictures and sounds."""

    def __init__(self, built: Built, model_type: str, with_media: bool, variant: int = 0) -> None:
        self.config: Any = built.model.config
        self.model: Any = built.model
        self.variant: int = variant
        self.hints: dict[str, Any] = INPUTS.get(model_type, {})
        parameters = inspect.signature(built.model.forward).parameters
        self.known: list[str] = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
        self.needed = {name for name in self.known if parameters[name].default is inspect.Parameter.empty}
        self.has_text: bool = "input_ids" in self.known
        self.with_media = with_media or not self.has_text
        self.places: dict[str, int] = dict.fromkeys(_PLACES, 0)
        self.generator = torch.Generator().manual_seed(2)

    @property
    def takes_media(self) -> bool:
        """Whether there are arguments for pictures or sounds beside the text."""
        media = {"pixel_values", "input_features", "input_values", "pixel_values_videos"}
        return self.has_text and bool(media & set(self.known))

    @property
    def can_pad(self) -> bool:
        """Whether the model takes a mask that tells padding."""
        return "attention_mask" in self.make("right")

    def learn(self, message: str) -> bool:
        """Read from an error how many placeholders a text needs; whether that is new."""
        found = _MISMATCH.search(message)
        if found is None:
            return False
        kind = next((kind for kind in _PLACES if kind in message.lower()), "image")
        tokens, features = map(int, found.groups())
        rows = features // BATCH
        if tokens == features:  # it compares numbers of values, though it names those of tokens
            rows //= setting(self.config, "hidden_size", default=1, within="text")
        new = rows > 0 and rows != self.places[kind]
        self.places[kind] = rows
        return new

    def make(self, padding: Padding) -> dict[str, Any]:
        """The arguments of one forward."""
        self.generator.manual_seed(2)
        given: dict[str, Any] = {}
        for name in self.known:
            value = self._value(name, padding)
            if value is not None:
                given[name] = value
        missing = self.needed - set(given)
        if missing:
            raise NotBuiltError(f"no rule makes its argument {min(missing)}")
        return given

    def _value(self, name: str, padding: Padding) -> Any:
        if name in self.hints:
            hint = self.hints[name]
            return getattr(self, hint[0])(*hint[1:]) if isinstance(hint, list) else hint
        if name in _TEXTS:
            wanted = "decoder_input_ids" in self.known if name.startswith("decoder_") else self.has_text
            return _TEXTS[name](self, padding) if wanted or name in self.needed or name == "attention_mask" else None
        if name in {"inputs_embeds", "encoder_hidden_states"}:
            return states(self) if name in self.needed else None
        if name in MEDIA and (self.with_media or name in self.needed):
            if "pixel_values" in self.known and name in SOUNDS and name not in self.needed and self.has_text:
                return None
            return MEDIA[name](self)
        return None

    def random(self, *shape: int) -> Any:
        """A float32 tensor of normal numbers."""
        return torch.randn(*shape, generator=self.generator)

    def integers(self, below: int, *shape: int) -> Any:
        """An int64 tensor of numbers from 0."""
        return torch.randint(below, shape, generator=self.generator)

    def ones(self, *shape: int) -> Any:
        """An int64 tensor of ones."""
        return 1 + self.integers(1, *shape)

    def first(self, count: int) -> Any:
        """Which tokens are the first ones, bool [batch, token]."""
        return (torch.arange(LENGTH) < count).expand(BATCH, LENGTH)

    def tokens(self, padding: Padding) -> Any:
        """Token ids with the placeholders of pictures and sounds among them, padded."""
        most = min(FIRST_SPECIAL_ID, setting(self.config, "vocab_size", default=FIRST_SPECIAL_ID, within="text"))
        ids = torch.randint(min(5, most - 1), most, (BATCH, LENGTH), generator=self.generator)
        for kind, count in self.places.items():
            token = setting(self.config, *_PLACES[kind])
            if self.with_media and count and isinstance(token, int):
                ids = torch.cat([ids[:, :3], torch.full((BATCH, count), token), ids[:, 3:]], 1)
        pad = setting(self.config, "pad_token_id", default=0)
        pad = pad if isinstance(pad, int) and pad >= 0 else 0
        return self._padded(ids, padding, pad)

    def kinds(self, padding: Padding) -> Any:
        """Which tokens stand for a picture (1) or a video (2), int64 [batch, token]."""
        ids = self.tokens(padding)
        kinds = 0 * ids
        for number, kind in ((1, "image"), (2, "video")):
            token = setting(self.config, *_PLACES[kind])
            if isinstance(token, int):
                kinds[ids == token] = number
        return kinds

    def _padded(self, ids: Any, padding: Padding, pad: int) -> Any:
        if padding == "none":
            return ids
        more = torch.randint(5, 20, (BATCH, PADS), generator=self.generator)
        more[0] = pad
        return torch.cat([more, ids] if padding == "left" else [ids, more], 1)

    def mask(self, padding: Padding, length: int | None = None) -> Any:
        """Which tokens are no padding, int64 [batch, token]."""
        mask = torch.ones(BATCH, length or self.tokens(padding).shape[1], dtype=torch.long)
        if padding != "none":
            mask[0, : PADS if padding == "left" else None] = 0
            if padding == "right":
                mask[0, :-PADS] = 1
        return mask


def _decoder(make: Callable[[Inputs, Padding], Any]) -> Callable[[Inputs, Padding], Any]:
    """A decoder's text: padded at the right if at all."""
    return lambda inputs, padding: make(inputs, "none" if padding == "left" else padding)


def _plain_tokens(inputs: Inputs, padding: Padding) -> Any:
    most = min(FIRST_SPECIAL_ID, setting(inputs.config, "vocab_size", default=FIRST_SPECIAL_ID, within="decoder"))
    ids = torch.randint(min(5, most - 1), most, (BATCH, LENGTH - 3), generator=inputs.generator)
    return inputs._padded(ids, padding, 0)


def _attention_mask(inputs: Inputs, padding: Padding) -> Any:
    if inputs.has_text:
        return inputs.mask(padding)
    if {"input_values", "input_features"} & set(inputs.known):
        sounds = MEDIA["input_values" if "input_values" in inputs.known else "input_features"](inputs)
        length = sounds.shape[-1] if sounds.dim() == 2 or sounds.shape[-2] == mels(inputs) else sounds.shape[1]
        mask = inputs.mask("none", length)
        if padding == "right":
            mask[0, -length // 4 :] = 0
        return mask
    return None


def _boxes(inputs: Inputs, padding: Padding) -> Any:
    length = inputs.tokens(padding).shape[1]
    corners = torch.randint(0, 50, (BATCH, length, 4), generator=inputs.generator)
    corners[..., 2:] += 50
    return corners if inputs.config.model_type != "bros" else torch.rand(BATCH, length, 8, generator=inputs.generator)


_TEXTS: dict[str, Callable[[Inputs, Padding], Any]] = {
    "input_ids": Inputs.tokens,
    "attention_mask": _attention_mask,
    "decoder_input_ids": _decoder(_plain_tokens),
    "decoder_attention_mask": _decoder(
        lambda inputs, padding: inputs.mask(padding, _plain_tokens(inputs, padding).shape[1])
    ),
    "bbox": _boxes,
    "mm_token_type_ids": lambda inputs, padding: inputs.kinds(padding),
    "qformer_input_ids": lambda inputs, _: _plain_tokens(inputs, "none"),
}
