import pytest
import torch


@pytest.fixture(scope="session")
def driver():
    from tests.ludwig.driver import make_driver

    torch.set_num_threads(1)
    return make_driver()
