"""The kernel's side of a driver's child process: start, requests over its socket, exit.

A `ChildConnection` is one child and is not reused after its end: a restart (restart.py) creates a
new one, so no frame of a dead child can reach a later request. The exit status tells why a child
ended: a signal that its own code causes, or one from outside. Nothing here polls: watchdogs are
timers of the event loop. The child's side is child_runtime.py.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, SyscallError, os_message
from llmasos.kernel.abi.logfile import open_log
from llmasos.kernel.abi.wire import Frames
from llmasos.kernel.driver import Cause, Death

from . import frames
from .exit_cause import cause
from .watchdog import Watchdog

GRACE_S = 2.0  # between asking a process to exit and SIGKILL
_TAIL_BYTES, _TAIL_LINES, _TAIL_CHARS = 4096, 3, 400
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH")
_ENVIRONMENT_PREFIXES = ("OMP_", "GOMP_", "GGML_", "CUDA_", "HIP_", "ROCR_")
_FAULT_SIGNALS = frozenset({  # caused by the code of the process itself
    signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
    signal.SIGSYS,
})  # fmt: skip
# Beginnings of the lines of a stack dump: they say where, not why.
_DUMP = (" ", "Thread 0x", "Current thread", "Extension modules", "Stack (most")

F = TypeVar("F")


class ChildConnection(asyncio.Protocol, Generic[F]):
    """One running child. `ended` has the reason of its end, after its last frame was delivered."""

    def __init__(
        self, name: str, process: Process, hang_s: float, facts: Callable[[dict[str, Any]], F]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.up: asyncio.Future[F] = loop.create_future()
        self.ended: asyncio.Future[Death] = loop.create_future()
        # The log, and the offset where this child's part begins.
        self.log: tuple[Path, int] | None = None
        self._name, self._process, self._read_facts = name, process, facts
        self._hang_s = hang_s
        self.sent_bytes = 0
        self._frames = Frames(frames.FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._pending: dict[int, asyncio.Future[list[Any]]] = {}
        self._watchdog = Watchdog(process.pid, hang_s, self.hang)
        self._kill_reason = ""  # the kernel killed it because it failed
        self._close_reason = ""  # it was ended through no fault of its own
        self._oom_kills = oom_kills()
        self._kill_timer: asyncio.TimerHandle | None = None
        self._reaper: asyncio.Task[None] | None = None

    @property
    def facts(self) -> F:
        return self.up.result()

    # --- overridden by drivers ----------------------------------------------------------------
    def handle_frame(self, frame: frames.Frame) -> bool:
        """Handle a frame of a type that the driver defines; False when the type is unknown."""
        return False

    def disconnected(self) -> None:
        """The socket was closed."""

    def request_cancelled(self, number: int) -> None:
        """The caller of a request was cancelled and does not wait for the answer."""

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
                    if not self.handle_frame(frame):
                        self._abort("it sent an unknown frame")

    def connection_lost(self, exc: Exception | None) -> None:
        self._watchdog.reset(work=False)
        self.disconnected()
        self._reaper = asyncio.get_running_loop().create_task(self._reap())

    def send(self, frame: frames.Frame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            data = frames.encode(frame)
            self.sent_bytes += len(data)
            self._transport.write(data)

    async def ask(self, frame: frames.Frame) -> list[Any]:
        """Send a request and wait for its answer. DeviceFault when the child ends first."""
        if self._transport is None or self._transport.is_closing():
            raise DeviceFault(f"{self._name} is down", "it is being restarted; try again later")
        self._number += 1
        number = frame[1] = self._number
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.send(frame)
        self._pending[number] = answer
        self._watchdog.arm()
        try:
            return await answer
        except asyncio.CancelledError:
            self.request_cancelled(number)
            raise
        finally:
            self._pending.pop(number, None)

    def note_activity(self) -> None:
        """The child works on a long answer: restart the watchdog."""
        self._watchdog.reset(work=bool(self._pending))

    def _settle(self, number: int, result: list[Any] | SyscallError) -> None:
        if number == 0:
            if isinstance(result, SyscallError) and not self.up.done():
                self.up.set_exception(self._with_log(result))
            return
        answer = self._pending.pop(number, None)
        self.note_activity()
        if answer is None or answer.done():
            return  # the caller was cancelled
        if isinstance(result, SyscallError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    # --- the end ------------------------------------------------------------------------------
    def hang(self) -> None:
        """The watchdog expired: kill the child."""
        if is_stopped(self._process.pid):  # by SIGSTOP: no call is to blame
            self._close_reason = f"it was stopped by a signal, no answer for {self._hang_s:g} s"
        self._abort(f"no answer for {self._hang_s:g} s")

    def _abort(self, reason: str) -> None:
        """Send SIGABRT, so that it logs a traceback; SIGKILL if it still runs after GRACE_S."""
        self._kill_reason = reason
        self._signal(signal.SIGABRT)
        loop = asyncio.get_running_loop()
        self._kill_timer = loop.call_later(GRACE_S, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def close(self, reason: str = "") -> None:
        """Close the socket, which ends the child; it is killed if it still runs after GRACE_S."""
        self._close_reason = self._close_reason or reason
        if self._transport is not None:
            self._transport.abort()
        await asyncio.shield(self.ended)

    async def _reap(self) -> None:
        """Wait for the process after its socket closed, then fail all requests with the reason."""
        try:
            async with asyncio.timeout(GRACE_S):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
        code = await self._process.wait()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        death = self._death(code)
        fault = self._with_log(DeviceFault(death.reason))
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(DeviceFault(fault.message, fault.hint))
        if not self.up.done():
            self.up.set_exception(fault)
        self.ended.set_result(Death(fault.message, death.cause))

    def _death(self, code: int) -> Death:
        """The cause of its end. Only CRASH, a fault of its own code, counts against its calls."""
        if self._close_reason:
            return Death(f"{self._name}: {self._close_reason}", Cause.OUTSIDE)
        message = f"{self._name} {cause(code, self._kill_reason)}"
        if self._kill_reason or code >= 0 or -code in _FAULT_SIGNALS:
            return Death(message, Cause.CRASH)
        if -code == signal.SIGKILL and oom_kills() != self._oom_kills is not None:
            return Death(f"{message}: the system ran out of memory", Cause.MEMORY)
        return Death(f"{message}, from outside", Cause.OUTSIDE)

    def _with_log(self, error: SyscallError) -> DeviceFault:
        """The error with the last lines of the log."""
        lines = tail(*self.log) if self.log else ""
        hint = f"see {self.log[0]}" if self.log else ""
        return DeviceFault(f"{error.message}; {lines}" if lines else error.message, hint)


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "Tt"


def oom_kills() -> int | None:
    """Processes killed by the OOM killer so far, in the system and in our control group."""
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
    """The last lines of a log, from the offset `begin`."""
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
    """The variables that a child needs. The kernel's own environment overrides `defaults`."""
    names = os.environ.items()
    kept = {k: v for k, v in names if k in _ENVIRONMENT or k.startswith(_ENVIRONMENT_PREFIXES)}
    return {**defaults, **kept, **fixed}


