"""A step without noise stops the run and names the cause; steps that are as they should be go on."""

import pytest
import torch
from torch import nn

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, install
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded

CONFIG = NoiseConfig(alpha=5.0, seed=11)
IDS, MASK = padded(examples([5, 12, 8]))


def train(model: nn.Module) -> None:
    model(input_ids=IDS, attention_mask=MASK).sum().backward()


def in_evaluation(model: ToyModel) -> None:
    train(model.eval())


def without_gradients(model: ToyModel) -> None:
    with torch.no_grad():
        model.train()(input_ids=IDS, attention_mask=MASK)


def past_the_hooks(model: ToyModel) -> None:
    model.train().forward(input_ids=IDS, attention_mask=MASK).sum().backward()


def not_at_all(model: ToyModel) -> None:
    train(ToyModel().train())


CAUSES = {
    in_evaluation: r"evaluation mode.*model\.train\(\)",
    without_gradients: r"only without gradients.*training_forwards",
    past_the_hooks: r"model\.forward\(\.\.\.\) skips hooks",
    not_at_all: r"was not called in this process",
}


@pytest.mark.parametrize("step", CAUSES, ids=lambda step: step.__name__)
def test_the_second_step_names_the_cause(step):
    model = ToyModel()
    with pytest.raises(NoiseNotAppliedError, match=CAUSES[step]), install(model, CONFIG) as handle:  # noqa: PT012
        handle.step = 0
        step(model)
        handle.step = 1
        pytest.fail("step 1 began")
    assert not handle.installed


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("step", CAUSES, ids=lambda step: step.__name__)
def test_the_end_of_the_block_names_the_cause(step, counted):
    model = ToyModel()
    with pytest.raises(NoiseNotAppliedError, match=CAUSES[step]), install(model, CONFIG) as handle:  # noqa: PT012
        if counted:
            handle.step = 0
        step(model)


@pytest.mark.parametrize("step", [in_evaluation, without_gradients, past_the_hooks], ids=lambda step: step.__name__)
def test_a_later_step_is_noticed_too(step):
    model = ToyModel().train()
    message = r"step 1 had no noise.*" + CAUSES[step]
    with pytest.raises(NoiseNotAppliedError, match=message), install(model, CONFIG) as handle:  # noqa: PT012
        handle.step = 0
        train(model)
        handle.step = 1
        step(model)
        handle.step = 2


def test_what_training_does_beside_its_steps_is_no_fault():
    model = ToyModel().train()
    with install(model, CONFIG) as handle:
        for handle.step in range(4):
            train(model)
            model.eval()
            with torch.no_grad():
                model(input_ids=IDS, attention_mask=MASK)
            train(model)  # a saliency map: gradients in evaluation mode
            model.train()
        handle.step = 4  # a trainer that counts a step when it ends
        with torch.no_grad():
            model.eval()(input_ids=IDS, attention_mask=MASK)


def test_a_step_of_padding_alone_and_a_batch_that_is_skipped_are_no_faults():
    model = ToyModel().train()
    with install(model, CONFIG) as handle:
        handle.step = 0
        train(model)
        handle.step = 1
        model(input_ids=torch.zeros_like(IDS), attention_mask=MASK).sum().backward()
        handle.step = 2  # skipped: no forward pass
        handle.step = 3
        train(model)


def test_an_exception_of_the_training_is_not_hidden():
    with pytest.raises(ZeroDivisionError), install(ToyModel(), CONFIG):
        raise ZeroDivisionError


def test_micro_batches_are_one_step():
    model = ToyModel().train()
    with install(model, CONFIG) as handle:
        for handle.step in range(2):
            for _ in range(3):
                train(model)


def test_a_step_of_removed_noise_is_an_error():
    model = ToyModel().train()
    handle = install(model, CONFIG)
    install(model, CONFIG).remove()
    with pytest.raises(NoiseNotAppliedError, match=r"step 0 cannot begin: the noise was removed from ToyModel"):
        handle.step = 0


def test_a_module_that_is_called_with_one_mapping_has_noise():
    """As sentence-transformers calls its modules."""

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ToyModel()

        def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.inner.forward(features["input_ids"], features["attention_mask"])

    model = Mapped().train()
    with install(model, CONFIG) as handle:
        handle.step = 0
        model({"input_ids": IDS, "attention_mask": MASK}).sum().backward()
        entered = model.inner.entered
        want = model.inner.noise(IDS, attention_mask=MASK)
    assert torch.equal(entered - nn.functional.embedding(IDS, model.inner.embed_tokens.weight), want)
    assert want.any()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_steps_are_watched_without_recompiling(backend):
    torch.compiler.reset()
    model = ToyModel().train()
    with untrained(model, CONFIG) as handle:
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for handle.step in range(4):
            train(compiled)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        model.eval()
        handle.step = 4
        train(compiled)
        with pytest.raises(NoiseNotAppliedError, match="evaluation mode"):
            handle.step = 5
    torch.compiler.reset()


def test_zero_is_no_noise_and_no_fault(caplog):
    model = ToyModel().train()
    caplog.set_level("INFO", "neftune_plugins")
    with install(model, NoiseConfig(alpha=0)) as handle:
        for handle.step in range(3):
            assert not model.noise(IDS, attention_mask=MASK).any()
            assert (handle.alpha, handle.metrics()) == (0, {})
        assert not any(module._forward_hooks for module in model.modules())
    assert [record.message for record in caplog.records] == [str(handle)]


def test_zero_takes_earlier_noise_out():
    model = ToyModel().train()
    earlier = install(model, CONFIG)
    install(model, NoiseConfig(alpha=0))
    assert not earlier.installed
    assert not model.noise(IDS, attention_mask=MASK).any()
