"""The llama.cpp driver: one child process for each mounted model, on the CPU or a GPU.

`driver.py` is the kernel's side, `child.py` the process, `frames.py` the protocol between them.
Only child processes load llama.cpp; this module and its imports never do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Engine, ImageFacts, Option

from . import devices, gguf, options, tuning
from .driver import LlamaEngine

check = options.check
hardware = devices.hardware
tune = tuning.tune


def probe(path: Path) -> ImageFacts:
    """Read and check a GGUF header. EINVAL with the reason; may block."""
    return gguf.probe(path)


async def models(options: Mapping[str, Option]) -> Sequence[str]:
    raise SyscallError(Errno.ENOTSUP, "the llama driver has no endpoints")


def engine(path: Path, options: Mapping[str, Option], log: Path) -> Engine:
    """An engine that is not started. EINVAL for an unusable file or option."""
    return LlamaEngine(path, options, log)
