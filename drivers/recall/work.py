"""What the child has Chroma do, and the process that does it, seen from the child.

It is started when it is needed and killed when one piece of work does not end. One thing at a
time: a search does not wait for writing, it asks when nothing else goes on and goes on without an
answer that does not come soon. Any thread may ask; child process only.
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
    FRAME_BYTES,
    OWN,
    REFUSED,
    Frame,
    decode,
    encode,
    error_in,
)  # fmt: skip
from llmasos.drivers.process import cause
from llmasos.kernel import limits
from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.wire import Frames

OPEN, CLOSE, PLACES, GET, WRITE, DELETE, DROP, DROP_ALL, COUNT, QUERY = range(OWN, OWN + 10)
_READ_BYTES = 1024 * 1024
_LIFE_S = 5.0  # between two words that a long piece of work goes on
_GRACE_S = 5.0  # to end when its socket does: a write in progress may finish


class Lost(DeviceFault):
    """The process died or was killed: every store is closed."""


class Chroma:
    """The process of Chroma, running or not."""

    def __init__(self, lives: Callable[[], None]) -> None:
        self._lives = lives
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._lost: Lost | None = None  # an end that only a search has met

    def ask(self, word: int, place: str, *values: object) -> list[Any]:
        """Have it done. DeviceFault with Chroma's reason; Lost."""
        with self._lock:
            if (lost := self._lost) is not None:
                self._lost = None
                raise lost
            if self._process is None:
                self._start()
            return self._ask([word, 0, os.fsencode(place), *values], limits.CHROMA_HANG_S)

    def ask_soon(self, word: int, place: str, *values: object) -> list[Any] | None:
        """Only when nothing else goes on, and it answers soon."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._process is None:
                return None
            return self._ask([word, 0, os.fsencode(place), *values], limits.CHROMA_S, kill=False)
        except Lost as error:
            self._lost = error
            return None
        except DeviceFault:
            return None  # the thread of Chroma will meet it, too, and say so
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
        """End the process, so that no file is open; it is started again when it is needed."""
        with self._lock:
            self._lost = None
            if self._process is not None:
                self._bury()

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
        """The answer to that number; those to earlier ones came too late and are dropped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for body in self._frames.feed(self._read(min(left, _LIFE_S))):
                match decode(body):
                    case [kind, told, *values] if kind == ANSWER and told == number:
                        return values
                    case [kind, told, *error] if kind == REFUSED and told == number:
                        raise error_in(*error)
                    case _:
                        continue
            if kill:
                self._lives()
        if kill:
            self._lose(f"one piece of work had no end after {seconds:g} s")
        raise DeviceFault("Chroma is busy")

    def _read(self, seconds: float) -> bytes:
        """Nothing when nothing came."""
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            return b""
        except OSError:
            data = b""
        return data or self._lose()

    def _lose(self, why: str = "") -> NoReturn:
        code = self._bury(kill=bool(why))
        raise Lost(f"its process {cause(code, why)}")

    def _bury(self, *, kill: bool = False) -> int:
        process, self._process = self._process, None
        assert process is not None
        self._socket.close()
        if kill:
            process.send_signal(signal.SIGABRT)  # it writes where it stood
        try:
            return process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
