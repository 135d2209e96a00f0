"""Finds the language models in Ludwig's models."""

from typing import Any, NamedTuple

from ludwig.models.llm import LLM
from ludwig.utils.strings_utils import SpecialSymbol
from ludwig.utils.tokenizers import get_tokenizer_from_registry

from neftune_ludwig.layout import of_encoder, of_model
from neftune_plugins import LayoutReader


class LanguageModel(NamedTuple):
    """A language model in one of Ludwig's models.

    owner: Ludwig's module with the transformers model as `model`.
    parameters: its `model_parameters`.
    feature: the configuration of its input feature.
    """

    owner: Any
    parameters: Any
    feature: Any

    def layout(self) -> LayoutReader:
        """The reader that knows how its batches are padded."""
        if isinstance(self.owner, LLM):
            return of_model(self.owner.tokenizer)
        return of_encoder(_padding(self.feature.preprocessing))


def language_models(model: Any) -> dict[str, LanguageModel]:
    """Return the trained language models in one of Ludwig's models, by the names of their features."""
    features = model.config_obj.input_features
    if isinstance(model, LLM):
        return {features[0].name: LanguageModel(model, model.config_obj.model_parameters, features[0])}
    found = {}
    for feature in features:
        if feature.encoder.type != "llm":
            continue
        owner = model.input_features.get(feature.name).encoder_obj
        of_another = feature.tied and feature.tied != feature.name
        if of_another and model.input_features.get(feature.tied).encoder_obj is owner:
            continue
        found[feature.name] = LanguageModel(owner, feature.encoder.model_parameters, feature)
    return found


def _padding(preprocessing: Any) -> int:
    """Return the id that pads a text feature. Ludwig writes it into the encoder's configuration, but not when it loads
    a saved model."""
    if preprocessing.tokenizer != "hf_tokenizer":
        return int(SpecialSymbol.PADDING.value)
    tokenizer = get_tokenizer_from_registry(preprocessing.tokenizer)(
        vocab_file=preprocessing.vocab_file,
        pretrained_model_name_or_path=preprocessing.pretrained_model_name_or_path,
    )
    return int(tokenizer.convert_token_to_id(tokenizer.get_pad_token()))
