"""Any architecture of transformers, tiny and with random weights, and a batch that it can train on.

A configuration is made from its class's defaults by rules on the names of its fields, the same for all architectures;
what the rules cannot know stands in `tests.models.families`.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto import modeling_auto

from tests.models.families import BATCHES, CONFIGS, IMAGES

WIDTH = 64
HEAD_WIDTH = 16
VOCABULARY = 200
WORDS = range(5, 100)  # ids below and above are special tokens
MAX_PARAMETERS = 20_000_000
# The widths differ, so that encoder and decoder are told apart by them.
LENGTHS = (24, 17, 9)
DECODER_LENGTHS = (20, 14, 8)

MAPPINGS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "speech": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}

# The first rule whose pattern matches a field's whole name gives its value; zeros, None and booleans stay.
_SIZES: list[tuple[str, int | float]] = [
    (r".*(dropout|dropout_p|drop_rate|drop_path_rate|dropout_rate|dropout_prob|pdrop|layerdrop)(_rate|_prob)?", 0.0),
    (r"(mask_(time|feature)_prob|.*jitter_noise)", 0.0),
    (r"(embedding_multiplier|scale_emb)", 3.0),
    (r".*type_vocab_size", 2),
    (r".*vocab_size.*", VOCABULARY),
    (r"qk_head_dim", 24),
    (r"qk_rope_head_dim", 8),
    (r"mamba_(n|num)_heads", 8),
    (r"rotary_dim", 8),
    (r"num_feat_extract_layers", 7),
    (r"num_filters|base_channels|.*conv_channels|upsample_initial_channel|upsample_groups", 32),
    (r"num_position_embeddings", 16),
    (r"(.*_)?(head_dim|d_kv|d_head|dim_head|head_size|kv_channels|headdim)", HEAD_WIDTH),
    (r".*(key_value_heads|kv_heads|kv_n_heads|query_groups)", 2),
    (r"(.*_)?heads?(_per_layer)?", 4),
    (r".*lora_rank", 16),
    (r".*(top_?k|experts_per_tok(en)?|moe_k)", 2),
    (r"(n_group|num_expert_group|topk_group|n_groups|mamba_n_?groups)", 1),
    (r".*shared_experts", 1),
    (r".*experts", 4),
    (r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index|moe_layer_end_index)", 1),
    (
        r".*(intermediate_size|ffn_dim|d_ff|dff|dim_ff|d_inner|ffn_hidden_size|mlp_dim|feed_forward_size"
        r"|intermediate_size_mlp|expert_dim)",
        WIDTH,
    ),
    (
        r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|emb_dim|embedding_dim|embedding_size|hidden_dim|projection_dim|dim"
        r"|width|output_dim|proj_dim|hidden_size_global|adapter_in_dim|adapter_out_dim|input_dim)",
        WIDTH,
    ),
    (r"(.*_)?(state_size|d_state)", 8),
    (r"(.*_)?chunk_size", 16),
    (r".*dt_rank|time_step_rank", 4),
    (r".*(layers|n_layer|depth|_blocks)", 2),
    (r"(.*max_(position_embeddings|.*positions?|seq_len)|n_positions|n_ctx|context_length)", 128),
    (r"(.*_)?sliding_window(_size)?|attention_window_size", 8),
]
_TOKEN = re.compile(r".*(token_id|token_ids|token_index)|im_.*_id|image_patch_id|suppress_tokens")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "depth")


def model_classes() -> dict[tuple[str, str], list[str]]:
    """Each model type and class of the mappings, with the names of the mappings it is in."""
    found: dict[tuple[str, str], list[str]] = {}
    for mapping, names in MAPPINGS.items():
        for model_type, classes in names.items():
            for name in (classes,) if isinstance(classes, str) else classes:
                found.setdefault((model_type, name), []).append(mapping)
    return dict(sorted(found.items()))


def tiny_config(model_type: str) -> PretrainedConfig:
    """The configuration of a model type with everything small."""
    overrides = CONFIGS.get(model_type, {})
    # A composite of any two models has no default: its parts are named with their types.
    parts = {
        name: _changed(tiny_config(value["model_type"]).to_dict(), value)
        for name, value in overrides.items()
        if isinstance(value, dict) and "model_type" in value
    }
    default = AutoConfig.for_model(
        model_type, **{name: AutoConfig.for_model(**copy.deepcopy(part)) for name, part in parts.items()}
    )
    return type(default).from_dict(_changed(_small(default.to_dict(), {}), {**overrides, **parts}))


def _changed(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with `changes`, dictionaries in dictionaries."""
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(fields.get(name), dict):
            _changed(fields[name], value)
        else:
            fields[name] = copy.deepcopy(value)
    return fields


