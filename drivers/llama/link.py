"""One child process and the socket to it, from its start to its burial.

Never used again after its end: a restart makes a new one, so no frame of a dead child can reach a
living call. `ended` tells why it ended, after the last frame has been delivered.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from llmasos.kernel import limits
from llmasos.kernel.driver import Admission, Facts, Listener, Step
from llmasos.kernel.errors import DeviceFault, SyscallError
from llmasos.kernel.wire import Frames

from . import frames
from .options import SPIN

GRACE_S = 2.0  # between asking a process to end and killing it
_TAIL_BYTES, _TAIL_LINES, _TAIL_CHARS = 4096, 3, 400
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH")
_ENVIRONMENT_PREFIXES = ("OMP_", "GOMP_", "GGML_", "CUDA_", "HIP_", "ROCR_")
# Lines of a stack dump, which say where and not why.
_DUMP = (" ", "Thread 0x", "Current thread", "Extension modules", "Stack (most")


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


class Link(asyncio.Protocol):
    """The running child."""

    def __init__(self, process: Process, chosen: frames.Settings, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        self.up: asyncio.Future[Facts] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()
        self.log: tuple[Path, int] | None = None  # the log, and where this child's part begins
        self._process, self._listener = process, listener
        self._hang_s = chosen.hang_s
        self._frames = Frames(frames.FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._asked: dict[int, asyncio.Future[tuple[bytes, list[Any]]]] = {}
        self._owed: dict[int, int] = {}  # tokens granted and not yet told, by call
        self._parked: set[int] = set()
        self._cancelled: set[int] = set()
        self._steps = Watchdog(chosen.hang_s, self._hang)
        self._texts = Watchdog(chosen.hang_s, self._hang)
        self._why = ""
        self._killer: asyncio.TimerHandle | None = None
        self._burial: asyncio.Task[None] | None = None

    @property
    def facts(self) -> Facts:
        return self.up.result()

    # --- the socket ---------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            match frames.decode(body):
                case [frames.STEPS, *steps]:
                    self._take_steps([frames.step_in(step) for step in steps])
                case [frames.ANSWER, int(number), tokens, cuts]:
                    self._settle(number, (tokens, cuts))
                case [frames.REFUSED, int(number), errno, message, hint]:
                    error = frames.error_in(errno, message, hint)
                    self._settle(number, error)
                case [frames.LOADING, float(done)]:
                    self._listener.loading(done)
                case [frames.UP, facts]:
                    self.up.set_result(frames.facts_in(facts))
                case _:
                    self._die("it sent an unknown frame")

    def connection_lost(self, exc: Exception | None) -> None:
        self._steps.feed(work=False)
        self._texts.feed(work=False)
        self._burial = asyncio.get_running_loop().create_task(self._bury())

    def _send(self, frame: frames.Frame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.encode(frame))

    def load(self, chosen: frames.Settings) -> None:
        self._send([frames.LOAD, asdict(chosen)])

    # --- texts --------------------------------------------------------------------------------
    async def ask(self, frame: frames.Frame) -> tuple[bytes, list[Any]]:
        """Send a text request and wait for its answer. DeviceFault when the child ends first."""
        if self._transport is None or self._transport.is_closing():
            raise DeviceFault("the engine is down", "it is being started again: try later")
        self._number += 1
        number = frame[1] = self._number
        answer: asyncio.Future[tuple[bytes, list[Any]]]
        answer = asyncio.get_running_loop().create_future()
        self._send(frame)
        self._asked[number] = answer
        self._texts.wake()
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    def _settle(self, number: int, result: tuple[bytes, list[Any]] | SyscallError) -> None:
        if number == 0:
            if isinstance(result, SyscallError) and not self.up.done():
                self.up.set_exception(self._explained(result))
            return
        answer = self._asked.pop(number, None)
        self._texts.feed(work=bool(self._asked))
        if answer is None or answer.done():
            return  # the asker has gone
        if isinstance(result, SyscallError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    # --- calls --------------------------------------------------------------------------------
    def admit(self, admission: Admission) -> None:
        tokens = frames.tokens_out(admission.prompt.tokens)
        head = [frames.ADMIT, admission.call, admission.slot, admission.history]
        self._send([*head, admission.domain, tokens, admission.sampling])
        self._owed[admission.call] = 0

    def forget(self, history: int) -> None:
        self._send([frames.FORGET, history])

    def grant(self, call: int, tokens: int) -> None:
        if call in self._owed:
            self._send([frames.GRANT, call, tokens])
            self._owed[call] += tokens
            self._watch()

    def cancel(self, call: int) -> None:
        if call in self._owed:
            self._send([frames.CANCEL, call])
            self._cancelled.add(call)
            self._watch()

    def park(self, call: int) -> None:
        if call in self._owed:
            self._send([frames.PARK, call])
            self._parked.add(call)

    def unpark(self, call: int, slot: int) -> None:
        if call in self._owed:
            self._send([frames.UNPARK, call, slot])
            self._parked.discard(call)
            self._watch()

    def _take_steps(self, steps: list[Step]) -> None:
        for step in steps:
            if step.finish is not None or step.error is not None:
                self._owed.pop(step.call, None)
                self._parked.discard(step.call)
                self._cancelled.discard(step.call)
            elif step.call in self._owed:
                self._owed[step.call] -= step.tokens + step.fed + step.cached
        self._steps.feed(work=self._works())
        self._listener.stepped(steps)

    def _works(self) -> bool:
        """Something is owed by the engine thread."""
        if self._cancelled:
            return True
        return any(owed > 0 and call not in self._parked for call, owed in self._owed.items())

    def _watch(self) -> None:
        if self._works():
            self._steps.wake()

    # --- the end ------------------------------------------------------------------------------
    def _hang(self) -> None:
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

    async def close(self) -> None:
        """End it: the end of the socket tells it, a kill follows if it does not listen."""
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
        fault = self._explained(DeviceFault(f"the engine {self._cause(code)}"))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(DeviceFault(fault.message, fault.hint))
        if not self.up.done():
            self.up.set_exception(fault)
        self.ended.set_result(fault.message)

    def _cause(self, code: int) -> str:
        if code < 0:
            with contextlib.suppress(ValueError):
                cause = f"was killed by {signal.Signals(-code).name}"
                return f"{cause}: {self._why}" if self._why else cause
        return f"ended with code {code}"

    def _explained(self, error: SyscallError) -> DeviceFault:
        """The error with the last words of the log."""
        words = tail(*self.log) if self.log else ""
        hint = f"see {self.log[0]}" if self.log else ""
        return DeviceFault(f"{error.message}; {words}" if words else error.message, hint)


def tail(path: Path, begin: int) -> str:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(begin, end - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_DUMP)]
    return " | ".join(lines[-_TAIL_LINES:])[-_TAIL_CHARS:]


def open_log(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def environment() -> dict[str, str]:
    """Only what the child needs; and no debugger attached to it when it aborts."""
    names = os.environ.items()
    kept = {k: v for k, v in names if k in _ENVIRONMENT or k.startswith(_ENVIRONMENT_PREFIXES)}
    return {**SPIN, **kept, "GGML_NO_BACKTRACE": "1"}


async def launch(chosen: frames.Settings, log: Path, listener: Listener) -> Link:
    """Start a child; returns when it is up. DeviceFault with the reason when it does not come up.

    A cancel point: the child is ended before the cancellation goes on.
    """
    try:
        fd = open_log(log)
        begin = os.fstat(fd).st_size
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise DeviceFault(f"the engine's process cannot be started: {error}") from error
    try:
        command = [sys.executable, "-P", "-m", f"{__package__}.child"]
        process = await asyncio.create_subprocess_exec(
            *command, str(theirs.fileno()), str(os.getpid()),
            stdin=DEVNULL, stdout=fd, stderr=fd, pass_fds=[theirs.fileno()],
            env=environment(), cwd="/",
        )  # fmt: skip
    except OSError as error:
        ours.close()
        raise DeviceFault(f"the engine's process cannot be started: {error.strerror}") from error
    finally:
        os.close(fd)
        theirs.close()
    link = Link(process, chosen, listener)
    link.log = log, begin
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    link.load(chosen)
    try:
        async with asyncio.timeout(limits.READY_S):
            await asyncio.shield(link.up)
    except TimeoutError:
        await link.close()
        raise DeviceFault(f"the engine was not up after {limits.READY_S:g} s") from None
    except (SyscallError, asyncio.CancelledError):
        await link.close()
        raise
    return link
