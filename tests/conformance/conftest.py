"""The framework under test: `pytest tests/conformance --driver axolotl`."""

import importlib
from collections.abc import Callable

import pytest
import torch

from tests.conformance.driver import Driver
from tests.support.recorder import Run, remembered


def make_driver(config: pytest.Config) -> Driver:
    """The driver that the command line names, made once."""
    if not hasattr(config, "_neftune_driver"):
        torch.set_num_threads(1)  # sums over several threads differ from run to run
        name = config.getoption("--driver")
        if name is None:
            raise pytest.UsageError("tests/conformance needs --driver NAME, a folder of tests such as transformers")
        config._neftune_driver = importlib.import_module(f"tests.{name}.driver").make_driver()
    return config._neftune_driver


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in ("mode", "sft_mode", "native_mode", "rollout_mode", "golden_mode", "resumed_mode"):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, getattr(make_driver(metafunc.config), f"{fixture}s"))


@pytest.fixture(scope="session")
def driver(pytestconfig: pytest.Config) -> Driver:
    return make_driver(pytestconfig)


@pytest.fixture(scope="session")
def run(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    return remembered(driver.train, tmp_path_factory)
