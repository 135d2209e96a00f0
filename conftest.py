"""Options of the whole test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--driver", help="framework that the conformance suite tests, a folder of tests such as transformers"
    )
