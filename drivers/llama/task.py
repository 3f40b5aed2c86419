"""The frame of a child process that runs one task for the kernel and reports its progress.

It writes JSON lines to stdout: {stage, done} for progress, and last the result or {errno, message,
hint}. When stdin is closed, the kernel has ended, and the child exits. task_process.py starts it.
This module must not import llama_cpp.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from llmasos.kernel.abi.errors import Errno, SyscallError

WORKSPACE = ".part"  # suffix of a directory for unfinished files (workspace.py)
ID_BYTES = 4  # before it, in hexadecimal digits
_PROGRESS_STEP = 0.01  # of a stage, between two progress lines


def workspace_of(path: Path) -> Path | None:
    """The workspace that a file is in, if any. A directory of a user has another form of name."""
    found = re.fullmatch(rf"\.[0-9a-f]{{{2 * ID_BYTES}}}{re.escape(WORKSPACE)}", path.parent.name)
    return path.parent if found else None


def remove(path: Path) -> None:
    """Remove a workspace, or a file outside of one, if it exists."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


class TaskOutput:
    """The pipe to the kernel."""

    def __init__(self) -> None:
        # Output that a library prints to stdout goes to stderr, not between the lines.
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._stage, self._done = "", -1.0
        self.unfinished: Path | None = None  # to remove when the kernel ends
        threading.Thread(target=self._exit_with_kernel, daemon=True).start()

    def write(self, fields: Mapping[str, object]) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(fields), file=self._out)

    def stage(self, name: str, done: float) -> None:
        if name != self._stage or done >= self._done + _PROGRESS_STEP or done == 1:
            self._stage, self._done = name, done
            self.write({"stage": name, "done": round(done, 3)})

    def _exit_with_kernel(self) -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                continue
        if self.unfinished is not None:
            remove(self.unfinished)
        os._exit(1)


def run(work: Callable[[TaskOutput], Mapping[str, object]]) -> None:
    """Run the task and write its result or its error."""
    output = TaskOutput()
    try:
        answer = work(output)
    except SyscallError as error:
        answer = {"errno": int(error.errno), "message": error.message, "hint": error.hint}
    except OSError as error:
        answer = {"errno": int(Errno.EIO), "message": str(error), "hint": ""}
    output.write(answer)
