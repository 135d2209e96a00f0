"""What the noise costs: `python -m benchmarks.noise`, on a GPU `python -m benchmarks.noise --device cuda`. What it asks
of an accelerator, counted without one: `python -m benchmarks.noise --count` (benchmarks/counts.py).

A model that is its embedding alone is called in training mode, as a framework would call it: with transformers' native
hook, with `install()`, and with neither; beside them the cheapest pass over memory, an in-place addition of a constant
to a tensor of the output's size. Everything is timed in turn in each round of one process, and a ratio is the median of
the rounds' ratios. Times are thread CPU times of one thread, on a GPU the times between two events of its stream.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import thread_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.utils.hooks import RemovableHandle

from benchmarks import counts
from benchmarks.record import RESULTS, table
from neftune_plugins import NoiseConfig, install

SHAPES = ("4x512x2048", "8x2048x1024", "1x8192x4096", "1x131072x1024")
DTYPES = ("float32", "bfloat16", "float16")
VOCABULARY = 32_000
ALPHA = 5.0
LAYERS = (8, 76, 769)  # Llamas of about 100, 1,000 and 10,000 modules


class Lookup(nn.Module):
    """A model that is its embedding alone."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(*weight.shape, _weight=weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.embed_tokens(input_ids)


def noise_natively(model: nn.Module) -> RemovableHandle:
    """Put transformers' hook on, as its Trainer does. The caller removes it."""
    try:
        from transformers.integrations.neftune import neftune_post_forward_hook
    except ImportError:  # transformers 4
        from transformers.trainer_utils import neftune_post_forward_hook

    embedding = model.get_input_embeddings()
    embedding.neftune_noise_alpha = ALPHA
    return embedding.register_forward_hook(neftune_post_forward_hook)


def seconds(run: Callable[[], object], device: str) -> float:
    """What one call takes; its result is freed after."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = thread_time()
    output = run()
    taken = thread_time() - start
    del output
    return taken


def extra_memory(run: Callable[[], Tensor], device: str) -> float:
    """The largest amount of memory in use during one call beyond its output, over the size of the output."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        output = run()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
            output = run()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        # Only the profiler sees what compiled code allocates.
        changes = [event for event in events if event["name"] == "[memory]"]
        peak = in_use = 0
        for event in sorted(changes, key=lambda event: event["ts"]):
            in_use += event["args"]["Bytes"]
            peak = max(peak, in_use)
    return peak / output.nbytes - 1


