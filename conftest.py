"""Options of the whole test suite."""

import pytest

from tests.support.garbage import leave_out_what_lives


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--driver", help="framework that the conformance suite tests, a folder of tests such as transformers"
    )
    parser.addoption("--all-models", action="store_true", help="tests/models: every architecture, not a quick sample")
    parser.addoption(
        "--dist", help="tests/package: a folder with the sdist and the wheel to test; they are built without"
    )


def pytest_runtest_teardown() -> None:
    leave_out_what_lives()
