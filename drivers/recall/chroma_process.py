"""Chroma's process, used by the recall process: starts it, sends requests, kills it when it hangs.

The process is started on demand, handles one request at a time, and is killed when a request
exceeds its deadline; time in which it waits for a processor does not count. A search does not wait
for a write: it uses `ask_if_idle`, and continues without an answer that does not arrive soon.
During a long request the kernel gets heartbeats, so that it does not end the recall process as
unresponsive. Any thread may ask; only the recall process imports this module.
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

from llmasos.drivers.exit_cause import cause
from llmasos.drivers.frames import (
    ANSWER,
    FRAME_BYTES,
    REFUSED,
    Frame,
    decode,
    encode,
    error_in,
)
from llmasos.drivers.watchdog import RunDelay
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.wire import Frames

_READ_BYTES = 1024 * 1024
_HEARTBEAT_S = 5.0  # between two heartbeats during a long request
_GRACE_S = 5.0  # to exit after its socket is closed: a write in progress may finish


class ProcessLost(DeviceFault):
    """Chroma's process exited or was killed: every store is closed."""


class ChromaProcess:
    """Chroma's process, running or not. `heartbeat` sends one to the kernel."""

    def __init__(self, heartbeat: Callable[[], None]) -> None:
        self._heartbeat = heartbeat
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0  # of the last request
        self._answered = 0  # of the last answer: equal, unless a search did not wait for it
        self._unsent = b""  # the rest of frames for which the process has no room yet
        self._lost: ProcessLost | None = None  # an exit that only a search has noticed

    def ask(self, kind: int, location: str, *values: object) -> list[Any]:
        """The answer to a request to the store at a location. Starts the process if needed.

        Raises ProcessLost when the process has ended, and DeviceFault for other failures.
        """
        with self._lock:
            if (lost := self._lost) is not None:
                self._lost = None
                raise lost
            if self._process is None:
                self._start()
            return self._ask([kind, 0, os.fsencode(location), *values], limits.CHROMA_HANG_S)

    def ask_if_idle(self, kind: int, location: str, *values: object) -> list[Any] | None:
        """The answer to a request; None without one.

        The process is not asked when it is not running or busy, also with an earlier search, and
        gets CHROMA_S to answer.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._process is None or self._is_busy():
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
            raise DeviceFault(f"Chroma's process cannot be started: {error.strerror}") from error
        self._socket, self._frames = ours, Frames(FRAME_BYTES)
        self._answered, self._unsent = self._number, b""
        self._receive(0, limits.READY_S)  # the process answers 0 when it is ready

    def end(self) -> None:
        """End the process, so that no file is open. It is started again on demand."""
        with self._lock:
            self._lost = None
            if self._process is not None:
                self._close()

    def has_exited(self) -> bool:
        """Whether it exited since the last answer: the next request would fail."""
        with self._lock:
            return self._process.poll() is not None if self._process else self._lost is not None

    def _ask(self, frame: Frame, seconds: float, *, kill: bool = True) -> list[Any]:
        self._number += 1
        frame[1] = self._number
        self._unsent += encode(frame)
        return self._receive(self._number, seconds, kill=kill)

    def _is_busy(self) -> bool:
        """Whether the answer to an earlier search is still to come."""
        if self._answered < self._number:
            for body in self._frames.feed(self._read(0)):
                self._note(decode(body))
        return self._answered < self._number

    def _note(self, frame: Frame) -> None:
        match frame:
            case [kind, int(answered), *_] if kind in (ANSWER, REFUSED):
                self._answered = max(self._answered, answered)
            case _:
                pass

    def _receive(self, number: int, seconds: float, *, kill: bool = True) -> list[Any]:
        """The answer to that number. Late answers to earlier numbers are dropped.

        `kill`: the process is killed when it does not answer in time, which raises ProcessLost.
        Otherwise, and for an error that Chroma returns, DeviceFault is raised.
        """
        assert self._process is not None
        deadline, delay = time.monotonic() + seconds, RunDelay()
        while (left := deadline + delay.seconds() - time.monotonic()) > 0:
            wait_s = min(left, _HEARTBEAT_S)
            for body in self._frames.feed(b"" if self._send(wait_s) else self._read(wait_s)):
                frame = decode(body)
                self._note(frame)
                match frame:
                    case [kind, answered, *values] if kind == ANSWER and answered == number:
                        return values
                    case [kind, answered, *error] if kind == REFUSED and answered == number:
                        raise error_in(*error)
                    case _:
                        continue
            if kill:
                self._heartbeat()
                delay.start(self._process.pid)
        if kill:
            self._raise_lost(f"did not answer a request within {seconds:g} s")
        raise DeviceFault(f"Chroma did not answer a request within {seconds:g} s")

    def _send(self, seconds: float) -> bool:
        """Send for `seconds` at most; whether a part is left. Raises ProcessLost."""
        if self._unsent:
            self._socket.settimeout(seconds)
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except TimeoutError:
                pass
            except OSError:
                self._raise_lost()
        return bool(self._unsent)

    def _read(self, seconds: float) -> bytes:
        """Received bytes; empty after `seconds` without data.

        Raises ProcessLost when the connection ends.
        """
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(_READ_BYTES)
        except (TimeoutError, BlockingIOError):
            return b""
        except OSError:
            data = b""
        return data or self._raise_lost()

    def _raise_lost(self, why_killed: str = "") -> NoReturn:
        """Close the process, which is killed if a reason is given. Raises ProcessLost."""
        code = self._close(kill=bool(why_killed))
        raise ProcessLost(f"Chroma's process {cause(code, why_killed)}")

    def _close(self, *, kill: bool = False) -> int:
        """Close the connection and wait until the process has exited. Returns its exit code."""
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
