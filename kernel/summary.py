"""Summaries of what left a window: optional, made when nobody else wants the engine.

A summary is a page like any other, of a kind of its own and named after the pages that it tells of;
it replaces nothing, and when it comes back it is marked. Making one is a call of the lowest share
(nice 19), one at a time for each device, journaled like a process's own. It is forgotten with any
page that it tells of.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import anyio

from . import limits
from .decide import Claim
from .device import Device, Work
from .driver import Facts
from .errors import SyscallError
from .journal import Entry
from .machine import Machine
from .memory.rows import Written, summary_key
from .process import Process
from .values import Finish, Kind, Message, Role, Sampling

log = logging.getLogger(__name__)
_ASK = "Summarise what is said above in at most five short sentences. Keep names and numbers."
_APART = 2**52  # added to a pid: its contexts are not the conversation's


async def make(m: Machine, process: Process, numbers: Sequence[int]) -> None:
    """A summary of some pages; nothing when it cannot be made: nobody waits for it."""
    try:
        async with m.using(process.model) as (device, facts), m.summarising(device.name):
            text = await _said(m, process, numbers, device, facts)
            if not text or process.ending is not None:
                return
            prompt = await device.engine.compose(
                [Message(Role.USER, text)], raw=True, fresh=1
            )  # fmt: skip
        key = summary_key(numbers)
        pages = [
            Written(cut.text, cut.tokens, Kind.SUMMARY, process.app, key=key)
            for cut in prompt.cuts[0]
        ]
        await m.memory.write(process, pages)
        m.meaning.written(process.owner)
    except SyscallError as error:
        log.info("no summary for process %d: %s", process.pid, error)


async def _said(
    m: Machine, process: Process, numbers: Sequence[int], device: Device, facts: Facts
) -> str:
    """What the model says of the pages, or of as many as fit."""
    table = await m.memory.opened(process)
    room = facts.window - limits.SUMMARY_TOKENS - 4 * limits.FAULT_TOKENS
    lines: list[str] = []
    for page in (await m.memory.stored(table, sorted(numbers))).values():
        room -= page.tokens + limits.FAULT_TOKENS // 4
        if room < 0:
            break
        lines.append(f"{page.author}: {page.text.strip()}")
    asked = Message(Role.USER, "\n".join([*lines, "", _ASK]))
    prompt = await device.engine.compose([asked], raw=False, fresh=0)
    sampling = replace(Sampling(), max_tokens=limits.SUMMARY_TOKENS, temperature=0.0, seed=0)
    entry = Entry("begin", process.pid, process.owner, syscall="generate",
                  object=f"/proc/{process.pid}/generate", note="summary")  # fmt: skip
    number, begun = m.journal.note(entry)
    await begun
    apart = replace(process, pid=_APART + process.pid, nice=limits.NICE_MAX)
    claim = Claim(number, apart.pid, apart.weight, prompt.size, prompt.size + limits.SUMMARY_TOKENS)
    work = Work(claim, apart, prompt, sampling, asked=time.monotonic())
    device.submit(work)
    try:
        while not work.done:
            work.ready.clear()
            await work.ready.wait()
            device.take(work)
    finally:
        with anyio.CancelScope(shield=True):
            device.cancel(number)
            device.forget(apart.pid)
            await m.journal.written(replace(entry, kind="end", call=number))
    said = work.finish in (Finish.STOP, Finish.LENGTH)
    return "".join(cut.text for cut in work.cuts).strip() if said else ""
