"""What the general rules of shrinking.py and inputs.py do not give, type by type; kept as short as possible."""

from __future__ import annotations

from typing import Any

_RESNET = {"use_timm_backbone": False, "backbone_config": {"model_type": "resnet"}}
_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3]}
_HEADS = {"num_heads": 8, "num_key_value_heads": 4}

CLASSES: dict[str, str] = {}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer"), _RESNET),
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), _SERIES),
    "blt": {"encoder_hash_byte_group_vocab": 256},
    "chameleon": {"vocabulary_map": {"<image>": 110, "IMGIMGAA0": 111}, "image_token_id": 110},
    "emu3": {"vocabulary_map": {"<image>": 110, "<|visual token 000000|>": 111}, "image_token_id": 110},
    "esm": {"vocab_size": 33},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"ffn_hidden_size": 64, "expert_ffn_hidden_size": 32, "n_routed_experts": 4, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
}
INPUTS: dict[str, dict[str, Any]] = {}