def rounds_of(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """The seconds of each in each round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {name: taken[1:] for name, taken in times.items()}


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": middle, "low": low, "high": high}


def milliseconds(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(taken) * 1e3 for name, taken in times.items()}


# Else the compiled graph of one model is used for another one of its class that has hooks.
@torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)
def forward(shape: str, dtype: str, mode: str, rounds: int, device: str) -> dict[str, Any]:
    """One row of the tables of forwards."""
    rows, width, dim = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, VOCABULARY, (rows, width), generator=generator).to(device)
    # From full rows to half-full ones, padded at the right.
    length = torch.linspace(width, width / 2, rows).long()
    mask = (torch.arange(width) < length[:, None]).long().to(device)
    weight = nn.Parameter(torch.randn(VOCABULARY, dim, generator=generator).to(device, getattr(torch, dtype)))
    models: dict[str, Any] = {name: Lookup(weight).train() for name in ("lookup", "native", "ours", "unmeasured")}
    noise_natively(models["native"])
    with (
        install(models["ours"], NoiseConfig(alpha=ALPHA, seed=0)),
        install(models["unmeasured"], NoiseConfig(alpha=ALPHA, seed=0, metrics=False)),
    ):
        if mode == "compiled":
            # The native hook cannot be one graph.
            models = {name: torch.compile(model, fullgraph=name != "native") for name, model in models.items()}
        calls: dict[str, Callable[[], Tensor]] = {
            name: partial(model, input_ids, attention_mask=mask) for name, model in models.items()
        }
        constant = calls["lookup"]().detach()
        times = rounds_of({**calls, "add": lambda: constant.add_(1.0)}, rounds, device)
        memory = {name: extra_memory(calls[name], device) for name in ("native", "ours")}
    noise, native_noise = (
        [a - b for a, b in zip(times[name], times["lookup"], strict=True)] for name in ("ours", "native")
    )
    return {
        "shape": shape,
        "dtype": dtype,
        "mode": mode,
        "ms": milliseconds(times),
        "forward/native": ratio(times["ours"], times["native"]),
        "forward/lookup": ratio(times["ours"], times["lookup"]),
        "noise/native": ratio(noise, native_noise),
        "noise/add": ratio(noise, times["add"]),
        "metrics": ratio(times["ours"], times["unmeasured"]),
        "memory": memory,
    }


def llama(layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, vocab_size=VOCABULARY, **size)).train()


def installation(layers: int, rounds: int) -> dict[str, Any]:
    """Installing in a Llama of so many layers, and removing, in milliseconds."""
    with torch.device("meta"):
        model = llama(layers)
    times: dict[str, list[float]] = {"install": [], "remove": []}
    for _ in range(rounds):
        start = thread_time()
        handle = install(model, NoiseConfig(alpha=ALPHA))
        installed = thread_time()
        handle.remove()
        times["remove"].append(thread_time() - installed)
        times["install"].append(installed - start)
    return {"modules": sum(1 for _ in model.modules()), "ms": milliseconds(times)}


def training(rounds: int, device: str) -> dict[str, Any]:
    """A step of AdamW on a Llama of four layers and 4 x 256 tokens."""
    input_ids = torch.randint(1, VOCABULARY, (4, 256), generator=torch.Generator().manual_seed(0)).to(device)
    models = {name: llama(4).to(device) for name in ("none", "native", "unmeasured", "ours")}
    noise_natively(models["native"])

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with (
        install(models["ours"], NoiseConfig(alpha=ALPHA, seed=0)),
        install(models["unmeasured"], NoiseConfig(alpha=ALPHA, seed=0, metrics=False)),
    ):
        steps = {name: partial(step, model, torch.optim.AdamW(model.parameters())) for name, model in models.items()}
        times = rounds_of(steps, rounds, device)
    return {
        "ms": milliseconds(times),
        **{f"{name}/none": ratio(times[name], times["none"]) for name in ("native", "unmeasured", "ours")},
        "metrics": ratio(times["ours"], times["unmeasured"]),
    }


def measured(shapes: Sequence[str], dtypes: Sequence[str], rounds: int, device: str) -> dict[str, Any]:
    """Everything, as it is written to JSON."""
    torch.set_num_threads(1)
    return {
        "machine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
            "torch": torch.__version__,
            "rounds": rounds,
        },
        "forward": [
            forward(shape, dtype, mode, rounds, device)
            for mode in ("eager", "compiled")
            for shape in shapes
            for dtype in dtypes
        ],
        "installation": [installation(layers, rounds) for layers in LAYERS],
        "training": training(rounds, device),
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def forward_table(result: dict[str, Any], mode: str) -> str:
    columns = ("forward/native", "forward/lookup", "noise/native", "noise/add", "metrics")
    rows = [
        [
            row["shape"],
            row["dtype"],
            *(f"{row['ms'][name]:.2f}" for name in ("lookup", "native", "ours", "add")),
            *(f"{row[column]['median']:.2f}" for column in columns),
            *(f"{row['memory'][name]:.2f}" for name in ("native", "ours")),
        ]
        for row in result["forward"]
        if row["mode"] == mode
    ]
    times = ("lookup, ms", "native, ms", "ours, ms", "add, ms")
    return table(["shape", "type", *times, *columns, "native's memory", "our memory"], rows)


def installation_table(result: dict[str, Any]) -> str:
    rows = [[str(row["modules"]), *(f"{row['ms'][name]:.2f}" for name in row["ms"])] for row in result["installation"]]
    return table(["modules", "install, ms", "remove, ms"], rows)


def training_table(result: dict[str, Any]) -> str:
    training = result["training"]
    names = {"none": "none", "native": "native", "unmeasured": "ours, without metrics", "ours": "ours"}
    rows = [
        [shown, f"{training['ms'][name]:.1f}", f"{training[f'{name}/none']['median']:.4f}" if name != "none" else ""]
        for name, shown in names.items()
    ]
    return table(["noise", "step, ms", "to none"], rows)


def worst(result: dict[str, Any], mode: str, measure: Callable[[dict[str, Any]], float]) -> tuple[float, str]:
    """The largest of the forwards' values, and where it is."""
    rows = [row for row in result["forward"] if row["mode"] == mode]
    row = max(rows, key=measure)
    return measure(row), f"{row['shape']} {row['dtype']}"


def targets_table(result: dict[str, Any]) -> str:
    """What was to be reached, with the worst that was measured."""
    on_cuda = result["machine"]["device"].startswith("NVIDIA")
    goals: list[tuple[str, float, tuple[float, str]]] = []
    for mode, most in (("eager", 0.5 if on_cuda else 0.9), ("compiled", 0.5 if on_cuda else 0.25)):
        found = worst(result, mode, lambda row: row["forward/native"]["median"])
        goals.append((f"{mode}: forward/native", most, found))
        if on_cuda:
            goals.append((f"{mode}: noise/add", 1.5, worst(result, mode, lambda row: row["noise/add"]["median"])))
    for mode, most in (("eager", 0.15), ("compiled", 0.02)):
        goals.append((f"{mode}: memory", most, worst(result, mode, lambda row: row["memory"]["ours"])))
    installed, training = result["installation"][1], result["training"]
    goals.append(("`install()`, ms", 10, (installed["ms"]["install"], f"{installed['modules']} modules")))
    goals.append(("training step, to none", 1.01, (training["ours/none"]["median"], "")))
    goals.append(("training step, metrics", 1.005, (training["metrics"]["median"], "")))
    rows = [
        [goal, f"{most:g}", f"{value:.4g}", where, "met" if value <= most else "**missed**"]
        for goal, most, (value, where) in goals
    ]
    return table(["measure", "at most", "worst", "at", ""], rows)


def tables(result: dict[str, Any]) -> str:
    machine = result["machine"]
    spread = max(row["forward/native"]["high"] / row["forward/native"]["low"] for row in result["forward"]) - 1
    return "\n\n".join(
        [
            f"{machine['device']}, torch {machine['torch']}, {machine['rounds']} rounds. "
            f"The quartiles of forward/native are at most {spread:.0%} apart.",
            "Eager:",
            forward_table(result, "eager"),
            "Compiled:",
            forward_table(result, "compiled"),
            "`install()` and `remove()` in a Llama:",
            installation_table(result),
            "A training step of a small Llama:",
            training_table(result),
            "What was to be reached:",
            targets_table(result),
        ]
    )


def recorded() -> str:
    """The tables of the recorded runs, for the page."""
    return "\n\n".join(tables(json.loads(file.read_text())) for file in sorted(RESULTS.glob("noise-*.json")))


def recorded_counts() -> str:
    """The tables of the recorded counts, for the page."""
    return counts.tables(json.loads((RESULTS / "counts.json").read_text()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the noise costs.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help=f"rows x width x dim (default: {' '.join(SHAPES)})")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--count", action="store_true", help="count bytes and launches on an accelerator instead")
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    options = parser.parse_args(arguments)
    if options.count:
        result = counts.counted()
        print(counts.tables(result))
    else:
        result = measured(options.shapes, options.dtypes, options.rounds, options.device)
        print(tables(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
