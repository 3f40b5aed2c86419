"""The embedder's model is mapped from a file, which is made anew when it cannot be used."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmasos.drivers.recall import encoder_file
from llmasos.drivers.recall.encoder import NAME, Encoder
from tests.cache import CACHE

TEXTS = ["", "The museum opens at nine.", "Der Zug nach Berlin fährt um acht.", "猫が好きです。"]


@pytest.fixture(scope="module")
def made() -> Path:
    """The file of the run."""
    Encoder(CACHE)
    return encoder_file.path_of(CACHE, NAME)


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(made, tmp_path))


def test_vectors_are_those_of_the_package_to_the_last_bit(made: Path) -> None:
    loaded = Encoder(made.parent)
    assert str(made) in Path("/proc/self/maps").read_text()
    assert np.array_equal(loaded.encode(TEXTS), Encoder().encode(TEXTS))


def changed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        [byte] = file.read(1)
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [changed, cut_short, emptied, os.unlink, replaced_by_a_folder])
def test_a_damaged_file_is_not_loaded(path: Path, spoil: Callable[[Path], None]) -> None:
    assert encoder_file.load(path) is not None
    spoil(path)
    assert encoder_file.load(path) is None


def test_a_damaged_file_is_replaced(path: Path) -> None:
    changed(path)
    Encoder(path.parent)
    assert encoder_file.load(path) is not None
    assert path.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_names_anything_but_a_model_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    encoder_file.save(path, {"weights": np.ones(3)})
    loaded = encoder_file.load(path)
    assert loaded is not None
    assert list(loaded["weights"]) == [1, 1, 1]
    encoder_file.save(path, os.getcwd)
    assert encoder_file.load(path) is None


def test_the_files_of_other_versions_and_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, partial, other = (tmp_path / name for name in ("embedder-0.bin", "embedder-x", "model"))
    for one in (old, partial, other):
        one.touch()
    path = encoder_file.path_of(tmp_path, NAME)
    encoder_file.save(path, 1)
    assert set(tmp_path.iterdir()) == {other, path}


def test_a_file_that_cannot_be_written_is_reported_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no folder").touch()
    path = tmp_path / "no folder" / "file"
    encoder_file.save(path, 1)
    encoder_file.save(tmp_path / "file", lambda: 1)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["no folder"]
