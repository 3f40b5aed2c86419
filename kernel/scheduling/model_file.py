"""Model files: versions, digests, and the requantised file of an image."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..abi.values import TuneCandidate


@dataclass(frozen=True, slots=True)
class RequantisedFile:
    """The requantised file of an image. An empty path: the user chose the original file."""

    path: Path
    quantisation: str
    stamp: str  # of the source file
    candidates: Sequence[TuneCandidate] = ()  # as last measured


def stamp(path: Path) -> str:
    """Identifies a version of a file by size, time and inode. OSError when there is none."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
