"""Pages of a process: read, written, searched, pinned, mapped, forgotten."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from .. import limits, permit
from .. import values as v
from ..database import Value
from ..driver import Cut
from ..errors import Errno, SyscallError
from ..machine import Machine
from ..memory import changing, forgetting, mapping, reading
from ..memory import fsck as checking
from ..memory.layout import Stored
from ..memory.recall import Wanted, find
from ..memory.rows import Written
from ..memory.table import Table
from ..process import Process
from . import files
from .call import Call


async def read_mem(m: Machine, call: Call, request: v.ReadMem) -> v.Pages:
    _check_times(request)
    _, table = await _opened(m, call, request.pid)
    return await reading.read(m.memory, table, request)


def _check_times(request: v.ReadMem | v.SearchMem) -> None:
    """EINVAL: nothing can be in between."""
    since, until = request.since, request.until
    if since is not None and until is not None and since > until:
        words = f"since={_day(since)} is later than until={_day(until)}"
        raise SyscallError(Errno.EINVAL, words, "give the earlier time as since")


def _day(seconds: float) -> str:
    """Unix seconds as people write them, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


async def write_mem(m: Machine, call: Call, request: v.WriteMem) -> v.Written:
    """A text as pages: appended, in the place of a page, or as what a key stands for."""
    process = m.processes.living(request.pid, call.caller.owner)
    if request.page is not None and request.key:
        words = "a page is named by its number or by its key"
        raise SyscallError(Errno.EINVAL, f"page={request.page} and key={request.key!r}: {words}")
    cuts = await _cut(m, process, request.text)
    table = await m.memory.opened(process)
    before = await _before(m, table, request)
    old = before[0] if request.page is not None and before else None
    # A text that takes the place of others is not less marked than they were.
    labels = dict.fromkeys([*(one for page in before for one in page.labels), *request.labels])
    pages = [
        Written(
            c.text, c.tokens, v.Kind.NOTE, call.caller.author, 0, request.time,
            request.session or (old.session if old else ""),
            request.key or (old.key if old else ""), list(labels), speaker=request.speaker,
        )
        for c in cuts
    ]  # fmt: skip
    free: list[int] = []
    if request.page is not None:
        numbers, free = await changing.replace(m.memory, table, request.page, pages)
    elif request.key:
        numbers, free = await changing.put(m.memory, table, request.key, pages)
    else:
        numbers = [number for number, _ in await m.memory.write(process, pages)]
    await m.freed(process.owner, [], free)
    _tell(m, process)
    return v.Written(numbers)


async def _before(m: Machine, table: Table, request: v.WriteMem) -> list[Stored]:
    """The pages that are to be replaced: one by its number, or those of a key. ENOENT."""
    if request.page is not None:
        table.must(request.page)
        return list((await m.memory.stored(table, [request.page])).values())
    if not request.key:
        return []
    numbers = list(await m.memory.keyed(table, request.key))
    return list((await m.memory.stored(table, numbers)).values())


async def search_mem(m: Machine, call: Call, request: v.SearchMem) -> v.Hits:
    begun = time.perf_counter()
    _check_times(request)
    _, table = await _opened(m, call, request.pid)
    resident = table.resident()
    wanted = Wanted(
        request.question, request.count, request.tokens, filters=_filters(request),
        way=request.way, skip=frozenset(resident if request.outside else ()),
    )  # fmt: skip
    found = await find(m.memory, m.meaning, table, wanted)
    hits: list[v.Hit] = []
    room = limits.READ_MEM_BYTES
    for hit in found.hits:
        room -= reading.bytes_of(hit.page, texts=request.texts)
        if room < 0 and hits:
            break
        parts = {name: round(part, 3) for name, part in hit.ranked.parts.items()}
        shown = reading.page(table, hit.page, resident)
        if not request.texts:
            shown = replace(shown, text="")
        hits.append(v.Hit(shown, round(hit.ranked.score, 3), parts, list(hit.same)))
    return v.Hits(hits, found.note, round(time.perf_counter() - begun, 6))


def _filters(request: v.SearchMem) -> dict[str, Value]:
    asked: dict[str, Value | None] = {
        "? IN (pages.author, pages.speaker)": request.author or None,
        "pages.time >= ?": request.since,
        "pages.time <= ?": request.until,
        "instr(?, ' ' || pages.kind || ' ')": f" {' '.join(request.kinds)} "
        if request.kinds else None,
        "EXISTS (SELECT 1 FROM json_each(pages.labels) WHERE value = ?)": request.label or None,
    }  # fmt: skip
    return {sql: value for sql, value in asked.items() if value is not None}


async def pin(m: Machine, call: Call, request: v.Pin) -> v.Nothing:
    process, table = await _opened(m, call, request.pid)
    numbers = _numbers(request.first, request.count)
    window = m.window(process.model) if request.pinned else 0
    await changing.pin(m.memory, table, numbers, request.pinned, window)
    return v.Nothing()


