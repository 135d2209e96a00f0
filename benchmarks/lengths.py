"""The norm of the noise on a token against the length of its example: `python -m benchmarks.lengths`.

Examples of several lengths go through a Llama in training mode, padded to the longest and packed into one row, with
transformers' native hook and with `install()`. Measured is what enters the first block beyond the embedding.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.noise import ALPHA, noise_natively
from benchmarks.record import RESULTS
from neftune_plugins import NoiseConfig, install

LENGTHS = (8, 16, 32, 64, 128, 256, 384, 512)
WIDTH = 256  # of the embedding
VOCABULARY = 1000


def measure(lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """For each hook and layout the mean norm of the noise on a token of each example."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes)).train()
    examples = [torch.randint(1, VOCABULARY, (length,)) for length in lengths]
    rows = nn.utils.rnn.pad_sequence(examples, batch_first=True)
    padded = {"input_ids": rows, "attention_mask": (rows != 0).to(torch.int64)}
    packed = {
        "input_ids": torch.cat(examples)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }
    found: dict[str, Any] = {"alpha": ALPHA, "lengths": list(lengths), "row": sum(lengths)}
    for hook in ("ours", "native"):
        installed = install(model, NoiseConfig(alpha=ALPHA)) if hook == "ours" else noise_natively(model)
        in_rows = _norms(model, padded)
        found[f"{hook}, padded"] = [in_rows[i, :length].mean().item() for i, length in enumerate(lengths)]
        in_row = _norms(model, packed)[0].split(list(lengths))
        found[f"{hook}, packed"] = [norms.mean().item() for norms in in_row]
        installed.remove()
    return found


def _norms(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The norm of the noise on each token (B, L) in one forward."""
    entered: list[Tensor] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()))
    model(**batch)
    hook.remove()
    weight = model.get_input_embeddings().weight.detach()
    return (entered[0] - nn.functional.embedding(batch["input_ids"], weight)).norm(dim=-1)


# What is drawn: the series, its name, its marker, where the name stands (at which point, how far from it).
SERIES = (
    ("ours, padded", "neftune-plugins, padded or packed", "circle", 3, (12, -10)),
    ("native, padded", "native hook, padded to 512", "square", 1, (0, -14)),
    ("native, packed", "native hook, packed into a row of {row}", "triangle", 1, (0, 26)),
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 730, 40, 350  # of the axes, in pixels
_STYLE = """\
  <style>
    svg { --back: #ffffff; --text: #24292f; --grid: #d8dee4; --ours: #0b62c4; --native: #b84a00; --packed: #7a3fb0 }
    @media (prefers-color-scheme: dark) {
      svg { --back: #1e2129; --text: #e6e9ef; --grid: #434a57; --ours: #6cb0ff; --native: #ff9d5c; --packed: #cfa4ff }
    }
    text { font: 15px system-ui, sans-serif; fill: var(--text) }
    .back { fill: var(--back) }
    .grid { stroke: var(--grid); fill: none }
    .paper { stroke: var(--text); stroke-dasharray: 5 4; fill: none }
    .s0 { fill: var(--ours) } .s1 { fill: var(--native) } .s2 { fill: var(--packed) }
    .middle { text-anchor: middle } .end { text-anchor: end }
  </style>"""


def picture(found: dict[str, Any]) -> str:
    """What was measured as SVG, both axes logarithmic; light or dark as the page is that shows it."""
    lengths, alpha = found["lengths"], found["alpha"]
    norms = [value for name, *_ in SERIES for value in found[name]]
    ticks = [0.05, 0.1, 0.2, 0.5, 1.0]
    low, high = min(*norms, ticks[0]), max(*norms, ticks[-1])

    def x(length: float) -> float:
        return _LEFT + 20 + (_RIGHT - _LEFT - 40) * math.log(length / lengths[0]) / math.log(lengths[-1] / lengths[0])

    def y(norm: float) -> float:
        return _BOTTOM - 15 - (_BOTTOM - _TOP - 30) * math.log(norm / low) / math.log(high / low)

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 420" role="img" aria-labelledby="title desc">',
        '  <title id="title">Norm of the noise on a token against the length of its example</title>',
        f'  <desc id="desc">Alpha {alpha:g}. With neftune-plugins the norm falls as alpha / sqrt(3 L), from '
        f"{found['ours, padded'][0]:.2f} at {lengths[0]} tokens to {found['ours, padded'][-1]:.2f} at {lengths[-1]}; "
        f"with the native hook it is {found['native, padded'][0]:.2f} for all examples of a batch padded to "
        f"{lengths[-1]}, and {found['native, packed'][0]:.2f} for all of a packed row of {found['row']}.</desc>",
        _STYLE,
        '  <rect class="back" width="760" height="420" rx="8"/>',
        f'  <text x="{_LEFT - 60}" y="24">norm of the noise on a token, alpha = {alpha:g}</text>',
    ]
    for tick in ticks:
        lines.append(f'  <path class="grid" d="M{_LEFT} {y(tick):.1f}H{_RIGHT}"/>')
        lines.append(f'  <text class="end" x="{_LEFT - 10}" y="{y(tick) + 5:.1f}">{tick:g}</text>')
    for length in lengths:
        lines.append(f'  <path class="grid" d="M{x(length):.1f} {_TOP}V{_BOTTOM}"/>')
        lines.append(f'  <text class="middle" x="{x(length):.1f}" y="{_BOTTOM + 22}">{length}</text>')
    lines.append(
        f'  <text class="middle" x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 50}">tokens of the example, L</text>'
    )
    first, last = (f"{x(length):.1f} {y(alpha / math.sqrt(3 * length)):.1f}" for length in (lengths[0], lengths[-1]))
    lines.append(f'  <path class="paper" d="M{first}L{last}"/>')
    beside = x(lengths[1]) + 12, y(alpha / math.sqrt(3 * lengths[1])) - 10
    lines.append(f'  <text x="{beside[0]:.1f}" y="{beside[1]:.1f}">the paper, alpha / sqrt(3 L)</text>')
    for number, (name, label, marker, place, (right, down)) in enumerate(SERIES):
        for length, norm in zip(lengths, found[name], strict=True):
            lines.append("  " + _marker(marker, x(length), y(norm), number))
        at = x(lengths[place]) + right, y(found[name][place]) + down
        lines.append(f'  <text class="s{number}" x="{at[0]:.1f}" y="{at[1]:.1f}">{label.format(**found)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _marker(kind: str, x: float, y: float, number: int) -> str:
    if kind == "circle":
        return f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    if kind == "square":
        return f'<rect class="s{number}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    return f'<path class="s{number}" d="M{x:.1f} {y - 7:.1f}l7 12h-14z"/>'


def recorded() -> str:
    """The picture of the recorded run."""
    return picture(json.loads((RESULTS / "lengths.json").read_text()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result")
    options = parser.parse_args(arguments)
    result = json.dumps(measure(), indent=1)
    print(result)
    if options.json:
        options.json.write_text(result + "\n")


if __name__ == "__main__":
    main()
