"""A key that nothing reads is an error wherever it stands, and values are read where Ludwig alone would refuse them."""

import copy
from typing import Any

import pytest

from neftune_plugins import NoiseNotAppliedError
from tests.ludwig.configs import base_config, with_keys, words_config
from tests.ludwig.runs import clean_process, run_ludwig
from tests.ludwig.watching import (
    ALPHA,
    KEYS,
    NOT_SAVED,
    is_clean,
    refused,
    trained,
)
from tests.support.bad_values import ZEROS
from tests.support.logs import LineHandler
from tests.support.noise import assert_papers_noise


def set_at(config: dict[str, Any], place: tuple[str | int, ...], value: Any) -> None:
    *parents, name = place
    for parent in parents:
        config = config[parent] if isinstance(config, list) else config.setdefault(parent, {})
    config[name] = value


def with_two_features(model: Any, keys: dict[str, Any], tied_keys: dict[str, Any]) -> dict[str, Any]:
    """The second feature is tied to the first."""
    config = with_keys(base_config(model, "ecd"), keys)
    second = copy.deepcopy(config["input_features"][0])
    second |= {"name": "instruction", "tied": "output"}
    second["encoder"]["model_parameters"] = tied_keys
    config["input_features"].append(second)
    for feature in config["input_features"]:
        feature["preprocessing"]["max_sequence_length"] = 64
    return config


LLM, ECD = "in model_parameters", "in input_features.0.encoder.model_parameters"
NEITHER = (
    "in the model_parameters of an input feature's encoder of type llm (there is none), or in those at the top level "
    "with model_type: llm (it is ecd)"
)
ALPHA_5 = "5 has no effect there; write neftune_noise_alpha: 5"
TIMES = "has no effect there, and there is no such key; did you mean neftune_noise_alpha?"


@pytest.mark.parametrize(
    ("mode", "place", "value", "message"),
    [
        (
            "full",
            ("neftune_noise_alpha",),
            5,
            "neftune_noise_alpha: 5 at the top level has no effect there; write",
        ),
        ("full", ("trainer", "neftune_noise_alpha"), 5, f"trainer.neftune_noise_alpha: {ALPHA_5} {LLM}"),
        ("lora", ("adapter", "neftune_noise_alpha"), 5, f"adapter.neftune_noise_alpha: {ALPHA_5} {LLM}"),
        # Ludwig moves into the encoder what a feature does not have.
        ("full", ("input_features", 0, "neftune_noise_alpha"), 5, f"encoder.neftune_noise_alpha: {ALPHA_5} {LLM}"),
        (
            "full",
            ("input_features", 0, "encoder"),
            {"type": "llm", "model_parameters": KEYS},
            f"input_features.0.encoder.model_parameters.neftune_noise_alpha: {ALPHA_5} {LLM}",
        ),
        (
            "full",
            ("defaults", "text", "encoder"),
            {"type": "llm", "model_parameters": KEYS},
            f"encoder.model_parameters.neftune_noise_alpha: {ALPHA_5} {LLM}",
        ),
        ("full", ("hyperopt",), {"executor": KEYS}, f"hyperopt.executor.neftune_noise_alpha: {ALPHA_5} {LLM}"),
        ("full", ("neftune",), {"alpha": 5}, "the keys are flat: write neftune_noise_alpha: 5 in model_parameters"),
        ("full", ("trainer", "neft_alpha"), 5, f"trainer.neft_alpha: 5 {TIMES}"),
        ("full", ("generation", "noisy_embedding_alpha"), 5, f"generation.noisy_embedding_alpha: 5 {TIMES}"),
        ("full", ("model_parameters", "neft_alpha"), 5, "neft_alpha: there is no such key (value 5); did you mean"),
        (
            "full",
            ("model_parameters", "noisy_embedding_alpha"),
            5,
            "noisy_embedding_alpha: there is no such key (value 5); did you mean neftune_noise_alpha?",
        ),
        (
            "full",
            ("model_parameters", "neftune"),
            {"alpha": 5},
            "neftune: there is no such key (value {'alpha': 5}); the keys are flat: write neftune_noise_alpha: 5",
        ),
        (
            "full",
            ("model_parameters", "rope_scaling"),
            {"rope_type": "linear", "factor": 2.0, "neftune_noise_alpha": 5},
            f"model_parameters.rope_scaling.neftune_noise_alpha: {ALPHA_5} {LLM}",
        ),
        ("ecd", ("model_parameters",), KEYS, f"model_parameters.neftune_noise_alpha: {ALPHA_5} {ECD}"),
        ("ecd", ("input_features", 0, "encoder", "neftune_noise_alpha"), 5, f"encoder.neftune_noise_alpha: {ALPHA_5}"),
        ("words", ("model_parameters",), KEYS, f"model_parameters.neftune_noise_alpha: {ALPHA_5} {NEITHER}"),
        (
            "words",
            ("input_features", 0, "encoder", "model_parameters"),
            KEYS,
            f"input_features.0.encoder.model_parameters.neftune_noise_alpha: {ALPHA_5} {NEITHER}",
        ),
        (
            "words",
            ("defaults", "text", "encoder"),
            {"type": "llm", "model_parameters": KEYS},
            "defaults.text.encoder.model_parameters.neftune_noise_alpha: 5 has no effect: no input feature takes an "
            "encoder of type llm from these defaults",
        ),
        (
            "ecd",
            ("defaults", "category", "encoder"),
            {"type": "llm", "model_parameters": KEYS},
            "defaults.category.encoder.model_parameters.neftune_noise_alpha: 5 has no effect",
        ),
        (
            "full",
            ("trainer", "type"),
            "none",
            "trainer.type is none; set trainer: {type: finetune}, or leave the key out to evaluate only",
        ),
        (
            "full",
            ("trainer",),
            None,
            "trainer.type is left out, which is none for model_type llm; set trainer: {type: finetune}",
        ),
    ],
    ids=str,
)
def test_a_key_that_nothing_reads_is_an_error(driver, mode, place, value, message):
    from ludwig.schema.model_types.base import ModelConfig

    config = words_config() if mode == "words" else base_config(driver.model, mode)
    if place[0] == "trainer" and place[-1] in ("trainer", "type"):
        config = with_keys(config, KEYS)
    set_at(config, place, value)
    if config["trainer"] is None:
        del config["trainer"]
    with refused(driver, message):
        ModelConfig.from_dict(config)


