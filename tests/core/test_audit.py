"""The audit in a run: what it lets pass, what it stops, and that it changes nothing."""

import logging

import pytest
import torch
from torch import Tensor, nn

from neftune_plugins import NoiseConfig, WrongNoiseError, install
from neftune_plugins.model.audit import EVERY
from tests.support import specification
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded
from tests.support.proving import DIM, VOCABULARY, EncoderDecoder, Normed, hooked

LENGTHS = [40, 23, 31]
CONFIG = NoiseConfig(alpha=5.0, seed=3, audit="stop")


def batch() -> dict[str, Tensor]:
    ids, mask = padded(examples(LENGTHS))
    return {"input_ids": ids, "attention_mask": mask}


def trained(model: nn.Module, steps: int = 2, **config: object) -> dict[str, float]:
    """The metrics of a few steps."""
    with install(model.train(), NoiseConfig(alpha=5.0, seed=3, **{"audit": "stop", **config}), steps=10) as handle:
        for handle.step in range(steps):
            model(**batch()).sum().backward()
        return handle.metrics()


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "bernoulli"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("length", ["sequence", "padded"])
def test_every_configuration_is_right_and_its_ratio_is_logged(kind, schedule, length):
    metrics = trained(Normed(), type=kind, schedule=schedule, length=length)
    assert metrics["neftune/noise_ratio"] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_right(dtype):
    assert trained(Normed().to(dtype))["neftune/noise_ratio"] == pytest.approx(1.0, abs=0.05)


def test_off_measures_nothing():
    assert "neftune/noise_ratio" not in trained(Normed(), audit="off")


def test_a_run_is_the_same_to_the_bit_with_and_without_the_audit():
    def weights(audit: str) -> list[Tensor]:
        torch.manual_seed(0)
        model = Normed()
        trained(model, steps=3, audit=audit)
        return [*(parameter.grad for parameter in model.parameters()), torch.rand(3)]

    for one, other in zip(weights("stop"), weights("off"), strict=True):
        assert torch.equal(one, other)


def test_rounding_that_swallows_noise_is_a_warning(caplog):
    model = Normed()
    nn.init.normal_(model.embed_tokens.weight, std=200.0)
    trained(model.to(torch.bfloat16))
    assert "bfloat16 rounds" in caplog.text


def test_native_noise_beside_ours_stops_the_run_with_numbers():
    model = hooked(Normed(), lambda output: torch.empty_like(output).uniform_(-1, 1) * 5 / (40 * DIM) ** 0.5)
    with pytest.raises(WrongNoiseError) as caught:
        trained(model)
    message = str(caught.value)
    assert "row 0, an example of L = 40, has 1.4" in message and "(1.00 is expected, within 0.0" in message
    assert "Measured between embed_tokens and norm; the noise is added on embed_tokens" in message


def test_warn_logs_and_goes_on(caplog):
    trained(hooked(Normed(), torch.ones_like), audit="warn")
    assert "neftune_audit: in training, step 0, row 0" in caplog.text


def test_noise_in_evaluation_stops_the_run():
    model = Normed()
    with untrained(model.train(), CONFIG):
        model(**batch()).sum().backward()
        model.embed_tokens.register_forward_hook(lambda module, args, output: output + torch.rand_like(output))
        message = "evaluation mode without gradients.*there should be none"
        with pytest.raises(WrongNoiseError, match=message), torch.no_grad():
            model.eval()(**batch())


def test_what_goes_wrong_later_is_found_at_the_next_measurement():
    model = Normed().train()
    with untrained(model, CONFIG) as handle:
        handle.step = 0
        model(**batch())
        model.embed_tokens.register_forward_hook(lambda module, args, output: output + torch.rand_like(output))
        handle.step = EVERY - 1
        model(**batch())
        handle.metrics()
        handle.step = EVERY
        model(**batch())
        with pytest.raises(WrongNoiseError, match=f"step {EVERY}"):
            handle.metrics()


class Strange(nn.Module):
    """An adapter that nobody has heard of: it keeps its embedding under a name of its own and turns what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Embedding(VOCABULARY, DIM)
        self.turn = nn.Parameter(torch.linalg.qr(torch.randn(DIM, DIM)).Q * 0.3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inside(ids) @ self.turn


def test_a_strange_model_that_the_installation_gets_wrong_is_stopped():
    model = Normed(embedding=Strange())
    model.get_input_embeddings = lambda: model.embed_tokens.inside
    with pytest.raises(WrongNoiseError, match=r"has 0\.\d+ of the noise.*added on embed_tokens\.inside"):
        trained(model)


def test_tree_rows_that_the_installation_takes_for_packed_ones_are_stopped(monkeypatch):
    monkeypatch.setattr("neftune_plugins.noise.checks._check", lambda batch, reading: None)
    ids = torch.tensor(examples([40]))
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    for start in range(24, 40, 4):
        seen[start:, 20:start] = False
    model = Normed().train()
    with untrained(model, CONFIG), pytest.raises(WrongNoiseError, match="an example of L = 40"):
        model(input_ids=ids, attention_mask=seen[None, None])


def test_where_it_cannot_see_it_says_so_once_and_goes_on(caplog):
    caplog.set_level(logging.INFO, "neftune_plugins")
    with install(ToyModel().train(), CONFIG) as handle:
        for handle.step in (0, EVERY, 2 * EVERY):
            handle.model(**batch()).sum().backward()
            handle.metrics()
    assert caplog.text.count("neftune_audit cannot measure the noise of training") == 1


def test_parameters_of_zero_3_are_not_gathered_for_a_second_forward(caplog):
    """DeepSpeed marks them, and counts on the order of the modules that it saw before."""
    caplog.set_level(logging.INFO, "neftune_plugins")
    model, forwards = Normed().train(), []
    model.norm.weight.ds_id = 0
    model.register_forward_pre_hook(lambda module, args: forwards.append(1))
    with install(model, CONFIG) as handle:
        handle.step = 0
        model(**batch()).sum().backward()
    assert forwards == [1]
    assert "neftune_audit cannot measure the noise of training: DeepSpeed's ZeRO-3" in caplog.text


def test_the_values_are_those_of_the_specification():
    from neftune_plugins.proof.specified import noise

    ids = [1, 15043, 2]
    for kind in ("uniform", "gaussian", "bernoulli"):
        wanted = specification.noise(ids, 16, alpha=5.0, seed=42, step=7, stream=1, kind=kind)
        found = noise(ids, range(3), 16, kind=kind, seed=42, stream=1, step=7, factor=5 / (3 * 16) ** 0.5)
        assert torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=1e-5)


def test_an_encoder_decoder_is_right():
    model = EncoderDecoder().train()
    decoder, mask = padded(examples([11, 29, 5], seed=1))
    with install(model, CONFIG) as handle:
        model(**batch(), decoder_input_ids=decoder, decoder_attention_mask=mask).backward()
        assert handle.metrics()["neftune/noise_ratio"] == pytest.approx(1.0, abs=0.03)
