"""Each code block of README, CONTRIBUTING and docs is checked by a test; here are those that need no framework."""

import dataclasses
import json
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml

from neftune_plugins import NoiseConfig, NoiseConfigError, install
from neftune_plugins.commands.diagnosis import Finding, report
from neftune_plugins.noise.draw import noise, stream_key, token_keys, token_scales
from neftune_plugins.noise.layout import read_layout
from neftune_plugins.plugins.manager import frameworks, noise_types, plugin_manager
from tests.support import specification
from tests.support.documentation import ROOT, shown, shown_everywhere, unchecked
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded
from tests.support.shell import CHECKS, STRANGERS, command_lines


def test_every_code_block_is_checked_by_a_test():
    assert not unchecked(), "take it with shown(page, language, number) in the test that runs or checks it"


def test_the_command_lines():
    for program, arguments in command_lines():
        if program not in STRANGERS:
            CHECKS[program](arguments)


def nested(value: object) -> list[dict]:
    """All mappings in a value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] * isinstance(value, dict) + [found for part in inside for found in nested(part)]


def test_yaml_asks_for_noise():
    for page, code in shown_everywhere("yaml"):
        found = yaml.safe_load(code)
        if "repos" in found:  # of pre-commit
            continue
        if "hyperopt" in found:  # its trials set alpha: tests/ludwig/test_hyperopt.py
            assert "model_parameters.neftune_noise_alpha" in found["hyperopt"]["parameters"]
            continue
        [config] = filter(None, map(NoiseConfig.from_keys, nested(found)))
        assert config.alpha in (5, 5.5) and config.type == "uniform", page


# --- docs/noise.md ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", json.loads(shown("docs/noise.md", "json")), ids=lambda vector: vector["type"])
def test_the_test_vectors(vector):
    ids = torch.tensor([vector["ids"]])
    layout = read_layout({"input_ids": ids})
    keys = token_keys(ids, layout, stream_key(vector["seed"], vector["stream"]), torch.tensor(vector["step"]))
    scales = token_scales(layout, vector["d"], vector["alpha"])
    got = noise(keys[0], scales[0], vector["d"], noise_types()[vector["type"]])[:, [0, 1, -1]]
    want = torch.tensor(vector["noise"])
    if vector["type"] == "gaussian":
        torch.testing.assert_close(got, want, rtol=2**-23, atol=0)
    else:
        assert torch.equal(got, want)


class Word(int):
    """An unsigned integer, arithmetic on which is mod 2^bits; `signed` has `>>` shift the upper bit in."""

    bits, signed = 64, False

    def _made(self, value: int) -> "Word":
        return type(self)(value % 2**self.bits)

    def __add__(self, other: int) -> "Word":
        return self._made(int(self) + other)

    def __mul__(self, other: int) -> "Word":
        return self._made(int(self) * other)

    def __xor__(self, other: int) -> "Word":
        return self._made(int(self) ^ int(other))

    def __rshift__(self, other: int) -> "Word":
        value = int(self) - 2**self.bits if self.signed and int(self) >> (self.bits - 1) else int(self)
        return self._made(value >> other)


class Half(Word):
    bits, signed = 32, True


def formula(line: str) -> str:
    """Without what is said behind it."""
    return re.split(r" {3,}(?![= ])", line)[0]


def evaluated(code: str, **scope: object) -> dict:
    """What the formulas of a block give, line by line."""
    for line in code.splitlines():
        exec(formula(line), {}, scope)
    return scope


@pytest.mark.parametrize("x", [0, 1, 49151, 2**63 + 12345, 2**64 - 1])
def test_the_formulas_of_mix(x):
    assert evaluated(shown("docs/noise.md", "", 0), x=Word(x))["mix"] == specification.mix(x)


def test_the_formulas_of_an_examples_keys():
    """Each as a function of what stands above it; a sum over p is over the ids."""
    ids, seed, step, stream = [1, 15043, 2], 42, 3, 1
    code = shown("docs/noise.md", "", 1).replace("sum over p of", "total(lambda p, t_p:")
    first, second, third = map(formula, code.splitlines())
    scope = {"mix": lambda x: Word(specification.mix(x)), "seed": Word(seed), "stream": stream, "step": step}
    scope["total"] = lambda term: sum((term(p, t) for p, t in enumerate(ids)), Word())
    exec(f"{first})\n{second}", scope)
    want = specification.keys(ids, seed=seed, step=step, stream=stream)
    for p, key in enumerate(want):
        exec(third, scope | {"p": p}, found := {})
        assert found["key_p"] == key


def test_the_formulas_of_a_channel():
    key, c = specification.mix(7), 5
    halves = {"low_p": Half(key % 2**32), "high_p": Half(key >> 32)}
    h = evaluated(shown("docs/noise.md", "", 2), c=Half(c), **halves)["h"]
    assert h == specification.channel_bits(key, c)


def test_the_formulas_of_the_scale():
    scope = {"alpha_s": 5.0, "L": 3, "d": 64, "sqrt": lambda x: x**0.5, "u": 0.25}
    code = shown("docs/noise.md", "", 3).replace("sqrt(L d)", "sqrt(L * d)")
    found = evaluated(code, **scope)
    assert found["scale"] == pytest.approx(specification.scale(3, 64, 5.0), rel=2**-22)
    assert found["noise"] == 0.25 * found["scale"]


# --- Loops of one's own ----------------------------------------------------------------------------------------------


class Model(ToyModel):
    """With a loss, as the snippets have it, and a record of what entered."""

    def __init__(self):
        super().__init__()
        self.all_entered = []

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        logits = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        self.all_entered.append(self.entered)
        return SimpleNamespace(loss=logits.logsumexp(-1).mean())


@pytest.mark.parametrize("code", [shown("README.md", "python", 1), shown("docs/core.md", "python")])
def test_loops_of_ones_own(code):
    ids, mask = padded(examples([5, 9]))
    model = Model().eval()  # as `from_pretrained` gives one
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    exec(code, {"model": model, "batches": [{"input_ids": ids, "attention_mask": mask}] * 3, "optimizer": optimizer})
    first, second, third = model.all_entered
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert not model._forward_pre_hooks


def test_gradient_caching():
    """Both passes have the same noise, of which the first is computed without gradients."""
    ids, mask = padded(examples([5, 9]))
    model = Model().train()
    with install(model, NoiseConfig(alpha=5)) as noise:
        noise.step = 0
        exec(
            shown("docs/core.md", "python", 1),
            scope := {"model": model, "noise": noise, "batch": {"input_ids": ids, "attention_mask": mask}},
        )
    first, second = model.all_entered
    assert torch.equal(first, second) and not torch.equal(first, model.embed_tokens.weight[ids])
    assert not scope["cached"].loss.requires_grad and scope["again"].loss.requires_grad


def test_the_loop_that_needs_nothing_else():
    scope: dict = {}
    exec(shown("docs/start.md", "python", 1), scope)
    assert scope["noise"].step == 2 and not scope["noise"].installed
    assert scope["model"].embedding.weight.grad.any()


def test_the_line_in_the_log():
    model = torch.nn.ModuleDict({"model": ToyModel()})
    with untrained(model, NoiseConfig(alpha=5)) as noise:
        assert str(noise).startswith(shown("docs/start.md", "text").strip().removesuffix("..."))


# --- docs/plugins.md -------------------------------------------------------------------------------------------------


def test_the_plugin_page_shows_the_example_package():
    package = ROOT / "tests" / "example_plugin"
    source = (package / "neftune_triangular" / "__init__.py").read_text()
    assert source.endswith(shown("docs/plugins.md", "python"))
    assert shown("docs/plugins.md", "toml") in (package / "pyproject.toml").read_text()


@pytest.fixture
def module(monkeypatch):
    """Makes a module of code, and a plugin too where it has hooks."""
    plugins = []

    def make(code: str, name: str = "shown") -> ModuleType:
        made = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made)
        exec(code, vars(made))
        plugin_manager().register(made)
        plugins.append(made)
        return made

    yield make
    for plugin in plugins:
        plugin_manager().unregister(plugin)


def test_the_finder_of_embeddings(module):
    model = module(shown("docs/plugins.md", "python", 1)).Unusual().train()
    ids = torch.arange(5)[None]
    with install(model, NoiseConfig(alpha=5)) as noise:
        assert noise.embeddings == ["words"]
        assert not torch.equal(model(ids), model.words.weight[ids])


def test_the_reader_of_batches(module):
    module(shown("docs/plugins.md", "python", 2))
    model, (ids, _) = ToyModel().train(), padded(examples([5, 9]))
    with untrained(model, NoiseConfig(alpha=5)) as noise:
        layout = noise.layout({"input_ids": ids, "lengths": torch.tensor([5, 9])})
        assert layout.real_BL.sum(-1).tolist() == [5, 9]
        assert noise.layout({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).real_BL.all()


def test_the_adapter(module, tmp_path, monkeypatch):
    little = module(shown("docs/plugins.md", "python", 3), "little")
    adapter = module(shown("docs/plugins.md", "python", 4), "little_adapter")
    ids, mask = padded(examples([5, 9]))
    batches = [{"input_ids": ids, "attention_mask": mask}] * 3
    config = {"little_model": "m", "learning_rate": 0.1, "seed": 7, "neftune_noise_alpha": 5}

    def trained(trainer: type, config: dict) -> torch.Tensor:
        torch.manual_seed(0)
        model = ToyModel()
        trainer(model, config, batches).train()
        assert not model._forward_pre_hooks
        return model.embed_tokens.weight

    plain = trained(little.Trainer, config)
    noisy = trained(adapter.NoisyTrainer, config)
    assert not torch.equal(noisy, plain)
    assert torch.equal(trained(adapter.NoisyTrainer, config), noisy)
    assert not torch.equal(trained(adapter.NoisyTrainer, config | {"seed": 8}), noisy)
    assert torch.equal(trained(adapter.NoisyTrainer, config | {"neftune_noise_alpha": None}), plain)
    with pytest.raises(NoiseConfigError):
        trained(adapter.NoisyTrainer, config | {"neftune_noise_alpha": -1})
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    assert torch.equal(trained(adapter.NoisyTrainer, config), plain)

    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    [checked] = frameworks()["little"].check(file)
    assert (checked.model, checked.keys["neftune_noise_alpha"], checked.seed) == ("m", 5, 7)


# --- What commands print ---------------------------------------------------------------------------------------------


def test_the_error_of_a_misspelt_key():
    place, message = shown("docs/commands.md", "text", 2).strip().split(": ", 1)
    assert re.fullmatch(r"my\.yml:\d+", place)
    with pytest.raises(NoiseConfigError, match=re.escape(message)):
        NoiseConfig.from_keys({"neftune_noise_alpha": 5, "neftune_nois_type": "gaussian"})


def test_what_the_doctor_prints_has_its_form():
    """The environment of the page is a broken one; its findings, read back, give the page again."""
    text, states = shown("docs/commands.md", "text", 0), {"ok": "ok", "-": "info", "WRONG": "wrong"}
    about, findings = "", []
    for line in text.splitlines():
        if found := re.fullmatch(r"  (ok|-|WRONG) +(.+?) {2,}(.+)", line):
            findings.append(Finding(about, found[2], found[3], states[found[1]]))
        elif line.lstrip().startswith("remedy: "):
            findings[-1] = dataclasses.replace(findings[-1], remedy=line.split("remedy: ")[1])
        else:
            about = line
    assert report(findings) + "\n" == text


def test_what_the_demo_prints_agrees_with_itself():
    """Row for row: alpha / sqrt(3 L d) of the example and of the row, and what was measured in L d draws."""
    text, d = shown("docs/demo.md", "text"), 576
    rows = [line.split() for line in text.splitlines() if re.fullmatch(r"(\s+[\d.]+){5}", line)]
    assert len(rows) == 8
    for length, width, measured, expected, native in (map(float, row) for row in rows):
        assert f"{5 / (3 * length * d) ** 0.5:.6f}" == f"{expected:.6f}"
        assert f"{5 / (3 * width * d) ** 0.5:.6f}" == f"{native:.6f}"
        # Standard error of the root mean square of n uniform draws: sqrt(E x^4 / (E x^2)^2 - 1) / (2 sqrt n).
        error = (9 / 5 - 1) ** 0.5 / (2 * (length * d) ** 0.5)
        assert measured == pytest.approx(expected, rel=5 * error)


# --- docs/native.md and the comparison -------------------------------------------------------------------------------


def cells(page: str, column: int) -> list[str]:
    """A column of all tables of a page."""
    rows = [line.split("|")[1:-1] for line in (ROOT / page).read_text().splitlines() if line.startswith("| ")]
    return [row[column].strip() for row in rows if len(row) > column]


def test_the_commands_that_reproduce_what_is_wrong_with_the_native_hook():
    found = [
        cell.strip("`").split() for cell in cells("docs/native.md", 2) if re.match("`(measure|pytest|survey)", cell)
    ]
    assert len(found) == 15
    for program, *arguments in found:
        if program == "pytest":
            file, option, name = arguments
            assert option == "-k" and re.search(rf"^def test\w*{name}", (ROOT / file).read_text(), re.MULTILINE), name
        elif program == "survey":
            assert arguments[0] == "--only" and set(arguments[1:]) <= set(cells("docs/models.md", 0))
        else:
            option, driver, modes, *named = arguments
            assert (option, modes) == ("--driver", "--modes")
            source = "".join(file.read_text() for file in (ROOT / "tests" / driver).glob("[cd]*.py"))
            assert all(f'"{mode}"' in source for mode in named), named


def test_the_readmes_comparison_is_a_part_of_the_page():
    def rows(page: str) -> list[str]:
        text = re.sub(r"\[\^\w+\]", "", (ROOT / page).read_text())
        return text.split("| | ours |")[1].split("\n\n")[0].splitlines()

    shown, all_of_them = rows("README.md"), rows("docs/comparison.md")
    assert shown[0] == all_of_them[0]
    assert len(shown) > 8
    assert set(shown) <= set(all_of_them)
