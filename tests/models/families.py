"""What is particular to a model family: data."""

from __future__ import annotations

from typing import Any

# Fields of configurations that the rules of `tests.models.tiny` do not find.
CONFIGS: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "image_token_offset": 120,
        "audio_token_offset": 136,
        "vision_config": {"codebook_size": 16},
        "audio_config": {"codebook_size": 16},
    },
    # Its to_dict doubles the numbers of layers, and from_dict halves them.
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "sliding_attention", "mlp", "full_attention", "mlp"],
    },
    "hy_v4_vl": {
        "text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}, "qk_rope_head_dim": 8, "index_topk": 8}
    },
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
    "molmo2": {"vision_config": {"num_hidden_layers": 2}, "adapter_config": {"vision_feature_layer": [-1, 0]}},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "xlnet": {"d_model": 64, "n_head": 4},
    "xmod": {"default_language": "en_XX"},
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
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm46v": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glm4v": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "glm_ocr": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "glmga": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "paddleocr_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "qwen2_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "speech-encoder-decoder": {
        "encoder": {"model_type": "wav2vec2"},
        "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
    },
    "vision-encoder-decoder": {
        "encoder": {"model_type": "vit"},
        "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
    },
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}},
    "dots3_note_text": {"head_dim": 24},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}, "vision_config": {"architecture": "resnet10t"}},
    "florence2": {
        "vision_config": {"embed_dim": [16, 16, 16, 16], "num_heads": [1, 1, 1, 1], "num_groups": [1, 1, 1, 1]}
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "glm5_next": {"text_config": {"index_topk": 16}},
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[0, 1]], "spatial_target_layers": [1]},
    "hunyuan_vl": {"text_config": {"head_dim": 16, "rope_parameters": {"mrope_section": [2, 2, 2, 2]}}},
    "instructblip": {"image_token_index": 110, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 110, "num_query_tokens": 1},
    "blip-2": {"image_token_index": 110, "num_query_tokens": 4},
    "kosmos-2": {"latent_query_num": 4},
    "led": {"attention_window": 8},
    "pegasus_x": {"block_size": 8},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4, "encoder_config": {"sliding_windows": [[4, 2], [4, 2]]}},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 110},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [4, 6],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "xlstm": {"chunk_size": 8},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8"}},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {"mamba_headdim": 16, "n_mamba_heads": 8, "attention_hidden_size": 128, "attention_head_dim": 32},
    "qwen2_5_omni_thinker": {
        "vision_start_token_id": 110,
        "text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}},
    },
    "dots3_note": {
        "text_config": {"head_dim": 24},
        "audio_config": {"adapter_input_size": 64},
        "vision_config": {"adapter_input_size": 64},
    },
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"embed_dim": 64, "depth": 1, "num_heads": 2},
        }
    },
    "vibevoice": {"audio_config": {"num_filters": 2}, "semantic_model_config": {"num_filters": 2}},
    "vibevoice_asr": {
        "acoustic_tokenizer_chunk_size": 3200,
        "acoustic_tokenizer_encoder_config": {"num_filters": 2},
        "semantic_tokenizer_encoder_config": {"num_filters": 2},
    },
}

