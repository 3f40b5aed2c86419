"""A power cut: what the disk holds is what was flushed, whatever was written after."""

import os
import shutil
from pathlib import Path

import pytest


class Power:
    """Remembers how long each log was when it was last flushed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._flushed: dict[int, int] = {}  # bytes, by inode
        really = os.fdatasync

        def flush(file: int) -> None:
            really(file)
            status = os.fstat(file)
            self._flushed[status.st_ino] = status.st_size

        monkeypatch.setattr(os, "fdatasync", flush)

    def cut(self, state: Path, left: Path) -> Path:
        """What would be on the disk of a state directory now, in another directory."""
        shutil.copytree(state, left)
        for path in left.rglob("*.db-shm"):
            path.unlink()
        for path in left.rglob("*.db-wal"):
            inode = (state / path.relative_to(left)).stat().st_ino
            os.truncate(path, min(path.stat().st_size, self._flushed.get(inode, 0)))
        return left