def _small(fields: Mapping[str, Any], tokens: dict[int, int]) -> dict[str, Any]:
    """`fields` by the rules. Ids of special tokens that are not small get one of `tokens`, the same for the same id."""
    layers = _kept_layers(fields)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        name = str(name)
        if name == "use_cache":
            small[name] = False
            continue
        if name in ("transformers_version", "architectures", "label2id", "id2label"):
            continue
        if name == "per_layer_config":
            by_layer = {int(layer): _small(value, tokens) for layer, value in value.items()}
            small[name] = {number: by_layer[layer] for number, layer in enumerate(layers) if layer in by_layer}
            continue
        if isinstance(value, dict):
            small[name] = _small(value, tokens) if name != "rope_parameters" else _small_rope(value)
        elif isinstance(value, list):
            small[name] = _small_list(name, value, fields, layers, tokens)
        elif isinstance(value, bool):
            small[name] = True if name in ("scale_embedding", "rescale_embeddings") else value
        elif isinstance(value, (int, float)):
            small[name] = _small_number(name, value, fields, layers, tokens)
        else:
            small[name] = value
    return small


def _number_of_layers(fields: Mapping[str, Any]) -> int:
    return next((fields[name] for name in _LAYERS if isinstance(fields.get(name), int)), 0)


def _kept_layers(fields: Mapping[str, Any]) -> list[int]:
    """One layer of each kind, at least two."""
    number = _number_of_layers(fields)
    kinds = [value for value in fields.values() if isinstance(value, list) and len(value) == number]
    seen: dict[str, int] = {}
    for layer in range(number):
        seen.setdefault(repr([kind[layer] for kind in kinds if isinstance(kind[layer], str)]), layer)
    kept = list(seen.values())[:4]
    for layer in range(number):
        if len(kept) < 2 and layer not in kept:
            kept.append(layer)
    return sorted(kept)


def _small_number(name: str, value: float, fields: Mapping[str, Any], layers: list[int], tokens: dict) -> float:
    if _TOKEN.fullmatch(name):
        return _small_token(value, tokens)
    if name == "image_size":
        patch = fields.get("patch_size")
        return 4 * patch if isinstance(patch, int) else 64
    if name in _LAYERS and layers:
        return min(len(layers), value)
    if value == 0:
        return value
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            if size == 2 and "heads" in name and value == fields.get("num_attention_heads"):
                return 4
            if name == "head_dim" and value == fields.get("qk_rope_head_dim"):
                return 8
            return size if isinstance(value, float) or value > size or "vocab" in name or size >= 16 else value
    return value


def _small_token(value: int, tokens: dict[int, int]) -> int:
    return value if value < WORDS.start else tokens.setdefault(value, WORDS.stop + len(tokens))


def _small_list(name: str, value: list[Any], fields: Mapping[str, Any], layers: list[int], tokens: dict) -> list[Any]:
    if _TOKEN.fullmatch(name):
        return [_small_token(token, tokens) for token in value]
    if value and len(value) == _number_of_layers(fields):
        return [value[layer] for layer in layers]
    if name == "depths":
        return [1 for _ in value]
    if name in ("conv_dim", "tdnn_dim"):
        return [32 for _ in value]
    if name == "image_size":
        patch = fields["patch_size"]
        return [4 * (patch[0] if isinstance(patch, list) else patch)] * 2
    if name == "mrope_section":
        return [2, 3, 3]
    if re.fullmatch(r".*(layers|_idxs|_indexes|_indices|layer_ids)", name) and value and isinstance(value[0], int):
        return [len(layers) - 1] if value[0] >= 0 else value[:1]
    return [_small(entry, tokens) if isinstance(entry, dict) else entry for entry in value]


