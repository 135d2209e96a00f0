"""Plugins: the example package, which is installed beside us, and the other hooks."""

import json
import math
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import neftune_plugins.plugins.manager as manager_module
from neftune_plugins import (
    REPORT_VARIABLE,
    Batch,
    Layout,
    NoiseConfig,
    NoiseNotAppliedError,
    NoiseType,
    hookimpl,
    install,
)
from neftune_plugins.plugins.manager import frameworks, noise_types, plugin_manager
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded


@pytest.fixture
def register() -> Iterator[object]:
    """Registers plugins for one test."""
    registered = []

    def register(plugin: object) -> None:
        plugin_manager().register(plugin)
        registered.append(plugin)

    yield register
    for plugin in registered:
        plugin_manager().unregister(plugin)


def test_the_example_package_provides_its_noise_type():
    model = ToyModel(dim=512).train()
    ids, mask = padded(examples([64, 32]))
    with install(model, NoiseConfig(alpha=5.0, type="triangular")):
        noise = model.noise(input_ids=ids, attention_mask=mask)
    assert not noise[1, 32:].any()
    unit = noise[0].double() / (5 / math.sqrt(64 * 512))
    assert unit.abs().max() < 1.001
    n = unit.numel()
    # Triangular in (-1, 1): variance 1/6, fourth moment 1/15.
    assert abs(unit.square().mean() - 1 / 6) < 5 * math.sqrt((1 / 15 - 1 / 36) / n)


def test_built_in_types_come_first():
    assert list(noise_types())[:3] == ["uniform", "gaussian", "bernoulli"]


def test_a_name_taken_twice_is_an_error(register):
    class Twice:
        @hookimpl
        def neftune_noise_types(self):
            return [NoiseType("uniform", lambda bits: bits.float(), rms=1.0)]

    register(Twice())
    with pytest.raises(ValueError, match="two plugins provide a noise type named 'uniform'"):
        noise_types()


def test_a_plugin_can_name_the_embedding_of_an_unusual_model(register):
    class Unusual(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(97, 16)

        def forward(self, input_ids):
            return self.words(input_ids)

    class Finder:
        @hookimpl
        def neftune_embeddings(self, model):
            return [model.words] if isinstance(model, Unusual) else None

    register(Finder())
    model, ids = Unusual().train(), torch.arange(5)[None]
    with untrained(model, NoiseConfig(alpha=5.0)):
        assert not torch.equal(model(ids), model.words.weight[ids])
    toy = ToyModel().train()
    with untrained(toy, NoiseConfig(alpha=5.0)) as handle:
        assert handle.embeddings == ["embed_tokens"]


def test_a_plugin_can_tell_by_what_a_model_multiplies_its_embedding(register):
    model, (ids, mask) = ToyModel().train(), padded(examples([5, 9]))

    class Scale:
        @hookimpl
        def neftune_embedding_scale(self, model, embedding):
            return 8.0 if embedding is toy.embed_tokens else None

    toy, noises = model, []
    for _ in range(2):
        with install(model, NoiseConfig(alpha=5.0)) as handle:
            handle.step = 0
            noises.append(model.noise(input_ids=ids, attention_mask=mask))
        register(Scale())
    torch.testing.assert_close(noises[1] * 8, noises[0], rtol=0, atol=2e-6)


def test_a_plugin_can_read_an_unusual_batch(register):
    def read(batch: Batch) -> Layout | None:
        if "lengths" not in batch:
            return None
        ids = batch["input_ids"]
        real = torch.arange(ids.shape[1]) < batch["lengths"][:, None]
        return Layout.from_starts(real, torch.zeros_like(real))

    class Reader:
        @hookimpl
        def neftune_layout_reader(self):
            return read

    register(Reader())
    model = ToyModel().train()
    ids, mask = padded(examples([5, 9]))
    with install(model, NoiseConfig(alpha=5.0)) as handle:
        handle.step = 0
        by_lengths = model.noise(input_ids=ids, lengths=torch.tensor([5, 9]))
        by_mask = model.noise(input_ids=ids, attention_mask=mask)
    assert torch.equal(by_lengths, by_mask)


def test_observers_are_told_of_installation_steps_and_removal(register):
    told = []

    class Observer:
        @hookimpl
        def neftune_installed(self, handle):
            told.append("installed")

        @hookimpl
        def neftune_step(self, handle):
            told.append(handle.step)

        @hookimpl
        def neftune_removed(self, handle):
            told.append("removed")

    register(Observer())
    model = ToyModel().train()
    with install(model, NoiseConfig(alpha=5.0)) as handle:
        handle.step = 0
        model(torch.tensor([[1, 2]]))
        handle.step = 7
    assert told == ["installed", 0, 7, "removed"]


def test_adapters_are_found_by_their_entry_points():
    assert set(frameworks()) >= {"axolotl", "llamafactory", "ludwig", "swift"}


def test_a_plugin_that_cannot_be_loaded_does_not_go_unnoticed(monkeypatch):
    class Broken:
        name, group = "broken", "neftune_plugins"

        def load(self):
            raise ImportError("no module named broken")

    class Distribution:
        entry_points = (Broken(),)
        metadata = {"name": "broken"}

    monkeypatch.setattr("importlib.metadata.distributions", lambda: [Distribution()])
    with pytest.raises(ImportError, match="broken"):
        manager_module.plugin_manager.__wrapped__()


def test_the_report_measures_each_example(tmp_path, monkeypatch):
    monkeypatch.setenv(REPORT_VARIABLE, str(tmp_path / "noise.jsonl"))
    ids = torch.tensor([[token for row in examples([10, 30]) for token in row]])
    positions = torch.tensor([[*range(10), *range(30)]])
    padded_ids, mask = padded(examples([20, 4]))
    model, other = ToyModel(dim=512).train(), ToyModel(dim=512).train()
    with untrained(model, NoiseConfig(alpha=5.0)) as handle, untrained(other, NoiseConfig(alpha=5.0)):
        handle.step = 3
        model(ids, None, positions)
        model(input_ids=padded_ids, attention_mask=mask)
        pickle.dumps(model)
    assert not [hook for m in (model, other) for child in m.modules() for hook in child._forward_hooks]
    lines = [json.loads(line) for line in (tmp_path / "noise.jsonl").read_text().splitlines()]
    seen = [(line["length"], line["width"], line["step"]) for line in lines]
    assert seen == [(10, 40, 3), (30, 40, 3), (20, 20, 3), (4, 20, 3)]
    for line in lines:
        assert line["rms"] == pytest.approx(5 / math.sqrt(3 * line["length"] * 512), rel=0.1)
        assert line["padding"] == 0


def test_a_finder_that_names_a_stranger_is_told(register):
    class Finder:
        @hookimpl
        def neftune_embeddings(self, model):
            return [nn.Embedding(2, 2)]

    register(Finder())
    with pytest.raises(NoiseNotAppliedError, match="gave Embedding, which is no module of ToyModel"):
        install(ToyModel(), NoiseConfig(alpha=5.0))
