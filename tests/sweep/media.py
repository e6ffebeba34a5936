"""Pictures, sounds and other tensors of numbers for a forward's arguments, by their names; inputs.py looks them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tests.sweep.settings import BATCH, LENGTH, VARIANTS, setting

if TYPE_CHECKING:
    from tests.sweep.inputs import Inputs


def mels(inputs: Inputs) -> int:
    if "mels" in inputs.hints:
        return int(inputs.hints["mels"])
    names = [
        "num_mel_bins",
        "feature_size",
        "input_feat_per_channel",
        "n_mels",
        "num_mels",
        "feature_projection_input_dim",
    ]
    return int(setting(inputs.config, *names, "input_size", "input_dim", default=80, within="audio"))


def _picture_shape(inputs: Inputs) -> tuple[int, int, int]:
    size = setting(inputs.config, "image_size", "img_size", "input_size", default=64, within="vision")
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    high, wide = (size, size) if isinstance(size, int) else size[-2:]
    channels = setting(inputs.config, "num_channels", "in_channels", "in_chans", default=3, within="vision")
    return int(channels if isinstance(channels, int) else 3), int(high), int(wide)


def _patches_of_grid(inputs: Inputs) -> Any:
    """Pictures cut in patches, as Qwen2-VL takes them."""
    config = inputs.config
    patch = setting(config, "patch_size", default=14, within="vision")
    frames = setting(config, "temporal_patch_size", "patch_temporal", default=1, within="vision")
    channels = setting(config, "in_channels", "num_channels", "in_chans", default=3, within="vision")
    shape = (channels, patch, patch) if inputs.variant == 1 else (channels * frames * patch * patch,)
    return inputs.random(BATCH * 16, *shape)


def _picture(inputs: Inputs) -> Any:
    known = set(inputs.known)
    if known & {"image_grid_thw", "grid_thw", "image_grid_hw"}:
        return _patches_of_grid(inputs)
    if "spatial_shapes" in known or "pixel_position_ids" in known:
        patch = setting(inputs.config, "patch_size", default=16, within="vision")
        return inputs.random(BATCH, 16, 3 * patch * patch)
    shape = _picture_shape(inputs)
    if "image_sizes" in known and "image_grid_pinpoints" in vars(inputs.config):
        return inputs.random(BATCH, 2, *shape)
    several = int("pixel_attention_mask" in known and inputs.has_text)
    frames = setting(inputs.config, "num_frames", default=4)
    lead = ([BATCH], [BATCH, 1], [BATCH, frames])[(several + inputs.variant) % VARIANTS]
    return inputs.random(*lead, *shape)


def _grid(inputs: Inputs) -> Any:
    return torch.tensor([[1, 4, 4]] * BATCH)


def _places(_: Inputs) -> Any:
    """Row and column of each patch, int64 [batch, patch, 2]."""
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    return places.expand(BATCH, *places.shape)


def _video(inputs: Inputs) -> Any:
    if inputs.has_text and "pixel_values" in inputs.known and "pixel_values_videos" not in inputs.needed:
        return None
    frames = setting(inputs.config, "num_frames", "frames_per_clip", "num_image_with_embedding", default=4)
    return inputs.random(BATCH, frames, *_picture_shape(inputs))


def _mel_frames(inputs: Inputs) -> Any:
    length = 2 * setting(inputs.config, "max_source_positions", default=50, within="audio")
    name = type(inputs.model).__name__.lower()
    time_first = bool({"input_features_mask", "padding_mask"} & set(inputs.known)) or "conformer" in name
    frames = [length, mels(inputs)]
    if inputs.variant == 2:
        return inputs.random(BATCH, 1, *frames)
    if time_first == (inputs.variant == 1):
        frames.reverse()
    return inputs.random(BATCH, *frames)


def _waveform(inputs: Inputs) -> Any:
    channels = setting(inputs.config, "audio_channels", default=0)
    if inputs.variant == 2:
        return inputs.random(BATCH, setting(inputs.config, "max_length", default=100), mels(inputs))
    return inputs.random(BATCH, *([channels or 1] if channels or inputs.variant else []), 4000)


def states(inputs: Inputs) -> Any:
    return inputs.random(BATCH, LENGTH, setting(inputs.config, "hidden_size", "d_model", default=64))


def _history(inputs: Inputs) -> tuple[int, ...]:
    """The shape of the values of a time series, without the batch."""
    config = inputs.config
    length = setting(config, "context_length", default=64)
    if "past_time_features" in inputs.known:
        return (length + max(config.lags_sequence),)
    return length, setting(config, "num_input_channels", default=1)


def _ones(*shape: int) -> Any:
    return torch.ones(*shape, dtype=torch.long)


SOUNDS = {"input_features", "input_values", "input_features_mask", "feature_attention_mask"}
MEDIA: dict[str, Callable[[Inputs], Any]] = {
    "pixel_values": _picture,
    "pixel_values_videos": _video,
    "image_grid_thw": _grid,
    "grid_thw": _grid,
    "image_grid_hw": lambda inputs: _grid(inputs)[:, 1:],
    "spatial_shapes": lambda inputs: _grid(inputs)[:, 1:],
    "pixel_attention_mask": lambda inputs: _ones(BATCH, 16) if "spatial_shapes" in inputs.known else None,
    "pixel_position_ids": _places,
    "target_sizes": lambda inputs: _grid(inputs)[:, 1:],
    "image_sizes": lambda inputs: (
        torch.tensor([_picture_shape(inputs)[1:]] * BATCH) if "image_grid_pinpoints" in vars(inputs.config) else None
    ),
    "input_features": _mel_frames,
    "input_features_mask": lambda inputs: _ones(BATCH, _mel_frames(inputs).shape[1]).bool(),
    "feature_attention_mask": lambda inputs: _ones(BATCH, _mel_frames(inputs).shape[-1]),
    "input_values": _waveform,
    "hidden_states": lambda inputs: _patches_of_grid(inputs) if "grid_thw" in inputs.known else states(inputs),
    "query_embeds": states,
    "latents": lambda inputs: states(inputs).mT,
    "image_attention_mask": lambda inputs: _ones(BATCH, inputs.tokens("none").shape[1], 1),
    "past_values": lambda inputs: inputs.random(BATCH, *_history(inputs)),
    "past_observed_mask": lambda inputs: _ones(BATCH, *_history(inputs)),
    "past_time_features": lambda inputs: inputs.random(BATCH, _history(inputs)[0], inputs.config.num_time_features),
    "future_values": lambda inputs: inputs.random(BATCH, inputs.config.prediction_length),
    "future_time_features": lambda inputs: inputs.random(
        BATCH, inputs.config.prediction_length, inputs.config.num_time_features
    ),
}
