"""A tiny random Qwen2-VL, whose processor makes few patches of an image."""

from __future__ import annotations

from pathlib import Path

import torch
from neftune_transformers.tiny import CHAT_TEMPLATE, make_tiny_tokenizer

SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")


def make_tiny_qwen2_vl(folder: Path) -> Path:
    """Save a random model and its processor into `folder`, and return it."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    start, end, image, video, *_ = tokenizer.convert_tokens_to_ids(list(SPECIAL))
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 2048,
    }
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    text = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "rope_parameters": rope}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(
        text_config={**text, **heads, **special},
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    images = Qwen2VLImageProcessor(min_pixels=4 * 28**2, max_pixels=16 * 28**2)
    Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


def write_image(path: Path) -> Path:
    """Write a picture of 112 x 84 random pixels, the same each time."""
    from PIL import Image

    pixels = torch.randint(0, 256, (84, 112, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path