def _small_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and factors of rotary embeddings cut to the rotated half of a head."""
    small = copy.deepcopy(dict(rope))
    for value in (small, *[value for value in small.values() if isinstance(value, dict)]):
        half = int(HEAD_WIDTH * value.get("partial_rotary_factor", 1.0)) // 2
        if isinstance(value.get("mrope_section"), list):
            others = len(value["mrope_section"]) - 1
            part = half // (others + 1)
            value["mrope_section"] = [half - part * others] + [part] * others
        for name in ("long_factor", "short_factor"):
            if isinstance(value.get(name), list):
                value[name] = value[name][:half]
    return small


def tiny_model(model_type: str, class_name: str) -> nn.Module:
    """A model of that class with random weights, in training mode.

    Raises whatever transformers does where it cannot be built, and ValueError where it would not be small.
    """
    model_class = getattr(transformers, class_name)
    config = tiny_config(model_type)
    # A class for text takes the text part of a composite configuration.
    config = next((part for part in _parts(config) if type(part) is model_class.config_class), config)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters are not tiny")
    torch.manual_seed(0)
    return model_class(config).train()


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """A configuration and those in it."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name)
        if isinstance(part, PretrainedConfig):
            yield from _parts(part)


def batch(model: nn.Module, model_type: str) -> dict[str, Tensor]:
    """Ids (3, 24) of 24, 17 and 9 words and padding, with mask and labels; (3, 20) of 20, 14 and 8 for a decoder that
    has an encoder; and whatever else the model cannot do without."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    given: dict[str, Tensor] = {}
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    pad = pad if isinstance(pad, int) else 0

    def words(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        mask_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids_BL = torch.randint(WORDS.start, WORDS.stop, mask_BL.shape, generator=generator)
        return torch.where(mask_BL, ids_BL, pad), mask_BL.to(torch.int64)

    ids_BL, mask_BL = words(LENGTHS)
    if getattr(config, "is_encoder_decoder", False):
        decoder_ids_BL, decoder_mask_BL = words(DECODER_LENGTHS)
        given |= {"decoder_input_ids": decoder_ids_BL, "decoder_attention_mask": decoder_mask_BL}
        labels_BL, labels_mask_BL = decoder_ids_BL, decoder_mask_BL
    else:
        labels_BL, labels_mask_BL = ids_BL, mask_BL
    given |= {"input_ids": ids_BL, "attention_mask": mask_BL}
    given["labels"] = torch.where(labels_mask_BL == 1, labels_BL, -100)
    for name, kind in (BATCHES.get(type(model).__name__) or BATCHES.get(model_type, {})).items():
        if kind is None:
            del given[name]
        elif kind == "ones":
            given[name] = torch.ones_like(ids_BL)
        elif kind == "zeros":
            given[name] = torch.zeros_like(ids_BL)
        elif kind[0] == "ones":
            given[name] = torch.ones(kind[1:], dtype=torch.int64)
        elif kind[0] == "ids":
            given[name] = torch.randint(WORDS.start, WORDS.stop, kind[1:], generator=generator)
        elif kind[0] == "marked":
            given[name] = (torch.arange(ids_BL.shape[1]) < kind[1]).expand_as(ids_BL).to(torch.int64)
        elif kind[0] == "uniform":
            given[name] = torch.rand(len(LENGTHS), *kind[1:], generator=generator)
        else:
            given[name] = torch.randn(len(LENGTHS), *kind, generator=generator)
    if model_type in IMAGES:
        token, number = IMAGES[model_type]
        given["input_ids"][:, :number] = token
    known = set(inspect.signature(model.forward).parameters)
    if "kwargs" in known:
        known.add("attention_mask")
    return {name: value for name, value in given.items() if name in known}
