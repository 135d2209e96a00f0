"""Ludwig's hyperopt over alpha: each trial sets it, the base configuration may have the keys beside it."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from neftune_plugins import NoiseConfigError
from tests.ludwig.configs import base_config, with_keys
from tests.ludwig.runs import ENVIRONMENT, RECORD_DIR, ROOT, SCRIPTS, SITE, run_ludwig
from tests.ludwig.watching import is_clean, refused, trained
from tests.support.recorder import read_run
from tests.support.warm import cold

COMPANIONS = {"neftune_noise_length": "padded", "neftune_noise_seed": 3}
ALPHAS = [0, 5.5]
IN_ECD = "output.encoder.model_parameters.neftune_noise_alpha"


def searching(config: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return config | {
        "hyperopt": {
            "goal": "minimize",
            "metric": "loss",
            "output_feature": "combined",
            "split": "validation",
            "parameters": parameters,
            "executor": {
                "type": "ray",
                "num_samples": 1,
                "max_concurrent_trials": 1,
                "cpu_resources_per_trial": 1,
            },
        }
    }


def over_alpha(model: Path, keys: dict[str, Any]) -> dict[str, Any]:
    config = with_keys(base_config(model, "ecd"), keys)
    return searching(config, {IN_ECD: {"space": "grid_search", "values": ALPHAS}})


def trial(config: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a trial, as Ludwig makes it."""
    from ludwig.hyperopt.utils import substitute_parameters
    from ludwig.schema.model_types.utils import merge_with_defaults

    return merge_with_defaults(substitute_parameters(copy.deepcopy(config), parameters))


def trained_trial(config: dict[str, Any], folder: Path, dataset: Path) -> Any:
    """As in Ludwig's `run_experiment`: `ludwig train` leaves hyperopt out."""
    from ludwig.api import LudwigModel

    from tests.ludwig.recorder import Recorder
    from tests.ludwig.runs import clean_process
    from tests.support.logs import LineHandler

    folder.mkdir()
    with clean_process(LineHandler()):
        model = LudwigModel(config, callbacks=[Recorder(folder)])
        model.train(dataset=str(dataset), output_directory=str(folder), skip_save_processed_input=True)
    return read_run(folder)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_trial_has_the_alpha_that_is_searched_and_the_keys_of_the_base(driver, alpha, tmp_path):
    from ludwig.schema.model_types.base import ModelConfig

    base = over_alpha(driver.model, COMPANIONS)
    full = ModelConfig.from_dict(base).to_dict()
    assert ModelConfig.from_dict(full)  # which Ludwig validates again
    run = trained_trial(trial(base, {IN_ECD: alpha}), tmp_path / "trial", driver.dataset)
    assert len(trained(run.calls)) == 5
    if alpha == 0:
        assert is_clean(run.calls)
    else:
        reference = with_keys(base_config(driver.model, "ecd"), COMPANIONS | {"neftune_noise_alpha": alpha})
        other = run_ludwig(reference, tmp_path / "reference", driver.dataset)
        assert run.weights == other.weights is not None


def test_a_trial_that_does_not_set_alpha_is_an_error(driver, tmp_path):
    config = trial(over_alpha(driver.model, COMPANIONS), {})
    with pytest.raises(NoiseConfigError, match="without neftune_noise_alpha has no effect"):
        trained_trial(config, tmp_path / "trial", driver.dataset)


def test_alpha_may_be_in_whole_parts_of_the_configuration(driver):
    from ludwig.schema.model_types.base import ModelConfig

    def part(alpha: float) -> dict[str, Any]:
        encoder = {"type": "llm", "model_parameters": {"neftune_noise_alpha": alpha}}
        return {"defaults": {"text": {"encoder": encoder}}}

    base = with_keys(base_config(driver.model, "ecd"), COMPANIONS)
    base = searching(base, {".": {"space": "choice", "categories": [part(alpha) for alpha in ALPHAS]}})
    assert ModelConfig.from_dict(base)
    for alpha in ALPHAS:
        config = trial(base, {".": part(alpha)}) | {"hyperopt": None}  # Ludwig 0.17 cannot validate those again
        parameters = ModelConfig.from_dict(config).input_features[0].encoder.model_parameters
        assert parameters.neftune_noise_alpha == alpha
        assert parameters.neftune_noise_length == "padded"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"neftune_noise_length": "long"}, "neftune_noise_length: 'long' must be one of: sequence, padded"),
        ({"neft_alpha": 5}, "neft_alpha: there is no such key"),
    ],
    ids=str,
)
def test_wrong_keys_beside_a_searched_alpha_are_errors(driver, keys, message):
    from ludwig.schema.model_types.base import ModelConfig

    with refused(driver, message):
        ModelConfig.from_dict(over_alpha(driver.model, keys))


def test_keys_beside_another_search_need_an_alpha(driver):
    from ludwig.schema.model_types.base import ModelConfig

    config = with_keys(base_config(driver.model, "ecd"), COMPANIONS)
    config = searching(config, {"trainer.learning_rate": {"space": "choice", "categories": [1e-5, 1e-4]}})
    with refused(driver, "without neftune_noise_alpha has no effect"):
        ModelConfig.from_dict(config)


def test_ray_tune(driver, tmp_path):
    """`ludwig hyperopt`, whose trials run in processes of Ray."""
    pytest.importorskip("ray", reason="Ludwig's hyperopt needs ludwig[distributed]")
    config = over_alpha(driver.model, COMPANIONS)
    config["trainer"] |= {"skip_all_evaluation": False, "train_steps": 3}
    path, record = tmp_path / "config.yaml", tmp_path / "record"
    path.write_text(yaml.safe_dump(config))
    record.mkdir()
    environment = {**os.environ, **ENVIRONMENT, RECORD_DIR: str(record), "PYTHONPATH": f"{SITE}:{ROOT}"}
    command = [SCRIPTS / "ludwig", "hyperopt", "--config", path, "--dataset", driver.dataset, "--recorder"]
    result = cold([*command, "--output_directory", tmp_path / "out"], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stdout[-5000:]
    clean, noisy = (read_run(record / str(alpha)) for alpha in ALPHAS)
    assert len(trained(clean.calls)) == len(trained(noisy.calls)) == 3
    assert is_clean(clean.calls)
    assert not is_clean(trained(noisy.calls))
    del config["hyperopt"]
    other = run_ludwig(with_keys(config, {"neftune_noise_alpha": 5.5}), tmp_path / "run", driver.dataset)
    for call, same in zip(trained(noisy.calls), trained(other.calls), strict=True):
        assert call.noise.allclose(same.noise, atol=1e-6)
