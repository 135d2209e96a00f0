"""Gradient caching, and checkpointing of whole models: forward passes that run more than once have one noise."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, install
from neftune_plugins.model.calls import CALLS
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded

CONFIG = NoiseConfig(alpha=5.0, seed=11)
BATCHES = [padded(examples(lengths, seed=seed)) for seed, lengths in enumerate(([5, 12], [8, 3], [12, 12]))]


def fresh() -> ToyModel:
    torch.manual_seed(0)
    return ToyModel().train()


def loss_of(representations: Tensor) -> Tensor:
    """A contrastive loss: each row's gradient depends on all rows."""
    return (representations @ representations.T / 97).log_softmax(-1).diagonal().sum()


def rows(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(input_ids=batch[0], attention_mask=batch[1])[:, -1]


def uncached(model: ToyModel) -> Tensor:
    loss_of(torch.cat([rows(model, batch) for batch in BATCHES])).backward()
    return model.embed_tokens.weight.grad


def cached(model: ToyModel, *, in_backward: bool) -> Tensor:
    """Gao et al., arXiv 2101.06983: without gradients, then again chunk by chunk with the gradient of the loss."""
    with torch.no_grad():
        found = torch.cat([rows(model, batch) for batch in BATCHES])
    found.requires_grad_(True)
    loss = loss_of(found)

    def again(gradient: Tensor) -> None:
        for batch, part in zip(BATCHES, gradient.split(2), strict=True):
            with torch.enable_grad():
                (rows(model, batch) * part).sum().backward()

    if in_backward:
        found.register_hook(again)
        loss.backward()
    else:
        loss.backward()
        again(found.grad)
    return model.embed_tokens.weight.grad


@pytest.mark.parametrize("in_backward", [True, False])
def test_gradient_caching_has_the_gradients_of_the_uncached_step(in_backward):
    model = fresh()
    with install(model, CONFIG) as handle:
        handle.step = 3
        want = uncached(model)
    model = fresh()
    with install(model, CONFIG) as handle:
        handle.step = 3
        with handle.training_forwards():
            found = cached(model, in_backward=in_backward)
        assert handle.step == 3
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_backward", [True, False])
def test_gradient_caching_without_a_step_draws_anew_each_time(in_backward):
    model = fresh()
    gradients = []
    with install(model, CONFIG) as handle:
        for step in range(2):
            with handle.training_forwards():
                gradients.append(cached(model, in_backward=in_backward).clone())
            model.zero_grad()
            assert handle.step == step
    for step, gradient in enumerate(gradients):
        model = fresh()
        with install(model, CONFIG) as handle:
            handle.step = step
            torch.testing.assert_close(gradient, uncached(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0, None])
def test_gradient_caching_that_nobody_told_of_is_an_error(step):
    model = fresh()
    with untrained(model, CONFIG) as handle:
        if step is not None:
            handle.step = step
        with pytest.raises(NoiseNotAppliedError, match=r"gradient caching.*training_forwards"):
            cached(model, in_backward=True)


@pytest.mark.parametrize("step", [0, None])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_of_a_whole_model_repeats_the_noise_of_each_forward(use_reentrant, step):
    """Two forwards before one backward."""
    results = []
    for checkpointed in (False, True):
        model = fresh()
        entered = []
        model.lm_head.register_forward_pre_hook(lambda m, a, model=model, to=entered: to.append(model.entered.detach()))
        dummy = torch.zeros((), requires_grad=True)

        def part(batch, dummy, model=model):
            return rows(model, batch) + dummy

        with install(model, CONFIG) as handle:
            if step is not None:
                handle.step = step
            losses = []
            for batch in BATCHES[:2]:
                if checkpointed:
                    losses.append(checkpoint(part, batch, dummy, use_reentrant=use_reentrant).logsumexp(-1).sum())
                else:
                    losses.append(part(batch, dummy).logsumexp(-1).sum())
            sum(losses).backward()
            assert handle.step == (1 if step is None else step)
        forwards = 2 * (1 + checkpointed)
        assert len(entered) == forwards
        results.append((torch.stack(losses).detach(), model.embed_tokens.weight.grad, entered))
    (want_loss, want_gradient, want), (loss, gradient, entered) = results
    assert torch.equal(loss, want_loss)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-6, atol=1e-7)
    for x in entered[2:]:  # backward goes from the last to the first
        assert any(torch.equal(x, y) for y in want)
    for x, y in zip(entered[:2], want, strict=True):
        assert torch.equal(x, y)


class Unfinished(ToyModel):
    """Its forward is still running when the last tensor that backward needs exists, as an MLP is that ends a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fired = [0, 0]
        self.register_forward_pre_hook(lambda *_: self._count(0))
        self.register_forward_hook(lambda *_: self._count(1))

    def _count(self, which: int) -> None:
        self.fired[which] += 1

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return super().forward(*args, **kwargs) + 1


def test_a_recomputation_that_stops_early_leaves_no_call():
    """torch 2.14 under transformers 5.24: pre-hooks fire more often than forward hooks
    (findings/torch-checkpoint-hooks.sh)."""
    torch.manual_seed(0)
    model = Unfinished().train()
    ids, mask = BATCHES[0]
    with install(model, dataclasses.replace(CONFIG, audit="off")) as handle:  # whose pass would be counted
        handle.step = 0
        for repeat in range(1, 4):
            checkpoint(lambda: model(input_ids=ids, attention_mask=mask), use_reentrant=False).sum().backward()
            assert model.fired == [2 * repeat, repeat]
            assert CALLS.innermost() is None and CALLS.stack == []
        assert not model.eval().noise(ids, attention_mask=mask).any()


def test_rollouts_inside_of_no_autograd_function_stay_clean():
    model = fresh()
    ids, mask = BATCHES[0]
    with untrained(model, CONFIG), torch.no_grad():
        assert not model.noise(ids, attention_mask=mask).any()
