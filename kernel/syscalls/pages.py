"""Pages of a process: read, write, search, pin, evict, map, share, forget and check."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from anyio import CancelScope

from ..abi import limits
from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..access.permissions import Permissions
from ..driver import Cut
from ..memory import changing, forgetting, mapping, reading
from ..memory import fsck as checking
from ..memory.layout import Stored
from ..memory.recall import Wanted, find
from ..memory.rows import NewPage
from ..memory.table import PageTable
from ..owners.owner import Owner
from ..process.table import Process, ProcessTable
from ..scheduling.loader import Loader, Mounts
from ..storage.database import Value
from .call import CallContext, Summariser
from .caller_access import CallerAccess


@dataclass(frozen=True, slots=True)
class PageSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    processes: ProcessTable
    mounts: Mounts
    loader: Loader
    permissions: Permissions
    caller_access: CallerAccess
    summaries: Summariser | None  # None: pages that leave a window are not summarised

    async def read_mem(self, call: CallContext, request: v.ReadMem) -> v.Pages:
        _check_times(request)
        _, table = await self._opened(call, request.pid)
        return await reading.read(call.data.memory, table, request)

    async def write_mem(self, call: CallContext, request: v.WriteMem) -> v.Written:
        """Write a text as pages: appended, in place of a page, or as the value of a key."""
        process = self.processes.get_alive(request.pid, call.caller.user)
        if request.page is not None and request.key:
            message = f"page={request.page} and key={request.key!r}: give a page or a key, not both"
            raise SyscallError(Errno.EINVAL, message)
        cuts = await self._cut(process, request.text)
        table = await call.data.memory.opened(process)
        before = await _before(call, table, request)
        old = before[0] if request.page is not None and before else None
        # A text that replaces pages keeps their labels.
        labels = dict.fromkeys([*(one for page in before for one in page.labels), *request.labels])
        pages = [
            NewPage(
                c.text, c.tokens, v.Kind.NOTE, call.caller.author, message=0, time=request.time,
                session=request.session or (old.session if old else ""),
                key=request.key or (old.key if old else ""), labels=list(labels),
                speaker=request.speaker,
            )
            for c in cuts
        ]  # fmt: skip
        freed_ids: list[int] = []
        if request.page is not None:
            numbers, freed_ids = await changing.replace(
                call.data.memory, table, request.page, pages
            )
        elif request.key:
            numbers, freed_ids = await changing.put(call.data.memory, table, request.key, pages)
        else:
            numbers = [number for number, _ in await call.data.memory.write(process, pages)]
        await _pages_freed(call, [], freed_ids)
        _pages_written(call)
        return v.Written(numbers)

    async def search_mem(self, call: CallContext, request: v.SearchMem) -> v.Hits:
        begun = time.perf_counter()
        _check_times(request)
        _, table = await self._opened(call, request.pid)
        resident = table.resident()
        wanted = Wanted(
            request.question, request.count, request.tokens, filters=_filters(request),
            way=request.way, skip=frozenset(resident if request.outside else ()),
        )  # fmt: skip
        found = await find(call.data.memory, call.data.vectors, table, wanted)
        hits: list[v.Hit] = []
        bytes_left = limits.READ_MEM_BYTES
        for hit in found.hits:
            bytes_left -= reading.bytes_of(hit.page, texts=request.texts)
            if bytes_left < 0 and hits:
                break
            summands = {name: round(one, 3) for name, one in hit.ranked.parts.items()}
            shown = reading.page(table, hit.page, resident)
            if not request.texts:
                shown = replace(shown, text="")
            hits.append(v.Hit(shown, round(hit.ranked.score, 3), summands, list(hit.same)))
        return v.Hits(hits, found.note, round(time.perf_counter() - begun, 6))

    async def pin(self, call: CallContext, request: v.Pin) -> v.Nothing:
        process, table = await self._opened(call, request.pid)
        numbers = _numbers(request.first, request.count)
        window = self.mounts.window(process.model) if request.pinned else 0
        await changing.pin(call.data.memory, table, numbers, request.pinned, window)
        return v.Nothing()

    async def evict(self, call: CallContext, request: v.Evict) -> v.Nothing:
        _, table = await self._opened(call, request.pid)
        await changing.evict(call.data.memory, table, _numbers(request.first, request.count))
        return v.Nothing()

    async def mmap(self, call: CallContext, request: v.Mmap) -> v.Mapped:
        """Map a document, a folder, or pages of another process; each is stored once."""
        process = self.processes.get_alive(request.pid, call.caller.user)
        table = await call.data.memory.opened(process)
        if request.source.startswith("/files/"):
            map_request = mapping.MapRequest(
                request.source, request.writable, process.model,
                lambda text: self._cut(process, text), self.caller_access.file_access(call.caller),
                self.caller_access.why_not(call.caller), call.caller.author,
            )  # fmt: skip
            mapped, found, freed = await mapping.document(call.data.memory, table, map_request)
            await _pages_freed(call, freed.spaces, freed.pages)
            _pages_written(call)
            return v.Mapped(
                mapped.first, mapped.count, mapped.source, found.skipped[: limits.SKIPPED],
                max(0, len(found.skipped) - limits.SKIPPED), found.links, found.hidden,
            )  # fmt: skip
        other = self.processes.get(int(request.source.split("/")[2]), call.caller.user)
        first, count = await _map(
            call, table, other, _page_range(request), writable=request.writable
        )
        return v.Mapped(first, count, request.source)

    async def munmap(self, call: CallContext, request: v.Munmap) -> v.Nothing:
        _, table = await self._opened(call, request.pid)
        freed = await mapping.unmap(call.data.memory, table, request.first)
        await _pages_freed(call, freed.spaces, freed.pages)
        return v.Nothing()

    async def share(self, call: CallContext, request: v.Share) -> v.Mapped:
        """Map pages of this process into another one."""
        giver = self.processes.get(request.pid, call.caller.user)
        taker = self.processes.get_alive(request.to, call.caller.user)
        table = await call.data.memory.opened(taker)
        pages = range(request.first, request.first + request.count)
        first, count = await _map(call, table, giver, pages, writable=request.writable)
        return v.Mapped(first, count, f"/proc/{request.pid}/mem")

    async def forget(self, call: CallContext, request: v.Forget) -> v.Forgotten:
        process, table = await self._opened(call, request.pid)
        if not request.key and not request.count:
            message = "count is 0: there is nothing to forget"
            raise SyscallError(Errno.EINVAL, message, pid=request.pid)
        numbers = _numbers(request.first, request.count)
        if request.key:
            numbers = list(await call.data.memory.keyed(table, request.key))
        self._check_holders(call, table, numbers)
        result = await self._erase(call.data, process, table, numbers)
        if not result.pages:
            last = request.first + request.count - 1
            which = f"page {last}" if request.count == 1 else f"page from {request.first} to {last}"
            what = f"key {request.key!r}" if request.key else which
            raise SyscallError(
                Errno.ENOENT, f"process {request.pid} has no {what}", pid=request.pid
            )
        return v.Forgotten(result.pages, list(result.pids), result.pending_note)

    def _check_holders(self, call: CallContext, table: PageTable, numbers: Sequence[int]) -> None:
        """Forgotten pages are erased in every process that has them: check each of them. EACCES."""
        for pid in forgetting.holders(call.data.memory, table, numbers):
            if pid != table.pid:
                self.permissions.require_also(call.caller, "forget", f"/proc/{pid}/mem")

    async def _erase(
        self, data: Owner, process: Process, table: PageTable, numbers: Sequence[int]
    ) -> forgetting.ForgetResult:
        """Erase pages in every process that has them, and the contexts computed from them."""

        def purge(page_ids: Sequence[int], pids: Sequence[int]) -> None:
            self.loader.purge(process, page_ids)
            if self.summaries is not None:
                self.summaries.pages_forgotten(process.owner)
            for one in self.processes.all():
                if one.pid in pids:
                    one.output.drop()

        result = forgetting.ForgetResult(0, [])
        with CancelScope(shield=True):  # completed even if the caller disconnects
            result = await forgetting.forget(data.memory, data.vectors, table, numbers, purge)
        if result.pending_note:
            data.sweeper.dirty()
        return result

    async def trace_mem(self, call: CallContext, request: v.TraceMem) -> v.Trace:
        _, table = await self._opened(call, request.pid)
        return await reading.trace(call.data.memory, table, request.page)

    async def fsck(self, call: CallContext, request: v.Fsck) -> v.Checked:
        """Check a user's pages and indexes; repair what is derived."""
        data, alive = call.data, self.processes.pids_in_use()
        try:
            return await checking.fsck(data.memory, data.vectors, alive, rebuild=request.rebuild)
        except BaseException:  # the sweeper resumes interrupted rebuilds
            data.sweeper.resume()
            raise

    async def _opened(self, call: CallContext, pid: int) -> tuple[Process, PageTable]:
        process = self.processes.get(pid, call.caller.user)
        return process, await call.data.memory.opened(process)

    async def _cut(self, process: Process, text: str) -> Sequence[Cut]:
        """Cut a text into pages by the tokens of the process's model."""
        async with self.mounts.using(process.model) as (device, _):
            return await device.engine.cut(text)


