"""By what a model multiplies the output of its embedding before its first block, outside of the embedding's module.

Data about model families, checked by `tests/models` against every model of transformers.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any


def _sqrt_width(module: Any) -> float:
    """sqrt(d), unless the embedding does that itself (Gemma in transformers 5)."""
    scaled_inside = any(hasattr(child, "embed_scale") for child in module.embed_tokens.modules())
    return 1.0 if scaled_inside else float(module.config.hidden_size**0.5)


SCALES: Mapping[str, Callable[[Any], float]] = {
    **dict.fromkeys(
        [
            "FalconH1Model",
            "Granite4VisionTextModel",
            "GraniteDoclingTextModel",
            "GraniteModel",
            "GraniteMoeHybridModel",
            "GraniteMoeModel",
            "GraniteMoeSharedModel",
            "GraniteMoeSWAModel",
            "GraniteSWAModel",
            "HyperCLOVAXModel",
        ],
        attrgetter("embedding_multiplier"),
    ),
    **dict.fromkeys(
        [
            "BlenderbotSmallEncoder",
            "FSMTDecoder",
            "FSMTEncoder",
            "Kosmos2TextTransformer",
            "Kosmos2_5TextTransformer",
            "MarianDecoder",
            "MarianEncoder",
            "MvpDecoder",
            "MvpEncoder",
            "PegasusDecoder",
            "PegasusEncoder",
            "Speech2TextDecoder",
            "SpeechT5TextDecoderPrenet",
        ],
        attrgetter("embed_scale"),
    ),
    **dict.fromkeys(["Gemma2Model", "GemmaModel", "T5GemmaDecoder", "T5GemmaEncoder"], _sqrt_width),
    "AfmoeModel": lambda module: module.config.hidden_size**0.5 if module.config.mup_enabled else 1.0,
    "BigBirdEmbeddings": lambda module: module.hidden_size**0.5 if module.rescale_embeddings else 1.0,
    "CTRLModel": lambda module: module.d_model_size**0.5,
    "HrmTextModel": attrgetter("embedding_scale"),
    "RecurrentGemmaModel": attrgetter("normalizer"),
}
"""The factor, from the module whose forward multiplies by it; by the name of that module's class."""
