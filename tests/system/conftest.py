"""Fixtures of the system stories."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine that is not running yet."""
    machine = Machine(tmp_path)
    yield machine
    machine.down()


@pytest.fixture
def meaning(machine: Machine) -> None:
    """The machine finds pages by their meaning, too."""
    machine.meaning()
