"""What runs inside a child process: its socket, its threads, its lifetime, its priority.

The parent's side is process.py. Imported in child processes only.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.abi.wire import Frames

from . import frames

_READ_BYTES = 1024 * 1024
_OOM_SCORE = "300"  # when memory runs out, the device is killed before the kernel
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class ParentConnection:
    """The socket to the parent. Several threads write: each frame is sent under one lock."""

    __slots__ = ("_lock", "_socket")

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def send(self, frame: frames.Frame) -> None:
        with self._lock:
            self._socket.sendall(frames.encode(frame))

    def send_error(self, number: int, error: SyscallError) -> None:
        self.send(frames.refusal(number, error))

    def read(self, handle: Callable[[frames.Frame], None]) -> None:
        """Pass every frame to `handle` until the parent closes the socket."""
        splitter = Frames(frames.FRAME_BYTES)
        while data := self._socket.recv(_READ_BYTES):
            for body in splitter.feed(data):
                handle(frames.decode(body))


def exit_with_parent(pid: int) -> None:
    """End this process when its parent `pid` ends, for whatever reason."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
        # A core file would contain the texts of all users, and take seconds to write.
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # The kernel decides when a device ends: ctrl-C in the terminal is for the kernel only.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.getppid() != pid:
        os._exit(0)  # the parent ended before prctl


def start_thread(name: str, body: Callable[[], None]) -> None:
    threading.Thread(target=run_or_exit, args=(name, body), daemon=True).start()


def run_or_exit(name: str, body: Callable[[], None]) -> None:
    """Run `body`; an exception ends the process with code 70.

    Only its type and traceback are logged: its message may contain a user's text.
    """
    try:
        body()
    except BaseException as error:
        traceback.print_tb(error.__traceback__)
        sys.stderr.write(f"{type(error).__name__} in a thread of {name}\n")
        sys.stderr.flush()
        os._exit(70)


def lower_priority(nice: int) -> None:
    """Set the niceness of this thread and of those that it starts."""
    if nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
