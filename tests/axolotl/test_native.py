"""What Axolotl does by itself that one would not expect: docs/surprises.md lists it. Seen with Axolotl 0.21.0."""

from typing import Any, ClassVar

import pytest
import torch
from axolotl.integrations.base import BasePlugin

from tests.axolotl.configs import base_config
from tests.axolotl.driver import AxolotlDriver, make_driver, with_plugin
from tests.axolotl.runs import axolotl_cli, run_axolotl
from tests.support.probe import per_example, ratio

STOCK = {"NEFTUNE_PLUGINS": "0"}


class Loaded(BasePlugin):
    """Keeps the models of `post_model_load`, and the hooks that their embeddings have when the training has begun."""

    models: ClassVar[list[Any]] = []
    trainer: ClassVar[Any] = None

    def post_model_load(self, cfg: Any, model: Any) -> None:
        Loaded.models.append(model)

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        Loaded.trainer = trainer


@pytest.fixture(scope="module")
def driver() -> AxolotlDriver:
    torch.set_num_threads(1)
    return make_driver()


@pytest.fixture
def loaded():
    Loaded.models, Loaded.trainer = [], None
    yield Loaded
    Loaded.models, Loaded.trainer = [], None


def test_post_model_load_is_called_for_the_reference_model_too(driver, loaded, tmp_path):
    """So a plugin that adds its noise there also adds it to the reference. Ours adds it when the training begins."""
    config = with_plugin(base_config(driver.model, "dpo") | {"neftune_noise_alpha": 5, "max_steps": 1})
    config["plugins"] = [*config.get("plugins", []), "tests.axolotl.test_native.Loaded"]
    hooked = []

    def see(*args: Any) -> None:
        hooked.extend(_has_noise(model) for model in loaded.models)

    from tests.axolotl import probe_plugin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_plugin, "at_step_end", see)
        run_axolotl(config, tmp_path)
    assert len(loaded.models) == 2
    assert loaded.trainer.ref_model in loaded.models
    policy = [model is not loaded.trainer.ref_model for model in loaded.models]
    assert hooked == policy


def _has_noise(model: Any) -> bool:
    hooks = model.get_input_embeddings()._forward_hooks.values()
    return any("neftune_plugins" in type(hook).__module__ for hook in hooks)


@pytest.mark.parametrize(("option", "alpha"), [("--neftune_noise_alpha=20", 5), ("--neftune-noise-alpha=20", 20)])
def test_an_option_with_underscores_is_dropped_in_silence(driver, option, alpha, tmp_path):
    """Our plugin stops such a run: test_plugin.py."""
    config = base_config(driver.model, "sft") | {"neftune_noise_alpha": 5, "max_steps": 2}
    run = axolotl_cli(config, tmp_path, option, env=STOCK)
    assert run.returncode == 0, run.output
    widest = max(
        (example for call in run.calls for example in per_example(call, driver.pad_id)),
        key=lambda example: len(example.noise),
    )
    assert 0.8 < ratio(widest, alpha) < 1.1
    assert option.split("=")[0] not in run.output
