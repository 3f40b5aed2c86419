"""A child process as seen from inside: its socket, its threads, and its tie to who started it."""

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

from llmasos.kernel.errors import SyscallError
from llmasos.kernel.wire import Frames

from . import frames

_READ_BYTES = 1024 * 1024
_OOM_SCORE = "300"  # when memory runs out, the device goes before the kernel does
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class Door:
    """The socket. Several threads write, so each frame is encoded and sent under one lock."""

    __slots__ = ("_lock", "_socket")

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def send(self, frame: frames.Frame) -> None:
        with self._lock:
            self._socket.sendall(frames.encode(frame))

    def refuse(self, number: int, error: SyscallError) -> None:
        self.send(frames.refusal(number, error))

    def read(self, take: Callable[[frames.Frame], None]) -> None:
        """Hand over every frame until the other side is gone."""
        cutter = Frames(frames.FRAME_BYTES)
        while data := self._socket.recv(_READ_BYTES):
            for body in cutter.feed(data):
                take(frames.decode(body))


def tie_to(pid: int) -> None:
    """Die when the process that started this one does, however it dies."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
        # A core file would hold the texts of everybody, and take seconds to write.
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # The kernel decides when a device ends: a ctrl-C in the terminal is meant for the kernel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.getppid() != pid:
        os._exit(0)  # it died before the tie was made


def thread(name: str, body: Callable[[], None]) -> None:
    threading.Thread(target=outermost, args=(name, body), daemon=True).start()


def outermost(name: str, body: Callable[[], None]) -> None:
    """A bug ends the process. Its message might hold a person's text, so only its place is told."""
    try:
        body()
    except BaseException as error:
        traceback.print_tb(error.__traceback__)
        sys.stderr.write(f"{type(error).__name__} in a thread of {name}\n")
        sys.stderr.flush()
        os._exit(70)


def lower(nice: int) -> None:
    """Let others go first: this thread, and those that it starts."""
    if nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
