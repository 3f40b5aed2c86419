"""The contents of files that a running machine writes and deletes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def contents(root: Path) -> Iterator[tuple[Path, bytes]]:
    """The files below a directory, with their bytes. Those that are deleted meanwhile are none."""
    for path in root.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.read_bytes()


def containing(root: Path, what: bytes) -> list[Path]:
    """The files below a directory that contain these bytes."""
    return [path for path, data in contents(root) if what in data]
