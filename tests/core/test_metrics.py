"""What is logged of the noise, against what a look from outside sees."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from neftune_plugins import Handle, NoiseConfig, hookimpl, install
from neftune_plugins.model.audit import EVERY
from neftune_plugins.noise import kernels
from neftune_plugins.plugins.manager import plugin_manager
from tests.support.documentation import shown
from tests.support.models import ToyModel, examples, padded

LENGTHS = [5, 12, 8]


def seen(model: ToyModel, ids: Tensor, mask: Tensor) -> dict[str, float]:
    """The metrics of one forward of real tokens, from what came out of the embedding."""
    real = mask.bool()
    clean = torch.nn.functional.embedding(ids, model.embed_tokens.weight.detach())[real].double()
    noise = model.entered.detach()[real].double() - clean
    return {
        "neftune/noise_norm": math.sqrt(noise.square().sum() / len(ids)),
        "neftune/signal_to_noise_db": 10 * math.log10(clean.square().sum() / noise.square().sum()),
        "neftune/sequences": len(ids),
        "neftune/mean_length": int(real.sum()) / len(ids),
    }


class Operations(TorchDispatchMode):
    """The names of the operations that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "gaussian", "bernoulli"])
def test_metrics_are_those_of_the_noise_that_entered(kind, compiled):
    torch.compiler.reset()
    ids, mask = padded(examples(LENGTHS))
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5, type=kind)) as handle:
        assert handle.metrics() == {}
        forward = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
        for step in range(2):
            handle.step = step
            forward(input_ids=ids, attention_mask=mask)
            metrics = handle.metrics()
            expected = 5 * {"uniform": 3**-0.5}.get(kind, 1.0)
            want = seen(model, ids, mask) | {"neftune/alpha": 5, "neftune/noise_norm_expected": expected}
            assert metrics == pytest.approx(want, rel=1e-5)
            # Standard error of the root mean square of n draws, of which the fourth moment is at most the normal's 3.
            error = math.sqrt(2 / (4 * sum(LENGTHS) * 48))
            assert abs(metrics["neftune/noise_norm"] / expected - 1) < 5 * error
            assert handle.metrics() == {}


def test_metrics_are_of_all_forwards_since_they_were_last_asked_for():
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5, schedule="linear"), steps=4) as handle:
        energies = []
        for step, lengths in enumerate(([3, 9], [4], [6, 6, 6])):
            ids, mask = padded(examples(lengths, seed=step))
            handle.step = step
            model(input_ids=ids, attention_mask=mask)
            energies.append(seen(model, ids, mask)["neftune/noise_norm"] ** 2 * len(lengths))
            with torch.no_grad():
                model(input_ids=ids, attention_mask=mask)
        metrics = handle.metrics()
    assert metrics["neftune/alpha"] == 2.5
    assert metrics["neftune/sequences"] == 6
    assert metrics["neftune/mean_length"] == pytest.approx(34 / 6)
    assert metrics["neftune/noise_norm"] == pytest.approx(math.sqrt(sum(energies) / 6), rel=1e-5)
    theory = math.sqrt((2 * 5**2 + 3.75**2 + 3 * 2.5**2) / 3 / 6)
    assert metrics["neftune/noise_norm_expected"] == pytest.approx(theory, rel=1e-5)


def test_each_example_of_a_packed_row_is_a_sequence():
    one, two = examples([7, 4])
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5)) as handle:
        positions = torch.tensor([[*range(7), *range(4)]])
        model(input_ids=torch.tensor([one + two]), position_ids=positions)
        metrics = handle.metrics()
    assert (metrics["neftune/sequences"], metrics["neftune/mean_length"]) == (2, 5.5)
    assert metrics["neftune/noise_norm_expected"] == pytest.approx(5 / math.sqrt(3))


def test_the_length_of_the_native_hook_shows_as_less_noise():
    ids, mask = padded(examples([5, 20]))
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5, length="padded")) as handle:
        model(input_ids=ids, attention_mask=mask)
        metrics = handle.metrics()
    assert metrics["neftune/noise_norm"] == pytest.approx(seen(model, ids, mask)["neftune/noise_norm"], rel=1e-5)
    assert metrics["neftune/noise_norm_expected"] == pytest.approx(5 / math.sqrt(3) * math.sqrt((5 / 20 + 1) / 2))


