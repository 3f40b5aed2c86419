"""The recall child's side of the Chroma process: starts it, sends requests, kills it when it hangs.

The process is started on demand, handles one request at a time, and is killed when a request
exceeds its deadline. A search does not wait for a write: it asks only when the process is idle, and
continues without an answer that does not arrive soon. Any thread may ask; child process only.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from llmasos.drivers.frames import (
    ANSWER,
    DRIVER_BASE,
    FRAME_BYTES,
    REFUSED,
    Frame,
    decode,
    encode,
    error_in,
)
from llmasos.drivers.process import cause
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.wire import Frames

OPEN, CLOSE, PLACES, GET, WRITE, DELETE, DROP, DROP_ALL, COUNT, QUERY = range(
    DRIVER_BASE, DRIVER_BASE + 10
)
_READ_BYTES = 1024 * 1024
_LIFE_S = 5.0  # between two LIVES reports during a long request
_GRACE_S = 5.0  # to exit after its socket is closed: a write in progress may finish


class ProcessLost(DeviceFault):
    """The process exited or was killed: every store is closed."""


class ChromaProcess:
    """Chroma's process, running or not."""

    def __init__(self, lives: Callable[[], None]) -> None:
        self._lives = lives
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._lost: ProcessLost | None = None  # an exit that only a search has noticed

    def ask(self, kind: int, location: str, *values: object) -> list[Any]:
        """The answer to a request. DeviceFault with Chroma's reason; ProcessLost."""
        with self._lock:
            if (lost := self._lost) is not None:
                self._lost = None
                raise lost
            if self._process is None:
                self._start()
            return self._ask([kind, 0, os.fsencode(location), *values], limits.CHROMA_HANG_S)

    def ask_soon(self, kind: int, location: str, *values: object) -> list[Any] | None:
        """The answer to a request; None when the process is busy or does not answer in CHROMA_S."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._process is None:
                return None
            return self._ask([kind, 0, os.fsencode(location), *values], limits.CHROMA_S, kill=False)
        except ProcessLost as error:
            self._lost = error
            return None
        except DeviceFault:
            return None  # the synchronizer will get the same error and report it
        finally:
            self._lock.release()

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", f"{__package__}.chroma"]
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                )  # fmt: skip
        except OSError as error:
            raise DeviceFault(f"its process cannot be started: {error.strerror}") from error
        self._socket, self._frames = ours, Frames(FRAME_BYTES)
        self._receive(0, limits.READY_S)

    def end(self) -> None:
        """End the process, so that no file is open. It is started again on demand."""
        with self._lock:
            self._lost = None
            if self._process is not None:
                self._reap()

    def has_exited(self) -> bool:
        """Whether it exited since the last answer: the next request would fail."""
        with self._lock:
            return self._process.poll() is not None if self._process else self._lost is not None

    def _ask(self, frame: Frame, seconds: float, *, kill: bool = True) -> list[Any]:
        self._number += 1
        frame[1] = self._number
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(encode(frame))
        except OSError:
            self._lose()
        return self._receive(self._number, seconds, kill=kill)

    def _receive(self, number: int, seconds: float, *, kill: bool = True) -> list[Any]:
        """The answer to that number. Late answers to earlier numbers are dropped."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for body in self._frames.feed(self._read(min(left, _LIFE_S))):
                match decode(body):
                    case [kind, answered, *values] if kind == ANSWER and answered == number:
                        return values
                    case [kind, answered, *error] if kind == REFUSED and answered == number:
                        raise error_in(*error)
                    case _:
                        continue
            if kill:
                self._lives()
        if kill:
            self._lose(f"did not answer a request within {seconds:g} s")
        raise DeviceFault("Chroma is busy")

    def _read(self, seconds: float) -> bytes:
        """Received bytes; empty after `seconds` without data."""
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            return b""
        except OSError:
            data = b""
        return data or self._lose()

    def _lose(self, why: str = "") -> NoReturn:
        code = self._reap(kill=bool(why))
        raise ProcessLost(f"its process {cause(code, why)}")

    def _reap(self, *, kill: bool = False) -> int:
        process, self._process = self._process, None
        assert process is not None
        self._socket.close()
        if kill:
            process.send_signal(signal.SIGABRT)  # faulthandler then writes its stack traces
        try:
            return process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
