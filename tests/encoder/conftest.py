"""The encoders of these tests are tiny."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def tiny(one_thread):
    """One thread for every test here."""