def test_half_precision_is_measured_in_float32():
    ids, mask = padded(examples([50] * 40))
    model = ToyModel().to(torch.float16).train()
    with install(model, NoiseConfig(alpha=300)) as handle:
        model(input_ids=ids, attention_mask=mask)
        metrics = handle.metrics()
    assert metrics == pytest.approx(metrics | seen(model, ids, mask), rel=1e-3)


def test_recomputed_activations_are_counted_once():
    class Checkpointed(ToyModel):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.lm_head(checkpoint(self.embed_tokens, input_ids, use_reentrant=False).tanh())

    ids, _ = padded(examples([6, 6]))
    model = Checkpointed().train()
    with install(model, NoiseConfig(alpha=5)) as handle:
        model(input_ids=ids).sum().backward()
        assert handle.metrics()["neftune/sequences"] == 2


def test_metrics_make_no_graph_of_their_own():
    torch.compiler.reset()
    ids, mask = padded(examples(LENGTHS))
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5)) as handle:
        torch._dynamo.utils.counters.clear()
        forward = torch.compile(model, backend="eager", fullgraph=True)
        for step in range(4):
            handle.step = step
            forward(input_ids=ids, attention_mask=mask).sum().backward()
            if step % 2:
                assert handle.metrics()["neftune/sequences"] == 6
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_forward_waits_for_no_device_and_costs_nothing_when_off(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "0")  # a kernel sums in its own loop
    ids, mask = padded(examples(LENGTHS))
    model = ToyModel().train()
    counts = {}
    for metrics in (True, False):
        with install(model, NoiseConfig(alpha=5, metrics=metrics)) as handle, Operations() as operations:
            handle.step = 0
            model(input_ids=ids, attention_mask=mask)  # the audit looks at the first at once
            handle.metrics()
            for handle.step in (EVERY, EVERY + 1):
                operations.names.clear()
                model(input_ids=ids, attention_mask=mask)
                assert "aten::_local_scalar_dense" not in operations.names
        counts[metrics] = operations.names.count("aten::linalg_vector_norm")
        assert bool(handle.metrics()) == metrics
    assert counts == {True: 2, False: 0}


def test_plugins_add_metrics_of_their_own():
    class Mine:
        @hookimpl
        def neftune_metrics(self, handle: Handle) -> dict[str, float]:
            return {"mine/step": float(handle.step), "neftune/alpha": -1.0}

    plugin_manager().register(Mine(), "mine")
    try:
        ids, mask = padded(examples(LENGTHS))
        model = ToyModel().train()
        with install(model, NoiseConfig(alpha=5)) as handle:
            handle.step = 3
            model(input_ids=ids, attention_mask=mask)
            metrics = handle.metrics()
    finally:
        plugin_manager().unregister(name="mine")
    assert metrics["mine/step"] == 3
    assert metrics["neftune/alpha"] == -1, "a plugin's word counts more than ours"
    assert metrics["neftune/sequences"] == 3


def test_the_code_on_the_page(capsys):
    class WithLoss(ToyModel):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=super().forward(input_ids, attention_mask).logsumexp(-1).mean())

    loop, plugin = shown("docs/metrics.md", "python", 0), shown("docs/metrics.md", "python", 1)
    names: dict[str, object] = {}
    exec(plugin, names)
    plugin_manager().register(SimpleNamespace(**names), "page")
    try:
        ids, mask = padded(examples(LENGTHS))
        exec(loop, {"model": WithLoss().eval(), "batches": [{"input_ids": ids, "attention_mask": mask}] * 4})
    finally:
        plugin_manager().unregister(name="page")
    printed = [eval(line) for line in capsys.readouterr().out.splitlines()]
    assert [metrics["neftune/step"] for metrics in printed] == [1, 2, 3, 4]
    assert ["neftune/clean_loss" in metrics for metrics in printed] == [False, True, False, True]
    assert all(metrics["neftune/sequences"] == 3 for metrics in printed)
