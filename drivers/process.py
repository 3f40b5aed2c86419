"""A child process of a driver as the kernel sees it: its start, its socket, its end, its successor.

A `Line` is one child and is never used again after its end: a restart makes a new one, so no frame
of a dead child can reach a living request (restart.py does that). How a child ended is told from
its exit: a signal that its own code causes, or one from outside. Nothing here polls: watches are
timers of the event loop.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from llmasos.kernel import limits
from llmasos.kernel.driver import Cause, Death
from llmasos.kernel.errors import DeviceFault, SyscallError, why
from llmasos.kernel.logfile import open_log
from llmasos.kernel.wire import Frames

from . import frames

GRACE_S = 2.0  # between asking a process to end and killing it
_TAIL_BYTES, _TAIL_LINES, _TAIL_CHARS = 4096, 3, 400
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH")
_ENVIRONMENT_PREFIXES = ("OMP_", "GOMP_", "GGML_", "CUDA_", "HIP_", "ROCR_")
# Lines of a stack dump, which say where and not why.
_OWN_SIGNALS = frozenset({  # a fault in a process's own code ends it so
    signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
    signal.SIGSYS,
})  # fmt: skip
_DUMP = (" ", "Thread 0x", "Current thread", "Extension modules", "Stack (most")

F = TypeVar("F")


class Watchdog:
    """Bites when it was told of work and is not fed in time."""

    __slots__ = ("_bite", "_seconds", "_timer")

    def __init__(self, seconds: float, bite: Callable[[], None]) -> None:
        self._seconds, self._bite = seconds, bite
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, *, work: bool) -> None:
        """There was a sign of life; `work`: another one is owed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if work:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._bite)

    def wake(self) -> None:
        """There is work; the time runs from its beginning."""
        if self._timer is None:
            self.feed(work=True)