# Shapes (without the rows) of what the forward needs beside ids and mask; "ids" and "ones" are like the ids, None is
# left out.
BATCHES: dict[str, dict[str, tuple[int, ...] | str | None]] = {
    "blip": {"pixel_values": (3, 64, 64)},
    "blip-2": {"pixel_values": (3, 56, 56)},
    "canary": {"input_features": (64, 128)},
    "cohere_asr": {"input_features": (64, 128)},
    "dia": {"decoder_input_ids": ("ids", 3, 20, 9), "labels": None},
    "git": {"pixel_values": (3, 64, 64)},
    "idefics": {"pixel_values": (1, 3, 56, 56), "image_attention_mask": ("ones", 3, 24, 1)},
    "instructblip": {
        "pixel_values": (3, 56, 56),
        "qformer_input_ids": ("ids", 3, 24),
        "qformer_attention_mask": "ones",
    },
    "instructblipvideo": {
        "pixel_values": (4, 3, 56, 56),
        "qformer_input_ids": ("ids", 3, 24),
        "qformer_attention_mask": "ones",
    },
    "kosmos-2": {"pixel_values": (3, 56, 56), "image_embeds_position_mask": ("marked", 4)},
    "kyutai_speech_to_text": {"input_ids": ("ids", 3, 24, 33)},
    "molmo2": {"mm_token_type_ids": "zeros"},
    "moonshine": {"input_values": (8000,)},
    "moonshine_streaming": {"input_values": (8000,)},
    "musicgen": {"input_ids": ("ids", 12, 24), "labels": None},
    "musicgen_melody": {"input_ids": ("ids", 12, 24), "labels": None},
    "pi0": {
        "pixel_values": (1, 3, 56, 56),
        "state": (64,),
        "actions": (16, 64),
        "pixel_attention_mask": ("ones", 3, 1),
    },
    "pix2struct": {"flattened_patches": ("uniform", 24, 66)},
    "pp_formulanet": {"pixel_values": (3, 64, 64), "input_ids": None, "attention_mask": None},
    "SeamlessM4TForSpeechToText": {"input_features": (64, 64), "attention_mask": None},
    "SeamlessM4Tv2ForSpeechToText": {"input_features": (64, 64), "attention_mask": None},
    "speech-encoder-decoder": {"input_values": (8000,)},
    "speech_to_text": {"input_features": (128, 80)},
    "speecht5": {"input_values": (8000,)},
    "udop": {"bbox": ("uniform", 24, 4)},
    "vision-encoder-decoder": {"pixel_values": (3, 64, 64), "attention_mask": None},
    "voxtral_realtime": {"input_features": (128, 192)},
    "WhisperForConditionalGeneration": {"input_features": (80, 256), "attention_mask": None},
}

# The image tokens that the first columns must hold, and their number.
IMAGES: dict[str, tuple[int, int]] = {
    "blip-2": (110, 4),
    "instructblip": (110, 4),
    "instructblipvideo": (110, 4),
    "kosmos-2": (110, 4),
}

# Classes with another verdict than "right" of ours, and why: the tests fail when one becomes better, too.
EXPECTED: dict[str, tuple[str, str]] = {
    "CpmAntForCausalLM": ("refused", "prompt ids are put before the batch's"),
    "DiaForConditionalGeneration": (
        "refused",
        "the model has no get_input_embeddings; the decoder's ids are codes of audio",
    ),
    "Gemma4AssistantForCausalLM": ("", "a drafter: it reads another model's hidden states and ignores ids"),
    "Gemma4UnifiedAssistantForCausalLM": ("", "a drafter: it reads another model's hidden states and ignores ids"),
    "KyutaiSpeechToTextForConditionalGeneration": ("refused", "the ids are audio codes next to the text"),
    "Llama4ForConditionalGeneration": (
        "",
        "without noise too, its forward pass raises an AttributeError in transformers 5.24",
    ),
    "MusicgenForCausalLM": ("refused", "the ids are codes of audio"),
    "MusicgenMelodyForCausalLM": ("refused", "the ids are codes of audio"),
    "XLNetLMHeadModel": ("refused", "the ids are transposed"),
}

# Of every sort one: scaled in and behind the embedding, tied and untied decoders, prompts, images, sound, no attention.
QUICK = {
    ("bart", "BartForConditionalGeneration"),
    ("bert", "BertLMHeadModel"),
    ("gemma3_text", "Gemma3ForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("granite", "GraniteForCausalLM"),
    ("llama", "LlamaForCausalLM"),
    ("llava", "LlavaForConditionalGeneration"),
    ("mamba", "MambaForCausalLM"),
    ("marian", "MarianMTModel"),
    ("opt", "OPTForCausalLM"),
    ("pegasus", "PegasusForConditionalGeneration"),
    ("t5", "T5ForConditionalGeneration"),
    ("whisper", "WhisperForConditionalGeneration"),
}
