"""Provides the built-in noise types, the reader of batch layouts and the finder of embeddings, through the same hooks
as any plugin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neftune_plugins.model import structure
from neftune_plugins.model.scales import SCALES
from neftune_plugins.noise.checks import CheckedReader
from neftune_plugins.noise.draw import NoiseType
from neftune_plugins.noise.kernels.form import KernelDraw
from neftune_plugins.noise.layout import LayoutReader
from neftune_plugins.plugins.hookspecs import hookimpl


def _uniform(bits: Tensor) -> Tensor:
    # 24 bits: what a float32 in [-1, 1) holds exactly.
    return (bits >> 8).to(torch.float32)


def _gaussian(bits: Tensor) -> Tensor:
    # The middle of each of 2^24 intervals, so that neither end is infinite. In float64, because libraries and devices
    # disagree about the last bit of a float32 erfinv.
    bits = bits.bitwise_right_shift_(8).to(torch.float64)  # in place, and the name again: so little is held at once
    return bits.mul_(2**-23).add_(2**-24).erfinv_().mul_(math.sqrt(2)).to(torch.float32)


def _bernoulli(bits: Tensor) -> Tensor:
    return ((bits >> 31) | 1).to(torch.float32)


def _of_triton(name: str) -> Callable[[], Any]:
    """The draw of that name, whose import needs Triton."""

    def find() -> Any:
        from neftune_plugins.noise.kernels import accelerator

        return getattr(accelerator, name)

    return find


@hookimpl(trylast=True)
def neftune_noise_types() -> Iterable[NoiseType]:
    return [
        NoiseType(
            "uniform",
            _uniform,
            rms=3**-0.5,
            unit=2.0**-23,
            summary="U(-1, 1), the paper's",
            kernel=KernelDraw("(float)(bits >> 8)", _of_triton("uniform")),
        ),
        NoiseType("gaussian", _gaussian, rms=1.0, summary="N(0, 1)"),
        NoiseType(
            "bernoulli",
            _bernoulli,
            rms=1.0,
            summary="-1 or +1, each with probability 1/2",
            kernel=KernelDraw("(float)((bits >> 31) | 1)", _of_triton("bernoulli")),
        ),
    ]


@hookimpl(trylast=True)
def neftune_layout_reader() -> LayoutReader:
    return CheckedReader()


@hookimpl(trylast=True)
def neftune_embeddings(model: nn.Module) -> Sequence[nn.Module] | None:
    """The input embedding, that of a decoder which has its own, and every other module that looks tokens up in the
    same parameters (encoder and decoder of T5 and BART own such twins and never call the shared one)."""
    parts = [part for part in (model, structure.decoder(model)) if part is not None]
    own = [structure.input_embedding(part) for part in parts]
    found = dict.fromkeys(embedding for embedding in own if embedding is not None)
    shared = {id(parameter) for embedding in found for parameter in embedding.parameters()}
    for module in structure.walk(model):
        # An encoder's or decoder's own, which an adapter may wrap.
        embedding = structure.own_embedding(module)
        if embedding is not None and any(id(parameter) in shared for parameter in embedding.parameters()):
            found[embedding] = None
        # An output layer tied to the embedding shares its weight, too; PEFT shares containers of parameters.
        is_lookup = not isinstance(module, nn.Linear | nn.ParameterDict | nn.ParameterList)
        if is_lookup and any(id(parameter) in shared for parameter in module._parameters.values()):
            found[module] = None
    wrappers = [module for module in structure.walk(model) if any(inner in found for inner in _wrapped(module))]
    return _without_wrapped(model, [*found, *(module for module in wrappers if module not in found)]) or None


def _wrapped(module: nn.Module) -> list[nn.Module]:
    """What an adapter's layer wraps, by the names that PEFT gives it."""
    children = (module._modules.get(name) for name in ("base_layer", "original_module"))
    return [child for child in children if child is not None]


def _without_wrapped(model: nn.Module, found: Sequence[nn.Module]) -> list[nn.Module]:
    """Of an embedding in another one (PEFT wraps) the outer, but the inner where the model also reaches it past the
    outer (transformers 4: PEFT wraps `shared` of T5, encoder and decoder keep what was there)."""
    left_out = set()
    for outer in found:
        inside = set(structure.walk(outer))
        for inner in inside.intersection(found) - {outer}:
            beside = (module for module in structure.above(model, inner) if module not in inside)
            is_bypassed = any(child is inner for module in beside for child in module.children())
            left_out.add(outer if is_bypassed else inner)
    return [module for module in found if module not in left_out]


@hookimpl(trylast=True)
def neftune_embedding_scale(model: nn.Module, embedding: nn.Module) -> float | None:
    """See `SCALES`."""
    for module in structure.above(model, embedding):
        for kind in type(module).__mro__:
            if kind.__name__ in SCALES:
                return float(SCALES[kind.__name__](module))
    return None
