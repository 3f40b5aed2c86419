"""Summaries of the pages that left a window: optional, made while the engine is idle.

A summary is a page of its own kind, with a key that names the pages it summarises (its sources). It
replaces no page, and is marked when it is recalled. Making one is a call of the lowest share
(nice 19), one at a time on each device, journaled like a call of the process. A summary is
forgotten with any of its sources.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import anyio

from .abi import limits
from .abi.errors import SyscallError
from .abi.values import Finish, Kind, Message, Role, Sampling
from .driver import Facts
from .machine import Machine
from .memory.layout import Stored
from .memory.memory import Memory
from .memory.rows import NewPage
from .owners.owner import Owner
from .process.table import Process
from .scheduling.device import Device
from .scheduling.scheduler import Claim
from .scheduling.work import Work
from .storage.journal import Entry
from .watch import Followers

log = logging.getLogger(__name__)
_ASK = "Summarise what is said above in at most five short sentences. Keep names and numbers."
_INSERT_SOURCE = "INSERT OR IGNORE INTO told(summary, page) VALUES(?, ?)"
_PID_OFFSET = 2**52  # added to the pid, so that its contexts differ from the conversation's


async def make(m: Machine, process: Process, numbers: Sequence[int]) -> None:
    """Write a summary of some pages. A failure is only logged: no caller waits for a summary."""
    try:
        async with m.owners.use(process.owner) as owner:
            await _make(m, owner, process, numbers)
    except SyscallError as error:
        log.info("cannot summarise pages of process %d: %s", process.pid, error)


async def _make(m: Machine, owner: Owner, process: Process, numbers: Sequence[int]) -> None:
    memory = owner.memory
    async with m.using(process.model) as (device, facts), m.summarising(device.name):
        epoch = memory.forgets
        sources = await _sources(memory, process, numbers, facts)
        text = await _summarise(m, process, sources, device) if sources else ""
        if not text or process.ending is not None:
            return
        prompt = await device.engine.compose(
            [Message(Role.USER, text)], raw=True, fresh=1
        )  # fmt: skip
    key = f"summary of {sources[0].number}-{sources[-1].number}"
    pages = [
        NewPage(cut.text, cut.tokens, Kind.SUMMARY, process.model, key=key, speaker=process.app)
        for cut in prompt.cuts[0]
    ]
    # Under the lock, no page is forgotten between this check and the queued write.
    async with memory.tables.ownership:
        if memory.forgets == epoch:
            more = [(_INSERT_SOURCE, (page.id,)) for page in sources]
            await memory.write(process, pages, more)
    owner.vectors.pages_written()


async def _sources(
    memory: Memory, process: Process, numbers: Sequence[int], facts: Facts
) -> list[Stored]:
    """The pages to summarise: as many as fit the window, without summaries."""
    table = await memory.opened(process)
    left = facts.window - limits.SUMMARY_TOKENS - 4 * limits.FAULT_TOKENS
    found: list[Stored] = []
    for page in (await memory.stored(table, sorted(numbers))).values():
        if page.kind == Kind.SUMMARY:
            continue
        left -= page.tokens + limits.FAULT_TOKENS // 4
        if left < 0:
            break
        found.append(page)
    return found


async def _summarise(
    m: Machine, process: Process, sources: Sequence[Stored], device: Device
) -> str:
    """The model's summary of the pages; empty when it did not finish."""
    lines = [f"{page.said_by}: {page.text.strip()}" for page in sources]
    request = Message(Role.USER, "\n".join([*lines, "", _ASK]))
    prompt = await device.engine.compose([request], raw=False, fresh=0)
    sampling = replace(Sampling(), max_tokens=limits.SUMMARY_TOKENS, temperature=0.0, seed=0)
    entry = Entry("begin", process.pid, process.owner, syscall="generate",
                  object=f"/proc/{process.pid}/generate", note="summary")  # fmt: skip
    number, begun = m.journal.append_future(entry)
    await begun
    copy = replace(  # with its own events
        process, pid=_PID_OFFSET + process.pid, nice=limits.NICE_MAX, idle=asyncio.Event(),
        ended=asyncio.Event(), output=Followers[str](),
    )  # fmt: skip
    claim = Claim(number, copy.pid, copy.weight, prompt.size, prompt.size + limits.SUMMARY_TOKENS)
    pages = frozenset(page.id for page in sources)
    work = Work(claim, copy, prompt, sampling, asked=time.monotonic(), pages=pages)
    try:
        with m.loader.flight(device, work):
            await _until_done(device, work)
    finally:
        with anyio.CancelScope(shield=True):
            device.cancel(number)
            device.forget(copy.pid)
            await m.journal.append_and_wait(replace(entry, kind="end", call=number))
    finished = work.finish in (Finish.STOP, Finish.LENGTH)
    return "".join(cut.text for cut in work.cuts).strip() if finished else ""


async def _until_done(device: Device, work: Work) -> None:
    device.submit(work)
    while not work.done:
        work.ready.clear()
        await work.ready.wait()
        device.take(work)
