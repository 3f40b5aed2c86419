"""The recall driver: vectors and an embedder in one child process, for all owners of the machine.

`driver.py` is the kernel's side, `child.py` the process, `frames.py` their messages. Only the child
loads numpy and the embedder, and a process of its own loads Chroma; this module and its imports
never do.
"""

from collections.abc import Mapping
from pathlib import Path

from llmasos.kernel.driver import Option
from llmasos.kernel.recall_driver import Recall

from . import options as _options
from .driver import ChromaRecall

check = _options.check


def recall(options: Mapping[str, Option], log: Path) -> Recall:
    """A device that is not started. EINVAL: an option is invalid."""
    return ChromaRecall(options, log)
