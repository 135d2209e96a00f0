"""What is particular to a model family: data."""

from __future__ import annotations

from typing import Any

# Fields of configurations that the rules of `tests.models.tiny` do not find.
CONFIGS: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {"16": 8}},
    "blt": {"encoder_hash_byte_group_vocab": 200},
    "chameleon": {"vocabulary_map": {"<image>": 110}},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "encoder-decoder": {
        "encoder": {"model_type": "bert"},
        "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "emu3": {"vocabulary_map": {"<image>": 110}, "vq_config": {"channel_multiplier": [1, 1], "attn_resolutions": []}},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "janus": {"vq_config": {"num_embeddings": 200}},
    "moonshine_streaming": {"encoder_config": {"sliding_windows": [[4, 2], [4, 2]]}},
    "molmo2": {"vision_config": {"num_hidden_layers": 2}, "adapter_config": {"vision_feature_layer": [-1, 0]}},
    "perception_lm": {"vision_config": {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 64}}},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "vibevoice": {"*": {"num_filters": 4}},
    "xlnet": {"d_model": 64, "n_head": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"mamba_headdim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        }
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm46v": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glm4v": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "glm_ocr": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glmga": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16},
    "paddleocr_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "qwen2_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True},
    "speech-encoder-decoder": {
        "encoder": {"model_type": "wav2vec2"},
        "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
    },
    "vision-encoder-decoder": {
        "encoder": {"model_type": "vit"},
        "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
    },
}

# Shapes (without the rows) of what the forward needs beside ids and mask; "ids" and "ones" are like the ids, None is
# left out.
BATCHES: dict[str, dict[str, tuple[int, ...] | str | None]] = {
    "blip": {"pixel_values": (3, 64, 64)},
    "blip-2": {"pixel_values": (3, 56, 56)},
    "instructblip": {"pixel_values": (3, 56, 56), "qformer_input_ids": "ids", "qformer_attention_mask": "ones"},
    "instructblipvideo": {"pixel_values": (4, 3, 56, 56), "qformer_input_ids": "ids", "qformer_attention_mask": "ones"},
    "canary": {"input_features": (64, 128)},
    "cohere_asr": {"input_features": (64, 128)},
    "idefics": {"pixel_values": (1, 3, 120, 120)},
    "kosmos-2": {"pixel_values": (3, 56, 56)},
    "moonshine": {"input_values": (8000,)},
    "moonshine_streaming": {"input_values": (8000,)},
    "pp_formulanet": {"pixel_values": (3, 64, 64)},
    "speech-encoder-decoder": {"input_values": (8000,)},
    "speecht5": {"input_values": (8000,)},
    "vision-encoder-decoder": {"pixel_values": (3, 64, 64)},
    "pix2struct": {"flattened_patches": (24, 770)},
    "speech_to_text": {"input_features": (128, 80)},
    "seamless_m4t": {"input_features": (64, 160)},
    "seamless_m4t_v2": {"input_features": (64, 160)},
    "whisper": {"input_features": (80, 256), "attention_mask": None},
}
