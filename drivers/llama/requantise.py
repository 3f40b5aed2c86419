"""The process that requantises a file. It is a process of its own because llama.cpp may abort.

    python -m llmasos.drivers.llama.requantise SOURCE TARGET QUANTISATION

TARGET is complete when the process has reported its result; otherwise nothing is left. Files of
simple types are converted to Q8_0 without llama.cpp, which may not be compiled yet.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from llmasos.drivers.local import gguf, q8_0
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError

from . import task

_MEGA = 1_000_000
Report = Callable[[float], None]  # gets the progress, 0 to 1


class Conversion(Protocol):
    """The conversion of one file."""

    @property
    def result_bytes(self) -> int: ...

    def write(self, target: Path) -> None:
        """Write the converted file. DeviceFault with the reason."""
        ...


def _by_llama(source: Path, wanted: str, report: Report) -> Conversion:
    from .conversion import LlamaConversion  # loads llama.cpp

    return LlamaConversion(source, wanted, report)


# The first one that is not None is used.
CONVERSIONS: tuple[Callable[[Path, str, Report], Conversion | None], ...] = (
    q8_0.conversion,
    _by_llama,
)


def work(output: task.TaskOutput) -> dict[str, object]:
    source, target, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    gguf.read(source)
    output.unfinished = task.workspace_of(target) or target
    try:
        _convert(source, target, wanted, lambda done: output.stage("quantise", done))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return {"path": str(target)}


def _convert(source: Path, target: Path, wanted: str, report: Report) -> None:
    made = (make(source, wanted, report) for make in CONVERSIONS)
    conversion = next(one for one in made if one is not None)
    _check_space(conversion, target.parent)
    fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        conversion.write(target)
        os.fsync(fd)
    finally:
        os.close(fd)
    if gguf.read(target).facts.quantisation != wanted:
        raise DeviceFault(f"{source} was not converted to {wanted}")


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


if __name__ == "__main__":
    task.run(work)
