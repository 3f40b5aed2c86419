"""The process that requantises a file. It is a process of its own because llama.cpp may abort.

    python -m llmasos.drivers.llama.requantise SOURCE TARGET QUANTISATION

The target appears only when it is complete and its header is valid; otherwise nothing is left. An
existing target, of an earlier run or of another machine with the same cache, is not rebuilt. Files
of simple types are converted to Q8_0 without llama.cpp, which may not be compiled yet.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from llmasos.drivers.local import gguf
from llmasos.drivers.local.q8_0 import Q8File
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError

from . import task
from .tuning import PART

_MEGA = 1_000_000
_OWN = "Q8_0"


class Conversion(Protocol):
    """The conversion of one file."""

    @property
    def result_bytes(self) -> int: ...

    def write(self, target: Path) -> None: ...


class OwnConversion:
    """To Q8_0, without llama.cpp."""

    def __init__(self, file: Q8File, report: Callable[[float], None]) -> None:
        self._file, self._report = file, report

    @property
    def result_bytes(self) -> int:
        return self._file.result_bytes

    def write(self, target: Path) -> None:
        try:
            with target.open("r+b") as file:
                self._file.convert(file, self._report)
        except OSError as error:
            raise DeviceFault(f"cannot convert {self._file.path} to {_OWN}: {error}") from error


def work(output: task.TaskOutput) -> dict[str, object]:
    source, target, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    gguf.read(source)
    if not _exists(target, wanted):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        conversion = _conversion(source, wanted, lambda done: output.stage("quantise", done))
        _check_space(conversion, target.parent)
        with _unfinished(target, output) as (part, fd):
            conversion.write(part)
            os.fsync(fd)
            if gguf.read(part).facts.quantisation != wanted:
                raise DeviceFault(f"{source} was not converted to {wanted}")
            part.rename(target)
        _sync(target.parent)
    return {"path": str(target)}


def _conversion(source: Path, wanted: str, report: Callable[[float], None]) -> Conversion:
    file = Q8File(source)
    if wanted == _OWN and file.convertible:
        return OwnConversion(file, report)
    from .conversion import LlamaConversion  # loads llama.cpp

    return LlamaConversion(source, wanted, report)


def _exists(target: Path, wanted: str) -> bool:
    try:
        return gguf.read(target).facts.quantisation == wanted
    except SyscallError:
        return False


def _check_space(conversion: Conversion, folder: Path) -> None:
    """ENOSPC when the target does not fit. FREE_BYTES stay free for the kernel."""
    needed = conversion.result_bytes + limits.FREE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SyscallError(
            Errno.ENOSPC,
            f"{needed / _MEGA:.0f} MB are needed at {folder} "
            f"({limits.FREE_BYTES / _MEGA:.0f} MB of them stay free), "
            f"{free / _MEGA:.0f} MB are free",
            "free disk space, or set LLMASOS_CACHE_DIR to a folder on another disk",
        )


@contextmanager
def _unfinished(target: Path, output: task.TaskOutput) -> Generator[tuple[Path, int]]:
    """A locked temporary file beside the target; deleted unless it is renamed."""
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}{PART}")
    output.unfinished = part
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield part, fd
    finally:
        part.unlink(missing_ok=True)
        os.close(fd)


def _sync(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


if __name__ == "__main__":
    task.run(work)
