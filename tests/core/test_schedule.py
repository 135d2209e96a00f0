"""Alpha over a run: against the specification, in eager mode and compiled, and without the steps that it needs."""

import pytest
import torch

from neftune_plugins import NoiseConfig, NoiseConfigError, install
from tests.support import specification
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded

SCHEDULES = ["constant", "linear", "cosine"]
STEPS = 7


def silent_model() -> ToyModel:
    """What comes out of its embedding is the noise, to the bit."""
    model = ToyModel().train()
    torch.nn.init.zeros_(model.embed_tokens.weight)
    return model


def entered(model: ToyModel, row: list[int]) -> list[list[float]]:
    model(torch.tensor([row]))
    assert model.entered is not None
    return model.entered[0].tolist()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_noise_of_every_step_is_the_specified_one(schedule):
    [row] = examples([6])
    model = silent_model()
    with install(model, NoiseConfig(alpha=7.3, schedule=schedule, seed=1), steps=STEPS) as handle:
        for step in range(STEPS + 2):
            handle.step = step
            alpha = specification.alpha_at(schedule, 7.3, step, STEPS)
            assert handle.alpha == alpha
            assert entered(model, row) == specification.noise(row, 48, alpha=alpha, seed=1, step=step)


def test_schedules_begin_at_alpha_and_end_at_zero():
    seen = {}
    for schedule in SCHEDULES:
        model = silent_model()
        with install(model, NoiseConfig(alpha=8, schedule=schedule), steps=4) as handle:
            seen[schedule] = []
            for handle.step in range(6):
                model(torch.tensor([[1, 2]]))
                seen[schedule].append(handle.alpha)
    assert seen["constant"] == [8, 8, 8, 8, 8, 8]
    assert seen["linear"] == [8, 6, 4, 2, 0, 0]
    assert seen["cosine"] == pytest.approx([8, 4 + 4 * 0.5**0.5, 4, 4 - 4 * 0.5**0.5, 0, 0])


def test_a_resumed_run_is_on_the_schedule_of_the_present_number_of_steps():
    [row] = examples([6])
    noises = []
    for steps in (4, 4, 8):
        model = silent_model()
        with install(model, NoiseConfig(alpha=5, schedule="cosine"), steps=steps) as handle:
            handle.step = 3
            noises.append(entered(model, row))
    assert noises[0] == noises[1] != noises[2]
    assert noises[2] == specification.noise(row, 48, alpha=specification.alpha_at("cosine", 5, 3, 8), seed=0, step=3)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_graph_for_all_steps_with_the_noise_of_eager_mode(schedule, backend):
    ids, mask = padded(examples([5, 12, 8]))
    model = silent_model()
    torch.compiler.reset()
    with install(model, NoiseConfig(alpha=5.1, schedule=schedule), steps=STEPS) as handle:
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for step in range(STEPS):
            handle.step = step
            seen = []
            for module in (model, compiled):
                module(input_ids=ids, attention_mask=mask).sum().backward()
                seen.append(model.entered.detach())
            assert seen[0].any()
            assert torch.equal(*seen)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
    torch.compiler.reset()


@pytest.mark.parametrize("steps", [None, -1])
def test_a_step_of_an_unknown_number_is_an_error(steps):
    with untrained(ToyModel(), NoiseConfig(alpha=5, schedule="linear"), steps=steps) as handle:
        with pytest.raises(NoiseConfigError, match=r"schedule: 'linear' follows .* install\(\.\.\., steps"):
            handle.step = 0
        handle.steps = 3
        handle.step = 1
        assert handle.alpha == pytest.approx(10 / 3)


def test_a_training_forward_of_an_unknown_step_is_an_error():
    ids, mask = padded(examples([5]))
    model = ToyModel().train()
    with untrained(model, NoiseConfig(alpha=5, schedule="cosine"), steps=3):
        with torch.no_grad():
            model(ids, attention_mask=mask)
        with pytest.raises(NoiseConfigError, match="neftune_noise_schedule: 'cosine' follows"):
            model(ids, attention_mask=mask)
