"""The loss without noise, in a loop of one's own; the frameworks' loops are in tests/conformance."""

import pytest
import torch
from torch import Tensor, nn

from neftune_plugins import Handle, NoiseConfig, NoiseConfigError, install
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded

IDS, MASK = padded(examples([5, 12, 8]))


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = ToyModel()
        self.dropout = nn.Dropout(0.5)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.dropout(self.model(input_ids=input_ids, attention_mask=attention_mask))
        return nn.functional.cross_entropy(logits.flatten(0, 1), input_ids.flatten())


def train(model: nn.Module, handle: Handle, steps: int = 4) -> list[tuple[float, dict[str, float]]]:
    """Each step's loss, and metrics."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(1)
    told = []
    for step in range(steps):

        def compute() -> Tensor:
            return model(IDS, MASK)

        handle.step = step
        loss = handle.clean_loss.beside(compute, without_noise=compute, loss=lambda loss: loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        handle.step = step + 1
        told.append((loss.item(), handle.metrics()))
    return told


def test_it_is_the_loss_without_noise_under_the_same_dropout():
    model = WithDropout().train()
    with install(model, NoiseConfig(alpha=50, clean_loss_steps=2)) as handle:
        told = train(model, handle)
    assert ["neftune/clean_loss" in metrics for _, metrics in told] == [False, True, False, True]
    # The second step anew: the same weights, the same random state, and no noise.
    again = WithDropout().train()
    with install(again, NoiseConfig(alpha=50)) as handle:
        torch.manual_seed(1)
        handle.step = 0
        again(IDS, MASK).backward()
        torch.optim.SGD(again.parameters(), 0.1).step()
    want = again(IDS, MASK).item()
    loss, metrics = told[1]
    assert metrics["neftune/clean_loss"] == want
    assert metrics["neftune/noisy_loss"] == loss != want


def test_training_goes_as_it_would_without_it():
    losses = []
    for steps in (1, 1000):
        model = WithDropout().train()
        with install(model, NoiseConfig(alpha=50, clean_loss_steps=steps)) as handle:
            losses.append([loss for loss, _ in train(model, handle)])
    assert losses[0] == losses[1]


def test_gradients_under_autocast_are_there():
    model = WithDropout().train()
    with (
        install(model, NoiseConfig(alpha=5, clean_loss_steps=1)) as handle,
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        handle.step = 0
        handle.clean_loss.beside(
            lambda: model(IDS, MASK), without_noise=lambda: model(IDS, MASK), loss=lambda loss: loss
        ).backward()
    gradient = model.model.embed_tokens.weight.grad
    assert gradient is not None
    alone = WithDropout().train()
    with install(alone, NoiseConfig(alpha=5)) as handle, torch.autocast("cpu", dtype=torch.bfloat16):
        handle.step = 0
        alone(IDS, MASK).backward()
    # The head's part of it comes through the weight that autocast casts.
    assert (gradient != 0).sum() == (alone.model.embed_tokens.weight.grad != 0).sum()


def test_micro_batches_are_weighted():
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5, clean_loss_steps=1)) as handle:
        handle.step = 0
        for value, weight in ((1.0, 1), (4.0, 3)):
            handle.clean_loss.beside(
                lambda value=value, weight=weight: torch.tensor(weight * value * 2),
                without_noise=lambda value=value, weight=weight: torch.tensor(weight * value),
                loss=lambda loss: loss,
                weight=weight,
            )
        assert handle.metrics() == {}, "the step is not over"
        model(input_ids=IDS, attention_mask=MASK)
        handle.step = 1
        losses = {name: value for name, value in handle.metrics().items() if "loss" in name}
        assert losses == {"neftune/clean_loss": 3.25, "neftune/noisy_loss": 6.5}


def test_a_step_whose_loss_is_not_computed_there_is_an_error():
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5, clean_loss_steps=100)) as handle:
        handle.step = 0
        model(input_ids=IDS, attention_mask=MASK)
        with pytest.raises(NoiseConfigError, match="neftune_clean_loss_steps: 100 has no effect here: the loss of"):
            handle.step = 1


def test_steps_that_are_not_told_are_an_error():
    model = ToyModel().train()
    with (
        untrained(model, NoiseConfig(alpha=5, clean_loss_steps=100)),
        pytest.raises(NoiseConfigError, match="neftune_clean_loss_steps: 100 counts optimiser steps"),
    ):
        model(input_ids=IDS, attention_mask=MASK)