async def evict(m: Machine, call: Call, request: v.Evict) -> v.Nothing:
    _, table = await _opened(m, call, request.pid)
    await changing.evict(m.memory, table, _numbers(request.first, request.count))
    return v.Nothing()


async def mmap(m: Machine, call: Call, request: v.Mmap) -> v.Mapped:
    """A document, a folder, or pages of another process; stored once."""
    process = m.processes.living(request.pid, call.caller.owner)
    table = await m.memory.opened(process)
    if request.source.startswith("/files/"):
        asked = mapping.Asked(
            request.source, request.writable, process.model, lambda text: _cut(m, process, text),
            files.access(m, call.caller), files.why_not(m, call.caller), call.caller.author,
        )  # fmt: skip
        mapped, skipped, gone = await mapping.document(m.memory, table, asked)
        await m.freed(process.owner, gone.spaces, gone.pages)
        _tell(m, process)
        return v.Mapped(mapped.first, mapped.count, mapped.source, skipped)
    other = m.processes.get(int(request.source.split("/")[2]), call.caller.owner)
    parts = await _map(m, table, other, _part(request), writable=request.writable)
    return v.Mapped(parts[0], parts[1], request.source, [])


def _part(request: v.Mmap) -> range:
    return range(request.first, request.first + (request.count or 2**53))


async def _map(
    m: Machine, table: Table, other: Process, part: range, *, writable: bool
) -> tuple[int, int]:
    """First number and count of what was mapped. EINVAL: a process has its own pages already."""
    if other.pid == table.pid:
        words = f"process {table.pid} has its own pages already"
        raise SyscallError(Errno.EINVAL, words, "name another process", pid=table.pid)
    source = await m.memory.opened(other)
    mapped = await mapping.process(m.memory, table, source, part, writable=writable)
    return mapped[0].first, sum(one.count for one in mapped)


async def munmap(m: Machine, call: Call, request: v.Munmap) -> v.Nothing:
    process, table = await _opened(m, call, request.pid)
    gone = await mapping.unmap(m.memory, table, request.first)
    await m.freed(process.owner, gone.spaces, gone.pages)
    return v.Nothing()


async def share(m: Machine, call: Call, request: v.Share) -> v.Mapped:
    """Give pages to another process."""
    giver = m.processes.get(request.pid, call.caller.owner)
    taker = m.processes.living(request.to, call.caller.owner)
    table = await m.memory.opened(taker)
    part = range(request.first, request.first + request.count)
    first, count = await _map(m, table, giver, part, writable=request.writable)
    return v.Mapped(first, count, f"/proc/{request.pid}/mem", [])


async def forget(m: Machine, call: Call, request: v.Forget) -> v.Forgotten:
    process, table = await _opened(m, call, request.pid)
    numbers = _numbers(request.first, request.count)
    if request.key:
        numbers = list(await m.memory.keyed(table, request.key))
    _ask_holders(m, call, table, numbers)
    done = await m.forget(process, table, numbers)
    if not done.pages:
        what = f"key {request.key!r}" if request.key else f"page {request.first}"
        raise SyscallError(Errno.ENOENT, f"process {request.pid} has no {what}", pid=request.pid)
    return v.Forgotten(done.pages, list(done.pids), done.left)


def _ask_holders(m: Machine, call: Call, table: Table, numbers: Sequence[int]) -> None:
    """What is forgotten leaves every process that has it: the gate is asked about each. EACCES."""
    for pid in forgetting.holders(m.memory, table, numbers):
        if pid != table.pid:
            permit.also(m, call.caller, "forget", f"/proc/{pid}/mem")


async def trace_mem(m: Machine, call: Call, request: v.TraceMem) -> v.Trace:
    _, table = await _opened(m, call, request.pid)
    return await reading.trace(m.memory, table, request.page)


async def fsck(m: Machine, call: Call, request: v.Fsck) -> v.Checked:
    """Look at an owner's pages and indexes; mend what is derived."""
    owner = call.caller.owner
    alive = {process.pid for process in m.processes.all()}
    try:
        return await checking.fsck(m.memory, m.meaning, owner, alive, rebuild=request.rebuild)
    except BaseException:  # whatever it began is ended without the caller
        m.sweeper.left(owner)
        raise


def _numbers(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


async def _opened(m: Machine, call: Call, pid: int) -> tuple[Process, Table]:
    process = m.processes.get(pid, call.caller.owner)
    return process, await m.memory.opened(process)


def _tell(m: Machine, process: Process) -> None:
    """There is something to be found by meaning."""
    m.meaning.want(process.owner)
    m.meaning.written(process.owner)


async def _cut(m: Machine, process: Process, text: str) -> Sequence[Cut]:
    """A text in pages, as the process's model counts."""
    async with m.using(process.model) as (device, _):
        message = v.Message(v.Role.USER, text)
        prompt = await device.engine.compose([message], raw=True, fresh=1)
    return prompt.cuts[0]
