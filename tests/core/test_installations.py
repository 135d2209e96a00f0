"""Several models with noise in one process: what they share, and what an install that fails leaves behind."""

import sys
from types import FrameType

import pytest
import torch
from torch import nn

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, hookimpl, install
from neftune_plugins.model import structure
from neftune_plugins.plugins import plugin_manager
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded

CONFIG = NoiseConfig(alpha=5.0, seed=11)
OTHER = NoiseConfig(alpha=50.0, seed=2)
IDS, MASK = padded(examples([5, 12, 8]))
BATCH = {"input_ids": IDS, "attention_mask": MASK}


def alone(config: NoiseConfig, model: ToyModel) -> torch.Tensor:
    with install(model, config) as handle:
        handle.step = 0
        return model.noise(**BATCH)


@pytest.mark.parametrize("order", [1, -1])
def test_models_that_share_an_embedding_have_each_its_own_noise(order):
    policy, value = ToyModel().train(), ToyModel().train()
    value.embed_tokens = policy.embed_tokens
    want = {policy: alone(CONFIG, policy), value: alone(OTHER, value)}
    models = [policy, value][::order]
    configs = {policy: CONFIG, value: OTHER}
    handles = [install(model, configs[model]) for model in models]
    for step in (0, 1):
        for handle in handles:
            handle.step = step
        for model in (policy, value, policy):
            noise = model.noise(**BATCH)
            assert noise.any()
            assert torch.equal(noise, want[model]) == (step == 0)
    assert [handle.metrics()["neftune/alpha"] for handle in handles] == [configs[model].alpha for model in models]
    handles[0].remove()
    with torch.no_grad():
        assert not models[0].noise(**BATCH).any()
    handles[1].step = 0
    assert torch.equal(models[1].noise(**BATCH), want[models[1]])
    handles[1].remove()


class Head(nn.Module):
    """A model around a backbone that may be another's, too."""

    def __init__(self, backbone: ToyModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(97, 1)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embed_tokens

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(input_ids, attention_mask=attention_mask))


@pytest.mark.parametrize("order", [1, -1])
def test_models_that_share_their_whole_backbone_have_each_its_own_noise(order):
    backbone = ToyModel()
    heads = [Head(backbone).train(), Head(backbone).train()]
    want = [alone(config, backbone.train()) for config in (CONFIG, OTHER)]
    pairs = list(zip(heads, (CONFIG, OTHER), strict=True))[::order]
    handles = [install(head, config) for head, config in pairs]
    for handle in handles:
        handle.step = 0
    clean = nn.functional.embedding(IDS, backbone.embed_tokens.weight)
    for head, noise in zip(heads, want, strict=True):
        head(**BATCH)
        assert torch.equal((backbone.entered - clean).detach(), noise)
    with pytest.raises(NoiseNotAppliedError, match=r"ToyModel is a part of two models .* called by itself"):
        backbone(**BATCH)
    for handle in handles:
        handle.remove()


def test_a_model_that_contains_an_installed_one_replaces_its_noise():
    backbone = ToyModel()
    for first, second in ((backbone, Head(backbone)), (Head(backbone), backbone)):
        earlier = install(first.train(), OTHER)
        with untrained(second.train(), CONFIG) as handle:
            assert (earlier.installed, handle.installed) == (False, True)


class Pair(nn.Module):
    """A student and its teacher, which share nothing."""

    def __init__(self, names: tuple[str, str], teacher_grad: bool) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, ToyModel())
        self.teacher.requires_grad_(teacher_grad)

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.teacher(**batch)
        return (self.student(**batch) - target).square().sum()


@pytest.mark.parametrize("names", [("teacher", "student"), ("student", "teacher")])
def test_of_student_and_teacher_the_student_has_noise(names):
    pair = Pair(names, teacher_grad=False).train()
    with install(pair, CONFIG) as handle:
        handle.step = 0
        pair(**BATCH).backward()
        assert handle.embeddings == ["student.embed_tokens"]
    for model, noisy in ((pair.student, True), (pair.teacher, False)):
        clean = nn.functional.embedding(IDS, model.embed_tokens.weight)
        assert torch.equal(model.entered, clean) != noisy


