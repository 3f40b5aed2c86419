"""Fixtures of the tests of drivers."""

from pathlib import Path

import pytest

from tests.drivers import q8_model


@pytest.fixture(scope="session")
def q8() -> Path:
    """The cut model in Q8_0."""
    return q8_model.cut()
