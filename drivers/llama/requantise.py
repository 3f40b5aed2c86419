"""The process that requantises a file: llama.cpp may abort, so it is not the kernel's own.

    python -m llmasos.drivers.llama.requantise SOURCE TARGET QUANTISATION

Any outcome but a whole file with a right header leaves nothing behind. A target that is there
already, from before or from another machine with the same cache, is not made again.
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

from llmasos.kernel import limits
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError

from . import errand, gguf, options
from .cpp import lib
from .quantisation import FILE_TYPES
from .tuning import PART

_MEGA = 1_000_000
_SIZE = re.compile(r"(model|quant) size += +([0-9.]+) MiB")
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
_ERROR = 4  # of ggml's log levels


class Log:
    """What llama.cpp says of its work: sizes, tensors, errors."""

    def __init__(self, voice: errand.Voice) -> None:
        self._voice = voice
        self.follow = False  # tell of each tensor
        self.sizes: dict[str, float] = {}  # bytes
        self.error = ""
        self._callback = lib.llama_log_callback(self._hear)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _hear(self, level: int, text: bytes, _: object) -> None:
        words = text.decode("utf-8", "replace")
        if level == _ERROR:
            self.error = words.strip()
            sys.stderr.write(words)
        for name, mega in _SIZE.findall(words):
            self.sizes[name] = float(mega) * 2**20
        if self.follow and (tensor := _TENSOR.match(words)):
            self._voice.stage("quantise", int(tensor[1]) / int(tensor[2]))


def work(voice: errand.Voice) -> dict[str, object]:
    source, target, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    gguf.read(source)
    if not _is_made(target, wanted):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = Log(voice)
        _check_room(source, target, wanted, log)
        with _unfinished(target, voice) as (part, fd):
            log.follow = True
            _quantise(source, part, wanted, log)
            os.fsync(fd)
            if gguf.read(part).facts.quantisation != wanted:
                raise DeviceFault(f"llama.cpp made no {wanted} of {source}")
            part.rename(target)
        _sync(target.parent)
    return {"path": str(target)}


def _is_made(target: Path, wanted: str) -> bool:
    try:
        return gguf.read(target).facts.quantisation == wanted
    except SyscallError:
        return False


def _quantise(source: Path, target: Path, wanted: str, log: Log, *, dry: bool = False) -> None:
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[wanted]
    parameters.allow_requantize = True
    parameters.nthread = options.cores()
    parameters.dry_run = dry
    names = os.fsencode(source), os.fsencode(target)
    if lib.llama_model_quantize(*names, ctypes.byref(parameters)):
        raise DeviceFault(f"llama.cpp cannot make {wanted} of {source}: {log.error}")


def _check_room(source: Path, target: Path, wanted: str, log: Log) -> None:
    """ENOSPC with the numbers. What the kernel needs to go on writing stays free."""
    _quantise(source, target, wanted, log, dry=True)
    size = source.stat().st_size
    header = size - log.sizes.get("model", size)
    needed = header + log.sizes.get("quant", size) + limits.FREE_BYTES
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise SyscallError(
            Errno.ENOSPC,
            f"{needed / _MEGA:.0f} MB are needed at {target.parent} "
            f"({limits.FREE_BYTES / _MEGA:.0f} MB of them stay free), {free / _MEGA:.0f} MB are",
            "make room, or let LLMASOS_CACHE_DIR name another disk",
        )


@contextmanager
def _unfinished(target: Path, voice: errand.Voice) -> Generator[tuple[Path, int]]:
    """A name for what is being written, and the lock that says so; gone when it was not renamed."""
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}{PART}")
    voice.unfinished = part
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield part, fd
    finally:
        part.unlink(missing_ok=True)
        os.close(fd)


def _sync(folder: Path) -> None:
    """The new name reaches the disk, too."""
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


if __name__ == "__main__":
    errand.run(work)