@dataclass(frozen=True, slots=True)
class Start:
    """How a child is started."""

    name: str  # in messages, as "the engine"
    module: str  # run with `python -m`
    log: Path
    environment: Mapping[str, str]
    load: frames.Frame  # the first frame
    descriptors: Sequence[int] = ()  # that it inherits, under the same numbers


L = TypeVar("L", bound=ChildConnection[Any])


async def _spawn(start: Start, opened: contextlib.ExitStack) -> tuple[socket.socket, Process, int]:
    """Our end of its socket, the process, and the offset of its part of the log."""
    fd = open_log(start.log)
    try:
        begin = os.fstat(fd).st_size
        ours, theirs = socket.socketpair()
        opened.callback(ours.close)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", start.module, str(theirs.fileno()), str(os.getpid()),
                stdin=DEVNULL, stdout=fd, stderr=fd, env=start.environment, cwd="/",
                pass_fds=[theirs.fileno(), *start.descriptors],
            )  # fmt: skip
    finally:
        os.close(fd)
    return ours, process, begin


async def launch(start: Start, connection: Callable[[Process], L]) -> L:
    """Start a child; returns when it is up. DeviceFault with the reason when it fails to start.

    When cancelled, it ends the child first.
    """
    with contextlib.ExitStack() as opened:
        try:
            ours, process, begin = await _spawn(start, opened)
        except OSError as error:
            raise DeviceFault(
                f"cannot start the process of {start.name}: {os_message(error)}"
            ) from error
        child = connection(process)
        child.log = start.log, begin
        await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=ours)
        opened.pop_all()
    child.send(start.load)
    try:
        async with asyncio.timeout(limits.READY_S):
            await asyncio.shield(child.up)
    except TimeoutError:
        await child.close()
        raise DeviceFault(f"{start.name} did not start within {limits.READY_S:g} s") from None
    except (SyscallError, asyncio.CancelledError):
        await child.close()
        raise
    return child
