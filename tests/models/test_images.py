"""Models that read images: noise on the text alone, with the length of all that the language model reads."""

import pytest
import torch

from neftune_plugins import NoiseConfig
from tests.models.tiny import WORDS, tiny_model
from tests.support import specification
from tests.support.blocks import entered_blocks

CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
}


@pytest.mark.parametrize("model_type", CLASSES)
def test_noise_is_on_text_alone(model_type):
    model = tiny_model(model_type, CLASSES[model_type])
    image_token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    size = model.config.vision_config.image_size
    patches = (size // model.config.vision_config.patch_size) ** 2
    if model_type == "idefics3":
        patches //= model.config.scale_factor**2
    ids = torch.randint(WORDS.start, WORDS.stop, (2, patches + 9), generator=torch.Generator().manual_seed(0))
    ids[:, 1 : 1 + patches] = image_token
    mask = torch.ones_like(ids)
    mask[1, -4:] = 0
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    batch["pixel_values"] = pixels[:, None] if model_type == "idefics3" else pixels
    if model_type == "paligemma":
        batch["token_type_ids"] = torch.zeros_like(ids)
    blocks = (block for name, block in model.named_modules() if name.endswith("layers.0") and "vision" not in name)
    ((noisy, clean),) = entered_blocks(model, [next(blocks)], batch, NoiseConfig(alpha=5, seed=1), step=3)
    difference = noisy - clean
    assert clean[:, 1 : 1 + patches].any()
    assert not difference[ids == image_token].any()
    assert not difference[mask == 0].any()
    for row in range(2):
        real = ids[row][mask[row] == 1].tolist()
        expected = torch.tensor(specification.noise(real, difference.shape[-1], alpha=5, seed=1, step=3))
        is_text = torch.tensor(real) != image_token
        torch.testing.assert_close(difference[row, : len(real)][is_text], expected[is_text], rtol=0, atol=1e-5)