def _check_times(request: v.ReadMem | v.SearchMem) -> None:
    """EINVAL for an empty interval."""
    since, until = request.since, request.until
    if since is not None and until is not None and since > until:
        message = f"since={_iso(since)} is later than until={_iso(until)}"
        raise SyscallError(Errno.EINVAL, message, "give the earlier time as since")


def _iso(seconds: float) -> str:
    """Unix seconds as an ISO time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


async def _before(call: CallContext, table: PageTable, request: v.WriteMem) -> list[Stored]:
    """The pages to replace: one by its number, or those of a key. ENOENT."""
    if request.page is not None:
        table.require(request.page)
        return list((await call.data.memory.stored(table, [request.page])).values())
    if not request.key:
        return []
    numbers = list(await call.data.memory.keyed(table, request.key))
    return list((await call.data.memory.stored(table, numbers)).values())


def _filters(request: v.SearchMem) -> dict[str, Value]:
    conditions: dict[str, Value | None] = {
        "? IN (pages.author, pages.speaker)": request.author or None,
        "pages.time >= ?": request.since,
        "pages.time <= ?": request.until,
        "instr(?, ' ' || pages.kind || ' ')": f" {' '.join(request.kinds)} "
        if request.kinds else None,
        "EXISTS (SELECT 1 FROM json_each(pages.labels) WHERE value = ?)": request.label or None,
    }  # fmt: skip
    return {sql: value for sql, value in conditions.items() if value is not None}


def _page_range(request: v.Mmap) -> range:
    return range(request.first, request.first + (request.count or 2**53))


async def _map(
    call: CallContext, table: PageTable, other: Process, pages: range, *, writable: bool
) -> tuple[int, int]:
    """First number and count of the mapped pages. EINVAL for a process's own pages."""
    if other.pid == table.pid:
        message = f"process {table.pid} has its own pages already"
        raise SyscallError(Errno.EINVAL, message, "name another process", pid=table.pid)
    source = await call.data.memory.opened(other)
    mapped = await mapping.process(call.data.memory, table, source, pages, writable=writable)
    return mapped[0].first, sum(one.count for one in mapped)


def _numbers(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def _pages_written(call: CallContext) -> None:
    """Pages were written: update the vector index, and start the recall process if needed."""
    call.data.vectors.ensure_indexing()


async def _pages_freed(call: CallContext, spaces: Sequence[int], page_ids: Sequence[int]) -> None:
    """No process has these stored pages any more: remove them from the indexes, sweep later."""
    if spaces or page_ids:
        await call.data.vectors.remove(spaces, page_ids)
        call.data.sweeper.dirty()
