"""The llama.cpp driver: one child process for each mounted model, on the CPU or a GPU.

`driver.py` is the kernel's side, `child.py` the process, `frames.py` what they say to each other.
Only the child loads llama.cpp; this module and what it imports never do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmasos.kernel.driver import Engine, ImageFacts, Option
from llmasos.kernel.errors import Errno, SyscallError

from . import devices, gguf, options, tuning
from .driver import LlamaEngine

check = options.check
hardware = devices.hardware
tune = tuning.tune


def probe(path: Path) -> ImageFacts:
    """Read a GGUF header with bounds. EINVAL with the reason; may block."""
    return gguf.probe(path)


async def models(options: Mapping[str, Option]) -> Sequence[str]:
    raise SyscallError(Errno.ENOTSUP, "the llama driver has no endpoints")


def engine(path: Path, options: Mapping[str, Option], log: Path) -> Engine:
    """An engine that is not started. EINVAL: the file or an option is not usable."""
    return LlamaEngine(path, options, log)
