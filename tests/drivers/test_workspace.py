"""The workspace of unfinished files, and what a child process removes when the kernel ends."""

import fcntl
from errno import ENOLCK
from pathlib import Path
from typing import Any

import pytest

from llmasos.drivers.llama import task, workspace
from llmasos.kernel.abi.errors import DeviceFault

pytestmark = pytest.mark.anyio


async def test_its_files_are_removed_with_it(tmp_path: Path) -> None:
    async with workspace.workspace(tmp_path / "cache") as folder:
        (folder / "a.gguf").touch()
        assert task.workspace_of(folder / "a.gguf") == folder
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["qwen.part", ".part", ".mine.part", ".0123abcde.part"])
def test_a_directory_of_a_user_is_no_workspace(name: str) -> None:
    assert task.workspace_of(Path("/data", name, "model.gguf")) is None


async def test_a_workspace_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    async with workspace.workspace(tmp_path) as folder:
        left = tmp_path / ".0123abcd.part"
        left.mkdir()
        (left / "b.gguf").touch()
        async with workspace.workspace(tmp_path):
            assert not left.exists()
            assert folder.exists()


async def test_a_file_system_without_locks_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DeviceFault, match="No locks available"):
        async with workspace.workspace(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