class Line(asyncio.Protocol, Generic[F]):
    """The running child. `ended` tells why it ended, after its last frame has been delivered."""

    def __init__(
        self, name: str, process: Process, hang_s: float, facts: Callable[[dict[str, Any]], F]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.up: asyncio.Future[F] = loop.create_future()
        self.ended: asyncio.Future[Death] = loop.create_future()
        self.log: tuple[Path, int] | None = None  # the log, and where this child's part begins
        self._name, self._process, self._read_facts = name, process, facts
        self._hang_s = hang_s
        self._frames = Frames(frames.FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._asked: dict[int, asyncio.Future[list[Any]]] = {}
        self._requests = Watchdog(hang_s, self.hang)
        self._why = ""  # it was killed by the kernel, as it did not work
        self._closed = ""  # why it was ended, where that was not its fault
        self._kills = memory_kills()
        self._killer: asyncio.TimerHandle | None = None
        self._burial: asyncio.Task[None] | None = None

    @property
    def facts(self) -> F:
        return self.up.result()

    # --- for the drivers' own words -----------------------------------------------------------
    def take(self, frame: frames.Frame) -> bool:
        """A frame of the driver's own; False when it is unknown."""
        return False

    def lost(self) -> None:
        """The socket is closed."""

    def forgotten(self, number: int) -> None:
        """Whoever asked does not wait any more."""

    # --- the socket ---------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            match frames.decode(body):
                case [frames.ANSWER, int(number), *values]:
                    self._settle(number, values)
                case [frames.REFUSED, int(number), errno, message, hint]:
                    self._settle(number, frames.error_in(errno, message, hint))
                case [frames.UP, facts]:
                    self.up.set_result(self._read_facts(facts))
                case frame:
                    if not self.take(frame):
                        self._die("it sent an unknown frame")

    def connection_lost(self, exc: Exception | None) -> None:
        self._requests.feed(work=False)
        self.lost()
        self._burial = asyncio.get_running_loop().create_task(self._bury())

    def send(self, frame: frames.Frame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.encode(frame))

    async def ask(self, frame: frames.Frame) -> list[Any]:
        """Send a request and wait for its answer. DeviceFault when the child ends first."""
        if self._transport is None or self._transport.is_closing():
            raise DeviceFault(f"{self._name} is down", "it is being started again: try later")
        self._number += 1
        number = frame[1] = self._number
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.send(frame)
        self._asked[number] = answer
        self._requests.wake()
        try:
            return await answer
        except asyncio.CancelledError:
            self.forgotten(number)
            raise
        finally:
            self._asked.pop(number, None)

    def lives(self) -> None:
        """A sign of life: an answer that takes long is still worked on."""
        self._requests.feed(work=bool(self._asked))

    def _settle(self, number: int, result: list[Any] | SyscallError) -> None:
        if number == 0:
            if isinstance(result, SyscallError) and not self.up.done():
                self.up.set_exception(self._explained(result))
            return
        answer = self._asked.pop(number, None)
        self.lives()
        if answer is None or answer.done():
            return  # the asker has gone
        if isinstance(result, SyscallError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    # --- the end ------------------------------------------------------------------------------
    def hang(self) -> None:
        """Something that is owed did not come in time."""
        if is_stopped(self._process.pid):  # by a signal, so no call is the reason
            self._closed = f"it was stopped from outside, no sign of life for {self._hang_s:g} s"
        self._die(f"it gave no sign of life for {self._hang_s:g} s")

    def _die(self, why: str) -> None:
        """Abort it, so that it writes where it stood; kill it if that does not end it."""
        self._why = why
        self._signal(signal.SIGABRT)
        loop = asyncio.get_running_loop()
        self._killer = loop.call_later(GRACE_S, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def close(self, reason: str = "") -> None:
        """End it: the end of the socket tells it, a kill follows if it does not listen."""
        self._closed = self._closed or reason
        if self._transport is not None:
            self._transport.abort()
        await asyncio.shield(self.ended)

    async def _bury(self) -> None:
        """The socket is closed: wait for the process, then tell everybody why."""
        try:
            async with asyncio.timeout(GRACE_S):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
        code = await self._process.wait()
        if self._killer is not None:
            self._killer.cancel()
        death = self._death(code)
        fault = self._explained(DeviceFault(death.reason))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(DeviceFault(fault.message, fault.hint))
        if not self.up.done():
            self.up.set_exception(fault)
        self.ended.set_result(Death(fault.message, death.cause))

    def _death(self, code: int) -> Death:
        """How it ended. Only what its own code caused is held against the calls in it."""
        if self._closed:
            return Death(f"{self._name}: {self._closed}", Cause.OUTSIDE)
        words = f"{self._name} {cause(code, self._why)}"
        if self._why or code >= 0 or -code in _OWN_SIGNALS:
            return Death(words, Cause.CRASH)
        if -code == signal.SIGKILL and memory_kills() != self._kills is not None:
            return Death(f"{words}: the system ran out of memory", Cause.MEMORY)
        return Death(f"{words}, from outside", Cause.OUTSIDE)

    def _explained(self, error: SyscallError) -> DeviceFault:
        """The error with the last words of the log."""
        words = tail(*self.log) if self.log else ""
        hint = f"see {self.log[0]}" if self.log else ""
        return DeviceFault(f"{error.message}; {words}" if words else error.message, hint)


def cause(code: int, why: str = "") -> str:
    """How a process ended, by its exit code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            words = f"was killed by {signal.Signals(-code).name}"
            return f"{words}: {why}" if why else words
    return f"ended with code {code}"


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "Tt"


def memory_kills() -> int | None:
    """Processes that the system has killed for want of memory: here, or in our control group."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        lines = Path("/proc/vmstat").read_text().splitlines()
        for group in groups:
            events = Path(f"/sys/fs/cgroup{group.split(':', 2)[2]}/memory.events")
            if group.startswith("0:") and events.exists():
                lines += events.read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def tail(path: Path, begin: int) -> str:
    """The last words of a log, from `begin`."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(begin, end - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_DUMP)]
    return " | ".join(lines[-_TAIL_LINES:])[-_TAIL_CHARS:]


def environment(defaults: Mapping[str, str], **fixed: str) -> dict[str, str]:
    """Only what a child needs; `defaults` give way to what the kernel was started with."""
    names = os.environ.items()
    kept = {k: v for k, v in names if k in _ENVIRONMENT or k.startswith(_ENVIRONMENT_PREFIXES)}
    return {**defaults, **kept, **fixed}


@dataclass(frozen=True, slots=True)
class Start:
    """How a child is started."""

    name: str  # in what people read: "the engine"
    module: str  # run with `python -m`
    log: Path
    environment: Mapping[str, str]
    load: frames.Frame  # the first frame


L = TypeVar("L", bound=Line[Any])


async def _spawn(start: Start, opened: contextlib.ExitStack) -> tuple[socket.socket, Process, int]:
    """Our end of its socket, the process, and where its part of the log begins."""
    fd = open_log(start.log)
    try:
        begin = os.fstat(fd).st_size
        ours, theirs = socket.socketpair()
        opened.callback(ours.close)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", start.module, str(theirs.fileno()), str(os.getpid()),
                stdin=DEVNULL, stdout=fd, stderr=fd, pass_fds=[theirs.fileno()],
                env=start.environment, cwd="/",
            )  # fmt: skip
    finally:
        os.close(fd)
    return ours, process, begin


async def launch(start: Start, line: Callable[[Process], L]) -> L:
    """Start a child; returns when it is up. DeviceFault with the reason when it does not come up.

    A cancel point: the child is ended before the cancellation goes on.
    """
    with contextlib.ExitStack() as opened:
        try:
            ours, process, begin = await _spawn(start, opened)
        except OSError as error:
            raise DeviceFault(f"{start.name}'s process cannot be started: {why(error)}") from error
        made = line(process)
        made.log = start.log, begin
        await asyncio.get_running_loop().create_unix_connection(lambda: made, sock=ours)
        opened.pop_all()
    made.send(start.load)
    try:
        async with asyncio.timeout(limits.READY_S):
            await asyncio.shield(made.up)
    except TimeoutError:
        await made.close()
        raise DeviceFault(f"{start.name} was not up after {limits.READY_S:g} s") from None
    except (SyscallError, asyncio.CancelledError):
        await made.close()
        raise
    return made
