"""The process that requantises a file. It is a process of its own because llama.cpp may abort.

    python -m llmasos.drivers.llama.requantise SOURCE TARGET QUANTISATION

The target appears only when it is complete and its header is valid; otherwise nothing is left. An
existing target, of an earlier run or of another machine with the same cache, is not rebuilt.
"""

import ctypes
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from llmasos.drivers.local import gguf
from llmasos.drivers.local.options import cores
from llmasos.drivers.local.quantisation import FILE_TYPES
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError

from . import task
from .library import lib
from .tuning import PART

_MEGA = 1_000_000
_SIZE = re.compile(r"(model|quant) size += +([0-9.]+) MiB")
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
_ERROR = 4  # of ggml's log levels


class Log:
    """Parses the log of llama.cpp: sizes, progress by tensor, the last error."""

    def __init__(self, output: task.TaskOutput) -> None:
        self._output = output
        self.follow = False  # report each tensor as progress
        self.sizes: dict[str, float] = {}  # bytes
        self.error = ""
        self._callback = lib.llama_log_callback(self._parse)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _parse(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if level == _ERROR:
            self.error = line.strip()
            sys.stderr.write(line)
        for name, mega in _SIZE.findall(line):
            self.sizes[name] = float(mega) * 2**20
        if self.follow and (tensor := _TENSOR.match(line)):
            self._output.stage("quantise", int(tensor[1]) / int(tensor[2]))


def work(output: task.TaskOutput) -> dict[str, object]:
    source, target, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    gguf.read(source)
    if not _exists(target, wanted):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = Log(output)
        _check_space(source, target, wanted, log)
        with _unfinished(target, output) as (part, fd):
            log.follow = True
            _quantise(source, part, wanted, log)
            os.fsync(fd)
            if gguf.read(part).facts.quantisation != wanted:
                raise DeviceFault(f"llama.cpp did not convert {source} to {wanted}")
            part.rename(target)
        _sync(target.parent)
    return {"path": str(target)}


def _exists(target: Path, wanted: str) -> bool:
    try:
        return gguf.read(target).facts.quantisation == wanted
    except SyscallError:
        return False


def _quantise(source: Path, target: Path, wanted: str, log: Log, *, dry: bool = False) -> None:
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[wanted]
    parameters.allow_requantize = True
    parameters.nthread = cores()
    parameters.dry_run = dry
    names = os.fsencode(source), os.fsencode(target)
    if lib.llama_model_quantize(*names, ctypes.byref(parameters)):
        raise DeviceFault(f"llama.cpp cannot convert {source} to {wanted}: {log.error}")


def _check_space(source: Path, target: Path, wanted: str, log: Log) -> None:
    """ENOSPC when the target does not fit. FREE_BYTES stay free for the kernel."""
    _quantise(source, target, wanted, log, dry=True)
    size = source.stat().st_size
    header = size - log.sizes.get("model", size)
    needed = header + log.sizes.get("quant", size) + limits.FREE_BYTES
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise SyscallError(
            Errno.ENOSPC,
            f"{needed / _MEGA:.0f} MB are needed at {target.parent} "
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
