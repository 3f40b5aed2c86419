"""Summaries of the pages that left a window: optional, made while their process has no call.

A summary is a page of its own kind, with a key that names the pages it summarises (its sources). It
replaces no page, and is marked when it is recalled. It is made by a single `generate` of the lowest
share (nice 19), one at a time on each device, dispatched like the call of a program of the process:
with its subjects, and the application SUMMARY_APP, which a rule can deny. A call or the end of the
process cancels it; the pages then wait for the next pause. A summary is forgotten with any of its
sources.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import anyio

from .abi import limits
from .abi.errors import Denied, SyscallError
from .abi.table import TABLE
from .abi.values import (
    Delta,
    Finish,
    Generate,
    Generated,
    Kind,
    Message,
    Overflow,
    Profile,
    Role,
    Sampling,
)
from .access.decisions import Policy
from .access.identity import Caller
from .access.reauthorisation import Clients
from .backpressure import UserLoads
from .dispatch import CallerCalls, CallParts
from .driver import Facts
from .memory.layout import Stored
from .memory.memory import Memory
from .memory.rows import NewPage
from .owners.owner import Owner
from .owners.owners import Owners
from .process.table import Process
from .scheduling.loader import Mounts
from .supervisor import Supervisor

log = logging.getLogger(__name__)
_ASK = "Summarise what is said above in at most five short sentences. Keep names and numbers."
_INSERT_SOURCE = "INSERT OR IGNORE INTO told(summary, page) VALUES(?, ?)"


class SummaryAnswer:
    """The sink of the call that makes a summary."""

    is_writable = has_read_all = True

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reply: Generated | None = None
        self._error: SyscallError | None = None
        self._ended = asyncio.Event()

    def item(self, item: object) -> None:
        if isinstance(item, Delta):
            self._texts.append(item.text)

    def reply(self, reply: object) -> None:
        self._reply = reply if isinstance(reply, Generated) else None
        self._ended.set()

    def fail(self, error: SyscallError) -> None:
        self._error = error
        self._ended.set()

    def keeps_up(self) -> bool:
        return True

    async def writable(self) -> None:
        return

    async def text(self) -> str:
        """The whole answer; empty when it was interrupted. Raises the error of the call."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        done = self._reply is not None and self._reply.finish in (Finish.STOP, Finish.LENGTH)
        return "".join(self._texts).strip() if done else ""