@pytest.mark.parametrize("tied_keys", [KEYS, {"neftune_noise_alpha": 7}], ids=str)
def test_a_key_of_a_tied_feature_is_an_error(driver, tied_keys, tmp_path):
    """Its encoder does not exist."""
    message = (
        f"input_features.1.encoder.model_parameters.neftune_noise_alpha: {tied_keys['neftune_noise_alpha']} has no "
        "effect: the feature instruction is tied to output and has no separate encoder; write it in the encoder of "
        "output"
    )
    with refused(driver, message):
        run_ludwig(with_two_features(driver.model, {}, tied_keys), tmp_path, driver.dataset)


def test_the_same_key_in_tied_features_is_read(driver, tmp_path):
    """Ludwig wants them to have the same parameters."""
    run = run_ludwig(with_two_features(driver.model, KEYS, KEYS), tmp_path, driver.dataset)
    assert len(trained(run.calls)) == 10
    assert_papers_noise(trained(run.calls), driver.pad_id)


@pytest.mark.parametrize("alpha", ZEROS, ids=repr)
def test_zero_is_no_noise_in_the_schema(driver, alpha):
    from ludwig.schema.model_types.base import ModelConfig

    keys = {"neftune_noise_alpha": alpha, "neftune_noise_type": "gaussian"}
    for mode in ("full", "ecd"):
        config = ModelConfig.from_dict(with_keys(base_config(driver.model, mode), keys))
        saved = config.to_dict()
        saved.pop("adapters", None)  # with it, Ludwig 0.17 alone can read no saved language model
        assert ModelConfig.from_dict(saved).to_dict() == config.to_dict()


@pytest.mark.parametrize("mode", ["full", "ecd"])
def test_zero_is_no_noise_and_one_line_says_so(driver, mode, tmp_path):
    keys = {"neftune_noise_alpha": 0, "neftune_noise_schedule": "cosine"}
    run = driver.train(mode, keys, folder=tmp_path)
    assert len(run.steps) == 5
    assert is_clean(run.calls)
    assert run.output.count("neftune_noise_alpha: 0 asks for no noise") == 1


@pytest.mark.parametrize(("given", "read"), [("5", 5), ("1e1", 10), ("5.5", 5.5)])
def test_numbers_may_be_text(driver, given, read):
    """As YAML has 1e1."""
    from ludwig.schema.model_types.base import ModelConfig

    config = ModelConfig.from_dict(with_keys(base_config(driver.model, "full"), {"neftune_noise_alpha": given}))
    assert config.model_parameters.neftune_noise_alpha == read


