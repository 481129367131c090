"""The models of these tests are tiny."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These matrices are too small to be worth sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
