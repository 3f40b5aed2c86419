"""Daemons forked from a process that has imported the program: it takes 0.4 s of a core.

They do what `python -m llmasos.userland.daemon` does with the same words,
environment and descriptors, but modules that look at the environment while they are imported have
seen another one, except for the fault points.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from typing import Any

from llmasos.kernel import points

_PROGRAM = "llmasos.userland.daemon"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([_PROGRAM, __name__])


class Forked:
    """Such a daemon, with those methods of a `Popen` that tests use."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], log: int, tell: int
    ) -> None:
        """Start one that writes to the descriptor `log`, and to `tell` when it is ready."""
        given = (tuple(words), dict(environment), DupFd(log), DupFd(tell))
        # Those that the library calls daemons end when the tests do.
        self._process = _CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(_PROGRAM, timeout)
        return self._process.exitcode


def _run(words: Sequence[str], environment: Mapping[str, str], log: Any, tell: Any) -> None:
    assert _PROGRAM in sys.modules, "the program was to be imported before the fork"
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    importlib.reload(points)
    output = log.detach()
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.close(output)
    program = sys.modules[_PROGRAM]
    sys.exit(program.main([*words, "--ready-fd", str(tell.detach())]))
