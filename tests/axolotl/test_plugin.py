"""The plugin in Axolotl: its command line, its schema, the configurations that we show, and the demo."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from neftune_plugins import NoiseNotAppliedError
from neftune_plugins.config import looks_like_ours
from tests.axolotl.configs import base_config
from tests.axolotl.driver import NEEDS_PLUGINS_KEY, OUR_PLUGIN, make_driver, with_plugin, without_entry_point
from tests.axolotl.runs import SCRIPTS, WARM, axolotl_cli, axolotl_torchrun, run_axolotl
from tests.support import specification
from tests.support.bad_values import BAD_KEYS, MISPLACED
from tests.support.demo import AWKWARD, check_demo
from tests.support.probe import per_example, ratio
from tests.support.recorder import Run

ROOT = Path(__file__).parents[2]
KEYS = {"neftune_noise_alpha": 5}
OURS = ["neftune_plugins.model.hooks.EmbeddingHook"]
ZERO = "neftune_noise_alpha: 0 asks for no noise"


@pytest.fixture(scope="module")
def driver():
    torch.set_num_threads(1)
    return make_driver()


def neftune_hooks(run: Run) -> list[str]:
    return [hook for hook in run.steps[0]["hooks"] if "neftune" in hook]


def test_the_command_line_with_one_key(driver, tmp_path):
    run = axolotl_cli(with_plugin(base_config(driver.model, "sft") | KEYS), tmp_path)
    assert run.returncode == 0, run.output
    assert "neftune_noise_alpha: 5 is applied by neftune-plugins, the native hook is off" in run.output
    examples = [example for call in run.calls for example in per_example(call, driver.pad_id)]
    assert len(examples) == 20
    assert all(abs(ratio(example, 5) - 1) < 0.05 for example in examples)
    assert neftune_hooks(run) == OURS


def test_the_command_line_with_a_bad_value_fails_before_the_model_loads(driver, tmp_path):
    run = axolotl_cli(with_plugin(base_config(driver.model, "sft") | {"neftune_noise_alpha": -1}), tmp_path)
    assert run.returncode != 0
    assert "neftune_noise_alpha: -1 must be finite and above 0" in run.output
    assert "Loading model" not in run.output
    assert run.calls == []


def test_switched_off_axolotl_is_as_it_comes(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    run = run_axolotl(with_plugin(base_config(driver.model, "sft") | KEYS), tmp_path / "off")
    with without_entry_point():
        stock = run_axolotl(base_config(driver.model, "sft") | KEYS, tmp_path / "stock")
    assert [hook.rsplit(".", 1)[1] for hook in neftune_hooks(run)] == ["neftune_post_forward_hook"]
    assert run.losses == stock.losses
    assert run.weights == stock.weights


@pytest.mark.parametrize(
    "plugins",
    [[OUR_PLUGIN], ["neftune_axolotl.plugin.NEFTunePlugin"], [OUR_PLUGIN, "neftune_axolotl.plugin.NEFTunePlugin"]],
    ids=str,
)
def test_found_twice_it_is_one_plugin(driver, plugins, tmp_path):
    run = run_axolotl(base_config(driver.model, "sft") | KEYS | {"plugins": plugins}, tmp_path)
    assert neftune_hooks(run) == OURS


def test_null_is_off(driver, tmp_path):
    run = run_axolotl(with_plugin(base_config(driver.model, "sft") | {"neftune_noise_alpha": None}), tmp_path)
    assert neftune_hooks(run) == []


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        ("sft", {"neftune_noise_alpha": 0}),
        ("sft", {"noisy_embedding_alpha": 0.0, "neftune_noise_type": "gaussian"}),
        ("dpo", {"neftune_noise_alpha": "0", "neftune_metrics": False}),
    ],
    ids=str,
)
def test_zero_is_the_run_without_noise(driver, mode, keys, tmp_path):
    run = run_axolotl(with_plugin(base_config(driver.model, mode) | keys), tmp_path / "zero")
    clean = run_axolotl(with_plugin(base_config(driver.model, mode)), tmp_path / "clean")
    assert not any(call.noise.any() for call in run.calls)
    assert [hook for step in run.steps for hook in step["hooks"] if "neftune" in hook] == []
    assert run.weights == clean.weights is not None
    assert ZERO in run.output
    assert ZERO not in clean.output


@pytest.mark.parametrize("written", ["1e1", "10"])
def test_a_number_that_yaml_reads_as_text_is_a_number(driver, written, tmp_path):
    config = with_plugin(base_config(driver.model, "sft") | {"neftune_noise_alpha": written, "max_steps": 2})
    run = run_axolotl(config, tmp_path)
    examples = [example for call in run.calls for example in per_example(call, driver.pad_id)]
    assert examples and all(abs(ratio(example, 10) - 1) < 0.05 for example in examples)


@pytest.mark.parametrize(
    ("options", "alpha"),
    [(["--neftune-noise-alpha", "7.5"], 7.5), (["--neftune-noise-alpha=0"], 0)],
    ids=str,
)
def test_a_number_on_the_command_line_over_an_integer_in_the_file(driver, options, alpha, tmp_path):
    config = with_plugin(base_config(driver.model, "sft") | KEYS | {"max_steps": 2})
    run = axolotl_cli(config, tmp_path, *options)
    assert run.returncode == 0, run.output
    assert run.output.count(ZERO) == (alpha == 0)
    examples = [example for call in run.calls for example in per_example(call, driver.pad_id)]
    assert examples
    assert all((abs(ratio(example, alpha) - 1) < 0.05) if alpha else not example.noise.any() for example in examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--neftune-noise-alhpa", "5"], "--neftune-noise-alhpa: there is no such option (value 5); did you mean"),
        (["--neftune-noise-type", "gaussian"], "this command line has no such option (value gaussian); write"),
        (["--trl.neftune-noise-alpha", "5"], "--trl.neftune-noise-alpha: 5 has no effect there; write"),
        (["--neftune_noise_alpha", "5"], "this command line has no such option (value 5); write --neftune-noise-alpha"),
        (["neftune_noise_alpha=5"], "neftune_noise_alpha=5 is not read; write --neftune-noise-alpha 5"),
        (["--", "--neftune-noise-alpha", "5"], "--neftune-noise-alpha: after -- it is not read"),
        (["--neftune-noise-alpha", "abc"], "'abc' must be a number, such as 5; it is text (from the command line)"),
    ],
    ids=str,
)
def test_options_that_axolotl_drops_stop_the_run(driver, options, message, tmp_path):
    run = axolotl_cli(with_plugin(base_config(driver.model, "sft")), tmp_path, *options)
    assert run.returncode != 0
    assert message in run.output
    assert run.calls == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        *MISPLACED,
        ({"datasets": [{"path": "x", "neftune_noise_alpha": 5}]}, "datasets.0.neftune_noise_alpha: 5 has no effect"),
        ({"deepspeed": {"neftune": 5}}, "deepspeed.neftune: 5 has no effect there"),
    ],
    ids=[str(keys)[:60] for keys, _ in MISPLACED] + ["datasets", "deepspeed"],
)
def test_misplaced_keys_stop_the_run_before_the_model_loads(driver, keys, message, tmp_path):
    with driver.loads_model() as loaded, pytest.raises(ValueError, match=re.escape(message)):
        driver.train("sft", keys, folder=tmp_path)
    assert loaded == []


def test_the_older_and_the_present_name_together_are_an_error(driver, tmp_path):
    keys = {"noisy_embedding_alpha": 5, "neftune_noise_alpha": 0}
    with pytest.raises(ValueError, match="both set, and the first is the older name"):
        driver.train("sft", keys, folder=tmp_path)


def test_no_key_of_axolotl_looks_like_ours():
    from axolotl.utils.schemas.config import AxolotlConfigWCapabilities

    names = [name for model in with_parts(AxolotlConfigWCapabilities) for name in model.model_fields]
    assert len(names) > 300
    assert set(filter(looks_like_ours, names)) == {"neftune_noise_alpha", "noisy_embedding_alpha"}


def with_parts(model):
    """The pydantic models in a pydantic model, itself first."""
    found = [model]
    for one in found:
        annotations = [field.annotation for field in one.model_fields.values()]
        while annotations:
            annotation = annotations.pop()
            annotations += get_args(annotation)
            if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
                found.append(annotation)
    return found


class _Silent(BasePlugin):
    """Other plugins, and trainers, that keep ours from working."""

    def add_callbacks_post_trainer(self, cfg, trainer):
        if self.drops == "callback":
            callbacks = trainer.callback_handler.callbacks
            callbacks[:] = [callback for callback in callbacks if "NEFTune" not in type(callback).__mro__[1].__name__]
        if self.drops == "events":
            trainer.train = lambda resume_from_checkpoint=None: None
        return []

    def pre_model_load(self, cfg):
        if self.drops == "key":
            cfg.neftune_noise_alpha = None


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        ("key", "is missing from the configuration after Axolotl's validation"),
        ("callback", "would have no effect: AxolotlTrainer ignores the callbacks that it gets"),
        ("events", "the trainer did not call on_train_begin of its callbacks"),
    ],
)
def test_keys_that_are_lost_on_their_way_stop_the_run(driver, drops, message, tmp_path, monkeypatch):
    monkeypatch.setattr(_Silent, "drops", drops, raising=False)
    monkeypatch.setattr("tests.axolotl.probe_plugin.Silent", _Silent, raising=False)
    config = with_plugin(base_config(driver.model, "sft") | KEYS)
    config["plugins"] = [*config.get("plugins", []), "tests.axolotl.probe_plugin.Silent"]
    with pytest.raises(NoiseNotAppliedError, match=message):
        run_axolotl(config, tmp_path)


OTHER_TRAINERS = {
    "ipo": ("dpo", {"rl": "ipo"}),
    "simpo": ("dpo", {"rl": "simpo", "rl_beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0}),
    "reward": (
        "sft",
        {
            "datasets": {"type": "bradley_terry.chat_template"},
            "reward_model": True,
            "model_type": "AutoModelForSequenceClassification",
            "num_labels": 1,
            "remove_unused_columns": False,
            "chat_template": "tokenizer_default",
        },
    ),
    "process_reward": (
        "sft",
        {
            "datasets": {"type": "stepwise_supervised", "step_separator": "\n", "max_completion_length": 100},
            "process_reward_model": True,
            "model_type": "AutoModelForTokenClassification",
            "num_labels": 2,
            "remove_unused_columns": False,
        },
    ),
}


@pytest.mark.parametrize("name", OTHER_TRAINERS)
def test_other_trainers_have_the_noise_too(driver, name, tmp_path):
    """Those that the conformance suite does not run."""
    mode, changes = OTHER_TRAINERS[name]
    config = base_config(driver.model, mode) | KEYS | {"max_steps": 2} | changes
    if mode == "sft":
        pairs = [(f"What is {number}?", "one two three", "four five") for number in range(12)]
        rows = [
            {"system": "", "input": question, "chosen": good, "rejected": bad}
            | {"prompt": question, "completions": [good, bad], "labels": [True, False]}
            for question, good, bad in pairs
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config["datasets"] = [{"path": str(path), "ds_type": "json"} | changes["datasets"]]
    run = run_axolotl(with_plugin(config), tmp_path / "run")
    assert neftune_hooks(run) == OURS
    assert all(call.noise.any() for call in run.calls if call.training and call.grad_enabled)
    assert any(call.noise.any() for call in run.calls)


def test_axolotls_older_name_of_the_key_is_taken_over_too(driver, tmp_path):
    keys = {"noisy_embedding_alpha": 5, "neftune_noise_type": "gaussian"}
    run = run_axolotl(with_plugin(base_config(driver.model, "sft") | keys), tmp_path)
    assert neftune_hooks(run) == OURS


@pytest.mark.parametrize("value", [float("nan"), True, "five", -1])
def test_the_older_name_is_checked_too(driver, value, tmp_path):
    with driver.loads_model() as loaded, pytest.raises(ValueError, match=r"neftune_noise_alpha: .* must be"):
        driver.train("sft", {"noisy_embedding_alpha": value}, folder=tmp_path)
    assert loaded == []


@pytest.mark.parametrize(("keys", "message"), BAD_KEYS, ids=[str(keys)[:60] for keys, _ in BAD_KEYS])
def test_misspelt_keys_stop_the_run_before_the_model_loads(driver, keys, message, tmp_path):
    with driver.loads_model() as loaded, pytest.raises(ValueError, match=re.escape(message)):
        driver.train("sft", keys, folder=tmp_path)
    assert loaded == []


@pytest.mark.parametrize(
    "keys",
    [
        {"context_parallel_size": 2},
        {"sequence_parallel_degree": 2},
        pytest.param(
            {"context_parallel": {"size": 2}},
            marks=pytest.mark.skipif(NEEDS_PLUGINS_KEY, reason="this release has no such key"),
        ),
    ],
    ids=str,
)
def test_sequences_cut_over_processes_are_refused_before_the_model_loads(driver, keys, tmp_path):
    [name] = keys
    message = rf"\b{name}(.size)?: 2 cannot be combined with neftune_noise_alpha"
    with driver.loads_model() as loaded, pytest.raises(ValueError, match=message):
        driver.train("sft", KEYS | keys, folder=tmp_path)
    assert loaded == []


def noise_of_examples(run: Run, pad_id: int, step: int) -> dict[tuple[int, ...], torch.Tensor]:
    """The noise of each example of one step, by its tokens."""
    return {
        tuple(example.ids.tolist()): example.noise
        for call in run.calls
        if call.global_step == step
        for example in per_example(call, pad_id)
    }


def test_two_processes_share_the_batch_of_one(driver, tmp_path):
    config = with_plugin(base_config(driver.model, "sft") | KEYS | {"max_steps": 2})
    single = run_axolotl(config, tmp_path / "one")
    ranks = axolotl_torchrun(config | {"micro_batch_size": 2}, tmp_path / "two")
    assert ranks[0].returncode == 0, ranks[0].output
    assert [neftune_hooks(rank) for rank in ranks] == [OURS, OURS]
    for step in range(2):
        want = noise_of_examples(single, driver.pad_id, step)
        parts = [noise_of_examples(rank, driver.pad_id, step) for rank in ranks]
        assert parts[0].keys() != parts[1].keys()
        assert parts[0].keys() | parts[1].keys() == want.keys()
        for ids, noise in [*parts[0].items(), *parts[1].items()]:
            if step == 0:  # before the weights have been trained, in sums of another order
                assert torch.equal(noise, want[ids])
            specified = specification.noise(list(ids), noise.shape[1], alpha=5, seed=driver.seed, step=step)
            # Both are differences of float32 sums; their terms are below 1.
            torch.testing.assert_close(noise, torch.tensor(specified), rtol=0, atol=2e-7)
    assert ranks[0].weights == ranks[1].weights is not None


EXAMPLES = sorted((ROOT / "example_configs" / "axolotl").glob("*.yml"))


def example_config(path: Path, model: Path) -> dict:
    """The example on a tiny model, with its data found from anywhere."""
    config = yaml.safe_load(path.read_text())
    for dataset in config["datasets"]:
        dataset["path"] = str(ROOT / dataset["path"])
        assert Path(dataset["path"]).exists()
    return with_plugin(config | {"base_model": str(model)})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_pass_axolotls_validation(driver, path):
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    config = example_config(path, driver.model)
    manager = PluginManager.get_instance()
    manager.register(OUR_PLUGIN)
    config["plugins"] = [OUR_PLUGIN]
    gpu = {"bf16": True, "tf32": True, "fp8": False, "n_gpu": 1, "compute_capability": "sm_90", "n_node": 1}
    validated = validate_config(DictDefault(config), capabilities=gpu, env_capabilities={"torch_version": "2.13.0"})
    assert validated.neftune_noise_alpha == 5
    manager.plugins.clear()


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "qlora"], ids=lambda path: path.stem)
def test_examples_train_with_noise(driver, path, tmp_path):
    config = example_config(path, driver.model)
    fast = {"max_steps": 2, "dataset_num_proc": 1, "dataset_prepared_path": str(driver.model.parent / "prepared")}
    run = run_axolotl(config | fast | {"output_dir": str(tmp_path / "out")}, tmp_path)
    trained = [call for call in run.calls if call.training and call.grad_enabled]
    assert len(trained) == 2
    for call in trained:
        for example in per_example(call, driver.pad_id):
            assert abs(ratio(example, 5) - 1) < 0.1
    assert all(not call.noise.any() for call in run.calls if not (call.training and call.grad_enabled))


def neftune(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command is warm, but what the demo launches is new."""
    return WARM.run([SCRIPTS / "neftune", *arguments], cwd=cwd, env={**os.environ, **environment})


def test_the_demo_trains_and_reports(tmp_path):
    place = tmp_path / AWKWARD
    place.mkdir()
    result = neftune("demo", "--tiny", "--steps", "4", cwd=place)
    folder = place / "neftune-demo"
    check_demo(result, folder / "axolotl.yml", folder / "trained")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "-1", "--tiny"], "neftune: neftune_noise_alpha: -1.0 must be finite and above 0"),
        (["--model", "nowhere"], "there is no config.json in it; give a model's folder"),
        (
            ["--framework", "axolotll"],
            "neftune: --framework axolotll: there is no such adapter; choose one of: axolotl",
        ),
    ],
)
def test_the_demo_says_what_is_wrong(arguments, message, tmp_path):
    result = neftune("demo", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stdout


def test_the_demo_without_a_network_names_the_ways_out(tmp_path):
    """An index that does not answer, and an empty cache."""
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_FIND_LINKS": ""}
    unreachable |= {"PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = neftune("demo", cwd=tmp_path, **unreachable)
    assert result.returncode == 1
    assert "train a model that you have with --model PATH, or a small random one with --tiny" in result.stdout
    assert list((tmp_path / "cache" / "neftune-plugins").iterdir()) == []
