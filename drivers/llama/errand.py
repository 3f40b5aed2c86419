"""A child that does one thing for the kernel, tells how far it is, and leaves with it.

JSON lines on stdout: {stage, done} on the way, and last what came of it or {errno, message,
hint}. The end of stdin is the end of the kernel, and of the child. It must not import llama_cpp.
"""

import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from llmasos.kernel.errors import Errno, SyscallError

_PART_SHARE = 0.01  # of a stage: what is said is at least so far from what was said before


class Voice:
    """The pipe to the kernel."""

    def __init__(self) -> None:
        # Nothing that a library prints may get between the lines.
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._stage, self._done = "", -1.0
        self.unfinished: Path | None = None  # a file that must not outlive us
        threading.Thread(target=self._leave_with_the_kernel, daemon=True).start()

    def say(self, fields: Mapping[str, object]) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(fields), file=self._out)

    def stage(self, name: str, done: float) -> None:
        if name != self._stage or done >= self._done + _PART_SHARE or done == 1:
            self._stage, self._done = name, done
            self.say({"stage": name, "done": round(done, 3)})

    def _leave_with_the_kernel(self) -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                continue
        if self.unfinished is not None:
            self.unfinished.unlink(missing_ok=True)
        os._exit(1)


def run(work: Callable[[Voice], Mapping[str, object]]) -> None:
    """Do the work and say what came of it; a refusal is an answer, too."""
    voice = Voice()
    try:
        answer = work(voice)
    except SyscallError as error:
        answer = {"errno": int(error.errno), "message": error.message, "hint": error.hint}
    except OSError as error:
        answer = {"errno": int(Errno.EIO), "message": str(error), "hint": ""}
    voice.say(answer)
