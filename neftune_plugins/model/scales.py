"""The factors by which models multiply the output of their embedding before the first block, outside of the embedding.

This is data about model families. `tests/models` checks it against every model of transformers.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any


def _sqrt_width(module: Any) -> float:
    """Return sqrt(d), or 1 if the embedding itself multiplies by it (Gemma in transformers 5)."""
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
"""For the class name of a module that multiplies in its forward: a function from the module to the factor."""