class SummaryJob:
    """The summaries of one process while they are made: a client of the kernel for its calls."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.scope = anyio.CancelScope()  # of the current attempt
        self.calls: CallerCalls | None = None

    def cancel(self) -> None:
        self.scope.cancel()

    def reauthorise(self) -> None:
        if self.process.ending is not None:
            self.cancel()
        elif self.calls is not None:
            self.calls.reauthorise()

    def belongs_to(self, pid: int) -> bool:
        return pid == self.process.pid


@dataclass(slots=True)
class Summaries:
    """Makes the summaries of all processes."""

    owners: Owners
    mounts: Mounts
    policy: Policy
    clients: Clients
    loads: UserLoads
    jobs: Supervisor
    # Set by boot.py: the handler of `generate`, which it contains, has a reference to this object.
    call_parts: CallParts = field(init=False)
    _waiting: dict[int, set[int]] = field(  # by pid: numbers of pages without a summary
        init=False, default_factory=dict[int, set[int]]
    )
    _making: dict[int, SummaryJob] = field(  # by pid
        init=False, default_factory=dict[int, SummaryJob]
    )
    _locks: dict[str, anyio.Lock] = field(  # by device: one summary at a time
        init=False, default_factory=dict[str, anyio.Lock]
    )
    _denied_in: int = field(init=False, default=0)  # epoch of the rules of the last logged refusal

    # --- called by the kernel ---------------------------------------------------------------------
    def call_begins(self, process: Process) -> None:
        if process.pid in self._making:
            self._making[process.pid].cancel()

    def call_ended(self, process: Process, evicted: Sequence[int]) -> None:
        if process.ending is not None:
            self._waiting.pop(process.pid, None)
            return
        if evicted:
            self._waiting.setdefault(process.pid, set()).update(evicted)
        if self._is_due(process) and process.pid not in self._making:
            job = self._making[process.pid] = SummaryJob(process)
            self.jobs.once("summary", self._run, job)

    def pages_forgotten(self, owner: str) -> None:
        for job in self._making.values():
            if job.process.owner == owner:
                job.cancel()

    def close(self) -> None:
        for job in self._making.values():
            job.cancel()

    # --- one process ------------------------------------------------------------------------------
    def _is_due(self, process: Process) -> bool:
        return process.pid in self._waiting and not process.call and process.ending is None

    async def _run(self, job: SummaryJob) -> None:
        """Make summaries until the process has a call, ends, or no page waits."""
        process = job.process
        self.clients.add(job)
        try:
            while self._is_due(process):
                numbers = self._waiting.pop(process.pid)
                job.scope = anyio.CancelScope()
                with job.scope:
                    await self._make(job, sorted(numbers))
                if job.scope.cancelled_caught and process.ending is None:
                    self._waiting.setdefault(process.pid, set()).update(numbers)
        finally:
            self.clients.remove(job)
            del self._making[process.pid]
            if process.ending is not None:
                self._waiting.pop(process.pid, None)

    async def _make(self, job: SummaryJob, numbers: Sequence[int]) -> None:
        """Write a summary of some pages. A failure is only logged: no caller waits for it."""
        process = job.process
        try:
            await self._write(job, numbers)
        except Denied as error:
            if self._denied_in != self.policy.epoch:  # once, until the rules change
                self._denied_in = self.policy.epoch
                log.warning("pages of process %d are not summarised: %s", process.pid, error)
        except SyscallError as error:
            log.info("cannot summarise pages of process %d: %s", process.pid, error)

    async def _write(self, job: SummaryJob, numbers: Sequence[int]) -> None:
        process = job.process
        async with self.owners.use(process.owner) as owner:
            left = await self._write_to(owner, job, numbers)
        if left:  # they did not fit
            self._waiting.setdefault(process.pid, set()).update(left)

    async def _write_to(self, owner: Owner, job: SummaryJob, numbers: Sequence[int]) -> list[int]:
        """Write a summary; returns the numbers of the pages that did not fit."""
        process, memory = job.process, owner.memory
        async with self.mounts.using(process.model) as (device, facts), self._lock(device.name):
            epoch = memory.forgets
            sources = await _sources(memory, process, numbers, facts)
            text = await self._summarise(job, sources) if sources else ""
            if not text:
                return []
            cuts = await device.engine.cut(text)
        key = f"summary of {sources[0].number}-{sources[-1].number}"
        pages = [
            NewPage(cut.text, cut.tokens, Kind.SUMMARY, process.model, key=key, speaker=process.app)
            for cut in cuts
        ]
        # Under the lock, no page is forgotten between this check and the queued write.
        async with memory.tables.ownership:
            if memory.forgets == epoch and process.ending is None:
                more = [(_INSERT_SOURCE, (page.id,)) for page in sources]
                await memory.write(process, pages, more)
        owner.vectors.pages_written()
        return [number for number in numbers if number > sources[-1].number]

    def _lock(self, device: str) -> anyio.Lock:
        return self._locks.setdefault(device, anyio.Lock())

    async def _summarise(self, job: SummaryJob, sources: Sequence[Stored]) -> str:
        """The model's summary of the pages; empty when it was interrupted. EACCES, EAGAIN, EIO."""
        process = job.process
        answer, load = SummaryAnswer(), self.loads.enter(process.owner)
        job.calls = calls = CallerCalls(self.call_parts, load, answer)
        try:
            calls.dispatch(_caller(process), TABLE["generate"], _request(process, sources), answer)
            return await answer.text()
        finally:
            job.calls = None
            calls.cancel()
            with anyio.CancelScope(shield=True):  # the next one on this device starts after it
                await calls.all_ended()
            self.loads.leave(load)


async def _sources(
    memory: Memory, process: Process, numbers: Sequence[int], facts: Facts
) -> list[Stored]:
    """The pages to summarise: as many as fit the window, without summaries."""
    table = await memory.opened(process)
    left = facts.window - limits.SUMMARY_TOKENS - 4 * limits.FAULT_TOKENS
    found: list[Stored] = []
    for page in (await memory.stored(table, numbers)).values():
        if page.kind == Kind.SUMMARY:
            continue
        left -= page.tokens + limits.FAULT_TOKENS // 4
        if left < 0:
            break
        found.append(page)
    return found


def _caller(process: Process) -> Caller:
    """The process as it calls by itself: its owner, its bounds, and no rights beyond them."""
    subjects = tuple(dict.fromkeys((f"u:{process.owner}", *process.subjects)))
    return Caller(
        0, process.owner, Profile.CAREFUL, subjects, recorded=" ".join(subjects), app=process.app,
        started_by=process.started_by, program=process.pid,
    )  # fmt: skip


def _request(process: Process, sources: Sequence[Stored]) -> Generate:
    lines = [f"{page.said_by}: {page.text.strip()}" for page in sources]
    sampling = replace(Sampling(), max_tokens=limits.SUMMARY_TOKENS, temperature=0.0, seed=0)
    return Generate(
        0, [Message(Role.USER, "\n".join([*lines, "", _ASK]))], sampling=sampling,
        overflow=Overflow.ERROR, model=process.model, app=limits.SUMMARY_APP, nice=limits.NICE_MAX,
    )  # fmt: skip
