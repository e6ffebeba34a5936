"""What the general rules of shrinking.py and inputs.py do not give, type by type; kept as short as possible."""

from __future__ import annotations

from typing import Any

_RESNET = {"use_timm_backbone": False, "backbone_config": {"model_type": "resnet"}}
_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3]}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
_EQUAL_SECTIONS = {"rope_parameters": _SECTIONS["rope_parameters"] | {"mrope_section": [3, 3, 2]}}
_HALF_SECTIONS = {"rope_parameters": _SECTIONS["rope_parameters"] | {"mrope_section": [2, 1, 1]}}
_EFFICIENT = {"depth_coefficient": 1.0, "width_coefficient": 0.5, "hidden_dim": 640}
_SHARED = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "intermediate_size": 64,
    "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
}

_NO_MASK = {"attention_mask": None}

CLASSES: dict[str, str] = {}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer"), _RESNET),
    **dict.fromkeys(("informer", "time_series_transformer"), _SERIES),
    **dict.fromkeys(("glm4v_text", "qwen2_vl_text", "qwen2_5_vl_text"), _SECTIONS),
    **{name: {"text_config": _SECTIONS} for name in ("glm4v", "glm46v", "glmga", "qwen2_vl", "qwen2_5_vl")},
    **{name: {"image_token_index": 110} for name in ("blip-2", "instructblip")},
    **dict.fromkeys(("glm4v_moe_text", "glm_image_text"), _HALF_SECTIONS),
    **{name: {"text_config": _HALF_SECTIONS} for name in ("glm4v_moe", "glm_image")},
    "align": {"vision_config": _EFFICIENT},
    "autoformer": _SERIES | {"label_length": 2},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 256},
    "chameleon": {"vocabulary_map": {"<image>": 110, "IMGIMGAA0": 111}, "image_token_id": 110},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "efficientnet": _EFFICIENT,
    "emu3": {
        "vq_config": {"base_channels": 32},
        "vocabulary_map": {"<image>": 110, "<|visual token 000000|>": 111},
        "image_token_id": 110,
    },
    "ernie4_5_vl_moe": {"text_config": _EQUAL_SECTIONS},
    "glm5_next": {"text_config": {"index_topk": 16}},
    "glm5_next_text": {"index_topk": 16},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3n_text": _SHARED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "perceiver": {
        "num_latents": 16,
        "d_latents": 64,
        "num_blocks": 1,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "sam_hq": {"mask_decoder_config": {"vit_dim": 64}},
    "sam2": {"vision_config": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}},
    "sam2_vision_model": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "step3p7": {"text_config": {"sliding_window": 6}},
    "xmod": {"default_language": "en_XX"},
    "omdet-turbo": {"use_timm_backbone": False, "backbone_config": {"model_type": "swin", "out_indices": [2, 3, 4]}},
    "hunyuan_vl": {"text_config": _SECTIONS},
    "hunyuan_vl_text": _SECTIONS,
    "kosmos-2": {"latent_query_num": 4},
    "llama4": {
        "vision_config": {
            "intermediate_size": 256,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "vision_output_dim": 64,
        }
    },
    "instructblipvideo": {"video_token_index": 110},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {
        "head_dim": 8,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 32,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
    },
    "mamba2": {"num_heads": 8},
}
INPUTS: dict[str, dict[str, Any]] = {  # arguments, or how Inputs makes them
    "blip_2_qformer": {"encoder_hidden_states": lambda inputs: inputs.random(2, 7, 64)},
    "decision_transformer": {
        "states": lambda inputs: inputs.random(2, 6, 17),
        "actions": lambda inputs: inputs.random(2, 6, 4),
        "rewards": lambda inputs: inputs.random(2, 6, 1),
        "returns_to_go": lambda inputs: inputs.random(2, 6, 1),
        "timesteps": lambda inputs: inputs.integers(6, 2, 6),
    },
    "fun_asr_nano_encoder": {"mels": 560},
    "gemma4_audio": {"mels": 128},
    "granite_speech5_ctc": {"mels": 320},
    "granite_speech5_encoder": {"mels": 320},
    "kosmos-2": {"image_embeds_position_mask": lambda inputs: inputs.first(4)},
    "kyutai_speech_to_text": {"input_ids": lambda inputs: inputs.integers(90, 2, 12, 33)},
    "lightglue": {"pixel_values": lambda inputs: inputs.random(2, 2, 3, 64, 64)},
    "musicgen": {"decoder_input_ids": lambda inputs: inputs.integers(90, 8, 9), "decoder_attention_mask": None},
    "musicgen_melody": {"decoder_input_ids": lambda inputs: inputs.integers(90, 8, 9), "decoder_attention_mask": None},
    "perceiver": {"inputs": lambda inputs: inputs.random(2, 12, 64)},
    **dict.fromkeys(("qwen2_audio_encoder", "voxtral_encoder", "moss_transcribe_diarize_audio"), _NO_MASK),
    "timesfm": {
        "past_values": lambda inputs: inputs.random(2, 64),
        "past_values_padding": lambda inputs: inputs.integers(1, 2, 64),
        "freq": lambda inputs: inputs.integers(3, 2, 1),
    },
    "timesfm2_5": {"past_values": lambda inputs: inputs.random(2, 64)},
    "video_llama_3_vision": {"merge_sizes": lambda inputs: inputs.integers(1, 2) + 1},
    "oneformer": {"task_inputs": lambda inputs: inputs.integers(90, 2, 77)},
    "lxmert": {
        "visual_feats": lambda inputs: inputs.random(2, 4, 2048),
        "visual_pos": lambda inputs: inputs.random(2, 4, 4),
    },
}