def test_what_cannot_be_told_is_refused_at_install():
    pair = Pair(("teacher", "student"), teacher_grad=True).train()
    with pytest.raises(NoiseNotAppliedError, match=r"several models .*\(student, teacher\).*requires_grad_\(False\)"):
        install(pair, CONFIG)
    with install(pair.student, CONFIG) as handle:
        handle.step = 0
        pair(**BATCH).backward()


class SelfTeaching(ToyModel):
    """Calls itself without gradients before its own lookup."""

    def forward(self, input_ids, attention_mask=None, teach=True, **kwargs):
        if teach:
            with torch.no_grad():
                super().__call__(input_ids, attention_mask=attention_mask, teach=False)
            self.target = self.entered
        return super().forward(input_ids, attention_mask, **kwargs)


def test_a_model_that_calls_itself_without_gradients_is_clean_there():
    model = SelfTeaching().train()
    with install(model, CONFIG) as handle:
        handle.step = 0
        model(**BATCH).sum().backward()
    clean = nn.functional.embedding(IDS, model.embed_tokens.weight)
    assert torch.equal(model.target, clean)
    assert not torch.equal(model.entered, clean)


def test_a_part_that_is_called_without_gradients_is_a_teacher_or_an_error():
    model = ToyModel()

    class Frozen(Head):
        def forward(self, input_ids, attention_mask):
            with torch.no_grad():
                states = self.backbone(input_ids, attention_mask=attention_mask)
            return self.head(states)

    frozen = Frozen(model).train()
    with untrained(frozen, CONFIG) as handle:
        with pytest.raises(NoiseNotAppliedError, match=r"called only without gradients.*training_forwards"):
            frozen(**BATCH)
        with handle.training_forwards():
            frozen(**BATCH).sum().backward()
    assert not torch.equal(model.entered, nn.functional.embedding(IDS, model.embed_tokens.weight))


@pytest.mark.parametrize("fault", ["type", "embedding", "observer"])
def test_a_failed_install_changes_nothing(fault):
    model = ToyModel().train()
    want = alone(CONFIG, model)

    class Fault:
        @hookimpl
        def neftune_embeddings(self, model):
            return [nn.Embedding(2, 2)] if fault == "embedding" else None

        @hookimpl
        def neftune_installed(self, handle):
            if fault == "observer":
                raise RuntimeError("this observer cannot observe")

    handle = install(model, CONFIG)
    handle.step = 0
    plugin = Fault()
    plugin_manager().register(plugin)
    try:
        with pytest.raises((NoiseNotAppliedError, ValueError, RuntimeError)):
            install(model, NoiseConfig(alpha=500.0, type="nonesuch" if fault == "type" else "uniform"))
    finally:
        plugin_manager().unregister(plugin)
    assert handle.installed
    assert torch.equal(model.noise(**BATCH), want)
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Level(nn.Module):
    """A model around a model, and a layer beside it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids, attention_mask=attention_mask)


def nested(levels: int) -> tuple[nn.Module, ToyModel]:
    model = toy = ToyModel().train()
    for _ in range(levels):
        model = Level(model)
    return model, toy


def test_a_nested_model_has_the_noise_of_the_model_in_it():
    model, toy = nested(50)
    want = alone(CONFIG, toy)
    with install(model, CONFIG) as handle:
        handle.step = 0
        assert handle.embeddings == ["inner." * 50 + "embed_tokens"]
        assert torch.equal(toy.noise(**BATCH), want)


def test_the_cost_of_installing_grows_with_the_modules_and_not_with_their_depth():
    """Counted in calls and generators that resume: four times the levels are at most four times the work."""

    def work(levels: int) -> int:
        model, _ = nested(levels)
        calls = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            handle = install(model, CONFIG)
        finally:
            sys.setprofile(None)
        handle.remove()
        return calls

    work(1)  # what is made once in a process
    assert work(400) < 4 * work(100)


def test_the_walk_is_that_of_torch():
    shared = nn.Linear(1, 1)
    inner = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared))
    model = nn.ModuleDict({"a": nn.Sequential(inner, shared), "b": inner, "c": nn.Sequential()})
    model.register_module("none", None)
    assert list(structure.walk(model)) == list(model.modules())
    names, modules = zip(*model.named_modules(), strict=True)
    assert structure.named(model, modules) == list(names)
    for module in modules:
        inside = [one for one in modules if one is not module and module in set(one.modules())]
        assert structure.above(model, module) == inside
