"""Summaries of what left a window: optional, made when nobody else wants the engine.

A summary is a page like any other, of a kind of its own and named after the pages that it tells of;
it replaces nothing, and when it comes back it is marked. Making one is a call of the lowest share
(nice 19), one at a time for each device, journaled like a process's own. It is forgotten with any
page that it tells of.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import anyio

from . import limits
from .decide import Claim
from .device import Device
from .driver import Facts
from .errors import SyscallError
from .journal import Entry
from .machine import Machine
from .memory.layout import Stored
from .memory.rows import Written
from .process import Process
from .values import Finish, Kind, Message, Role, Sampling
from .watch import Followers
from .work import Work

log = logging.getLogger(__name__)
_ASK = "Summarise what is said above in at most five short sentences. Keep names and numbers."
_TOLD = "INSERT OR IGNORE INTO told(summary, page) VALUES(?, ?)"
_APART = 2**52  # added to a pid: its contexts are not the conversation's


async def make(m: Machine, process: Process, numbers: Sequence[int]) -> None:
    """A summary of some pages; nothing when it cannot be made: nobody waits for it."""
    try:
        async with m.using(process.model) as (device, facts), m.summarising(device.name):
            epoch = m.memory.forgets[process.owner]
            told = await _told(m, process, numbers, facts)
            text = await _said(m, process, told, device) if told else ""
            if not text or process.ending is not None:
                return
            prompt = await device.engine.compose(
                [Message(Role.USER, text)], raw=True, fresh=1
            )  # fmt: skip
        key = f"summary of {told[0].number}-{told[-1].number}"
        pages = [
            Written(cut.text, cut.tokens, Kind.SUMMARY, process.model, key=key, speaker=process.app)
            for cut in prompt.cuts[0]
        ]
        # In the order in which writes are queued: what is forgotten before is not told of.
        async with m.memory.tables.structure(process.owner):
            if m.memory.forgets[process.owner] == epoch:
                more = [(_TOLD, (one.id,)) for one in told]
                await m.memory.write(process, pages, more)
        m.meaning.written(process.owner)
    except SyscallError as error:
        log.info("no summary for process %d: %s", process.pid, error)


async def _told(m: Machine, process: Process, numbers: Sequence[int], facts: Facts) -> list[Stored]:
    """The pages to tell of: as many as fit the window, and no summaries."""
    table = await m.memory.opened(process)
    room = facts.window - limits.SUMMARY_TOKENS - 4 * limits.FAULT_TOKENS
    found: list[Stored] = []
    for page in (await m.memory.stored(table, sorted(numbers))).values():
        if page.kind == Kind.SUMMARY:
            continue
        room -= page.tokens + limits.FAULT_TOKENS // 4
        if room < 0:
            break
        found.append(page)
    return found


async def _said(m: Machine, process: Process, told: Sequence[Stored], device: Device) -> str:
    """What the model says of them."""
    lines = [f"{page.said_by}: {page.text.strip()}" for page in told]
    asked = Message(Role.USER, "\n".join([*lines, "", _ASK]))
    prompt = await device.engine.compose([asked], raw=False, fresh=0)
    sampling = replace(Sampling(), max_tokens=limits.SUMMARY_TOKENS, temperature=0.0, seed=0)
    entry = Entry("begin", process.pid, process.owner, syscall="generate",
                  object=f"/proc/{process.pid}/generate", note="summary")  # fmt: skip
    number, begun = m.journal.note(entry)
    await begun
    apart = replace(  # with events of its own
        process, pid=_APART + process.pid, nice=limits.NICE_MAX, idle=asyncio.Event(),
        ended=asyncio.Event(), output=Followers[str](),
    )  # fmt: skip
    claim = Claim(number, apart.pid, apart.weight, prompt.size, prompt.size + limits.SUMMARY_TOKENS)
    pages = frozenset(page.id for page in told)
    work = Work(claim, apart, prompt, sampling, asked=time.monotonic(), pages=pages)
    try:
        with m.scheduler.flight(device, work):
            await _until_done(device, work)
    finally:
        with anyio.CancelScope(shield=True):
            device.cancel(number)
            device.forget(apart.pid)
            await m.journal.written(replace(entry, kind="end", call=number))
    said = work.finish in (Finish.STOP, Finish.LENGTH)
    return "".join(cut.text for cut in work.cuts).strip() if said else ""


async def _until_done(device: Device, work: Work) -> None:
    device.submit(work)
    while not work.done:
        work.ready.clear()
        await work.ready.wait()
        device.take(work)