# --- Nothing is trained ----------------------------------------------------------------------------------------------


def untrained(driver, keys: dict[str, Any]) -> dict[str, Any]:
    """With a category to predict Ludwig makes the model when training begins."""
    config = with_keys(base_config(driver.model, "full"), keys)
    config["output_features"] = [{"name": "label", "type": "category", "preprocessing": {"fallback_label": "a"}}]
    config["output_features"][0]["decoder"] = {
        "type": "category_extractor",
        "match": {name: {"type": "contains", "value": name} for name in "ab"},
    }
    config["trainer"] = {"type": "none"}
    return config


def test_a_callback_where_nothing_is_trained_is_an_error(driver, tmp_path):
    from ludwig.api import LudwigModel
    from neftune_ludwig import NEFTuneCallback

    with clean_process(LineHandler()) as lines, driver.loads_model() as loaded:
        model = LudwigModel(untrained(driver, {}), callbacks=[NEFTuneCallback(alpha=ALPHA)])
        with pytest.raises(
            NoiseNotAppliedError, match="NEFTuneCallback: neftune_noise_alpha: 5 has no effect, because"
        ):
            model.train(dataset=str(driver.dataset), output_directory=str(tmp_path), **NOT_SAVED)
    assert loaded == []
    assert lines is None or "is applied by" not in lines


def test_a_saved_model_whose_trainer_trains_nothing_predicts_and_does_not_train(driver, tmp_path, monkeypatch):
    """Its keys may be older than this package."""
    from ludwig.api import LudwigModel

    with clean_process(LineHandler()):
        with monkeypatch.context() as switched_off:
            switched_off.setenv("NEFTUNE_PLUGINS", "0")
            model = LudwigModel(untrained(driver, KEYS))
            model.train(dataset=str(driver.dataset), output_directory=str(tmp_path), **NOT_SAVED)
        for train in (model.train, model.train_online):
            with pytest.raises(NoiseNotAppliedError, match=r"trained: trainer\.type is none"):
                train(dataset=str(driver.dataset))
        model.evaluate(dataset=str(driver.dataset))


def test_an_unread_key_of_a_saved_model_is_refused_when_it_trains(driver, tmp_path, monkeypatch):
    from ludwig.api import LudwigModel

    config = words_config()
    encoder = {"type": "llm", "base_model": str(driver.model), "model_parameters": KEYS}
    config["defaults"] = {"text": {"encoder": encoder}}
    with clean_process(LineHandler()):
        with monkeypatch.context() as switched_off:
            switched_off.setenv("NEFTUNE_PLUGINS", "0")
            LudwigModel(config).train(dataset=str(driver.dataset), output_directory=str(tmp_path))
        model = LudwigModel.load(str(tmp_path / "api_experiment_run" / "model"))
        model.predict(dataset=str(driver.dataset))
        with pytest.raises(NoiseNotAppliedError, match=r"defaults\.text\.encoder\.model_parameters\.neftune"):
            model.train(dataset=str(driver.dataset), output_directory=str(tmp_path / "again"), **NOT_SAVED)


# --- Loaded models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ecd", "ecd_left", "ecd_words"])
def test_a_loaded_model_trains_with_noise(driver, mode, tmp_path):
    """Ludwig does not tell such an encoder its padding id."""
    from ludwig.api import LudwigModel

    from tests.ludwig.recorder import LudwigProbe, language_model

    config = with_keys(base_config(driver.model, mode), KEYS)
    config["trainer"]["train_steps"] = 2
    with clean_process(LineHandler()):
        model = LudwigModel(config)
        model.train(dataset=str(driver.dataset), output_directory=str(tmp_path), skip_save_processed_input=True)
        pad, side = model.model.config_obj.input_features[0].encoder.pad_idx, "left" if mode == "ecd_left" else "right"
        loaded = LudwigModel.load(str(tmp_path / "api_experiment_run" / "model"))
        probe = LudwigProbe(pad, side)
        probe.attach(language_model(loaded.model))
        loaded.train(dataset=str(driver.dataset), output_directory=str(tmp_path / "again"), **NOT_SAVED)
    assert len(trained(probe.calls)) == 2
    assert_papers_noise(trained(probe.calls), pad)
