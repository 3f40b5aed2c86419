"""Embeds the pages of one owner in the background and sends their vectors to the recall device.

A vector is stored in the owner's database. The recall device is a driver; its child process, the
recall process, holds copies of the vectors for searches, and keeps a Chroma index of them in the
owner's directory. Both can be built again from the database. A page is named by its space, an
append-only sequence of pages, and its place in it (docs/data-structures.md); the device holds all
vectors of a space or none, and a space that it holds is *loaded*. Pages wait in the table `todo`,
so a crash loses none of them. Pages that the embedder refused are in the table `refused` until the
embedder changes.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import anyio

from .. import points  # at which tests inject a crash
from ..abi import limits
from ..abi.errors import DeviceFault, Errno, SyscallError
from ..recall_driver import SpaceRange, VectorScores
from ..storage.database import Statement
from . import schema
from .indexing import BatchSize, embedded
from .memory import Memory
from .recall_device import RecallDevice
from .refusing import refuse, retry_refused

log = logging.getLogger(__name__)
# A document is embedded without its name: the name helps a text search, not a vector search.
WAITING = """SELECT id, CASE kind WHEN 'document' THEN pages.text ELSE said.text END
              FROM todo JOIN said USING(id) JOIN pages USING(id)
              WHERE NOT EXISTS (SELECT 1 FROM going WHERE id BETWEEN low AND high)
              ORDER BY id LIMIT ?"""
_VECTOR_STATE = """SELECT (SELECT count(*) FROM todo),
                      (SELECT version FROM derived WHERE name = 'vectors'),
                      (SELECT 1 FROM derived WHERE name = 'remake')"""
_STORE = "INSERT OR REPLACE INTO vectors SELECT id, ? FROM pages WHERE id = ?"
_DONE = "DELETE FROM todo WHERE id = ?"
_VECTORS = "SELECT id, vector FROM vectors WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
_MADE_BY = "INSERT OR IGNORE INTO derived VALUES('vectors', ?), ('numbers', ?)"
_DIMENSIONS = "SELECT version FROM derived WHERE name = 'numbers'"
_REBUILD = "`llmasos mem fsck --rebuild` rebuilds them"


class VectorIndex:
    """The vectors of one owner's pages, while the owner is open."""

    def __init__(self, memory: Memory, device: RecallDevice) -> None:
        self._memory, self.device = memory, device
        self._lock = anyio.Lock()  # held while vectors are sent to the device or removed from it
        self._wake = anyio.Event()
        self._batch = BatchSize()
        self._in_flight = 0  # pages whose vectors are being stored and sent
        self._requested = False  # pages are indexed from now on
        self._indexing = False  # a batch is being indexed
        self._closed = False
        self.changes = 0  # writes and removals of vectors that have begun
        # Each is the message to users while it applies, else empty.
        self._unusable_reason = ""  # stored vectors are of another embedder, or being rebuilt
        self._dimension_mismatch = ""  # new vectors have another dimension than stored ones
        self._last_error = ""  # why the last attempt made no vectors
        self._retried_for = ""  # the embedder for which refused pages were queued again
        device.indexes.add(self)

    @property
    def busy(self) -> bool:
        """Whether vectors are being made, sent or removed."""
        return self._indexing or self._lock.statistics().locked

    def close(self) -> None:
        """End the indexing; the waiting pages are indexed when the owner is open again."""
        self.device.indexes.discard(self)
        self._closed = True
        self._wake.set()

    def device_up(self) -> None:
        """The recall process has started: index the pages that wait."""
        self._wake.set()

    # --- start ------------------------------------------------------------------------------------
    def ensure_indexing(self) -> None:
        """Start the device if needed, and keep the pages indexed from now on."""
        if self.device.driver is None:
            return
        self.device.request_start()
        self._wake.set()
        if not self._requested:
            self._requested = True
            self.device.jobs.run("index", self._follow, owner=self._memory.owner)

    def pages_written(self) -> None:
        """New pages were written. Many waiting pages start the indexing before any search."""
        many = self._memory.lag.waiting >= limits.INDEX_FIRST_PAGES
        if self.device.lifecycle.requested or many:
            self.ensure_indexing()

    async def search(
        self, question: str, ranges: Sequence[SpaceRange], extra_pages: Sequence[int]
    ) -> VectorScores:
        """Similarity to a question, of the nearest pages in these ranges and of the extra pages.

        The note says what is missing, and why.
        """
        self.ensure_indexing()
        with anyio.move_on_after(limits.RECALL_FIRST_S):
            await self.device.lifecycle.attempted.wait()
        nothing = VectorScores((), (), 0.0, 0.0, note=self.device.unavailable_reason)
        if self.device.driver is None or self.device.facts is None:
            return nothing
        spaces = [one.space for one in ranges]
        loaded = self.loaded.issuperset(spaces)
        timeout_s = limits.RECALL_S if loaded else limits.RECALL_FIRST_S
        with anyio.move_on_after(timeout_s):
            # Counted before the search: it may miss pages that are written meanwhile.
            waiting, self._unusable_reason = await self._vector_state()
            if self._unusable_reason or self._dimension_mismatch:
                return replace(nothing, note=self._unusable_reason or self._dimension_mismatch)
            try:
                query = await self._query(question)
                await self._load_all(spaces)
                search = partial(
                    self.device.driver.search, self._memory.directory, query, ranges, extra_pages
                )
                found = await search()
                if found.unknown:  # the device was restarted meanwhile
                    await self._load_all(found.unknown)
                    found = await search()
            except SyscallError as error:
                return replace(nothing, note=f"recall is lexical only: {error.message}")
            if waiting and not found.note:
                note = f"{waiting} pages are not embedded yet: they are found by words only"
                return replace(found, note=note)
            return found
        note = f"recall is lexical only: no answer within {timeout_s:g} s"
        return replace(nothing, note=note)

    async def _query(self, question: str) -> str | bytes:
        """The question, for the device to embed, or its vector if another embedder is used."""
        if self.device.embedder is None:
            return question
        return (await self.device.embedder[1]([question]))[0]

    # --- vectors ----------------------------------------------------------------------------------
    async def _vector_state(self) -> tuple[int, str]:
        """The number of pages without a vector, and why the stored vectors cannot be used.

        Vectors of different embedders are never mixed.
        """
        [(todo, version, remake)] = await self._memory.read(_VECTOR_STATE)
        made_by, current = str(version or ""), self.device.embedder_name
        unusable = ""
        if made_by and current and made_by != current:
            message = f"the vectors are of {made_by}, the embedder is {current}"
            unusable = f"recall is lexical only: {message}; {_REBUILD}"
        if remake:
            unusable = "recall is lexical only: the vectors are being rebuilt"
        return max(int(todo or 0), self._in_flight), unusable

    async def _follow(self) -> None:
        """Index the waiting pages. After a failure, retry with a growing pause."""
        pause_s = limits.INDEX_RETRY_FIRST_S
        while not self._closed:
            self._wake = anyio.Event()
            retry_s = math.inf
            try:
                self._indexing = True
                while self.device.embedder_name and await self._index_paced():
                    pause_s = limits.INDEX_RETRY_FIRST_S
                self._last_error = ""
            except SyscallError as error:
                log.warning("pages of %s are not indexed: %s", self._memory.owner, error)
                self._last_error = error.message
                retry_s, pause_s = pause_s, min(2 * pause_s, limits.INDEX_RETRY_LAST_S)
            finally:
                self._indexing = False
            with anyio.move_on_after(retry_s):
                await self._wake.wait()

    async def _index_paced(self) -> bool:
        async with self._memory.store.pacing.piece(limits.INDEX_PAUSE_S):
            return await self._index_some()

    async def _index_some(self) -> bool:
        """Index one batch of pages. False: no page waits, or indexing is not possible now."""
        if self.device.driver is None or self.device.facts is None:
            return False
        _, self._unusable_reason = await self._vector_state()
        if self._unusable_reason:
            return False
        if self._retried_for != self.device.embedder_name:
            await retry_refused(self._memory, self.device.embedder_name)
            self._retried_for = self.device.embedder_name
        rows = await self._memory.read(WAITING, self._batch.pages)
        if not rows:
            return False
        texts = {int(row[0] or 0): str(row[1]) for row in rows}
        replacing = self.device.embedder
        embed = replacing[1] if replacing is not None else self.device.driver.embed
        batch = await embedded(embed, texts, self._batch)
        if batch.refused:
            await refuse(self._memory, self.device.embedder_name, batch.refused)
        if batch.vectors:
            await self._check_dimensions(len(next(iter(batch.vectors.values()))) // 4)
            points.passed("index.embedded")
            # `_store` removes these pages from `todo` before the device can find them.
            self._in_flight = len(batch.vectors)
            try:
                await self._store(batch.vectors)
            finally:
                self._in_flight = 0
            points.passed("index.added")
        await self._memory.count_waiting()
        return True

    def state(self) -> tuple[str, str]:
        """The state of this owner's vectors, and why: off, idle, current, running or stuck."""
        if self.device.disabled:
            return "off", ""
        if not self._memory.lag.waiting:
            return "current", ""
        process = self.device.lifecycle
        if not process.requested or not self._requested:
            return "idle", "no search yet"
        if not process.attempted.is_set():
            return "running", "the recall process is starting"
        why = (
            self.device.unavailable_reason
            or self._unusable_reason
            or self._dimension_mismatch
            or self._last_error
        )
        return ("stuck", why) if why else ("running", "")

    async def _check_dimensions(self, dimensions: int) -> None:
        """Raises EINVAL when the embedder kept its name but makes vectors of another dimension."""
        rows = await self._memory.read(_DIMENSIONS)
        self._dimension_mismatch = ""
        stored = int(rows[0][0] or 0) if rows else dimensions
        if stored != dimensions:
            name = self.device.embedder_name
            message = f"vectors have {stored} numbers, {name} makes {dimensions} now"
            self._dimension_mismatch = f"recall is lexical only: {message}; {_REBUILD}"
            raise SyscallError(Errno.EINVAL, message, _REBUILD)

    async def _store(self, made: Mapping[int, bytes]) -> None:
        """Store new vectors and send them to the device, except for pages erased meanwhile."""
        dimensions = len(next(iter(made.values()))) // 4
        statements: list[Statement] = [(_MADE_BY, (self.device.embedder_name, dimensions))]
        statements += [(_STORE, (vector, page)) for page, vector in made.items()]
        statements += [(_DONE, (page,)) for page in made]
        async with self._lock:
            self.changes += 1
            database = self._memory.database
            await self._memory.store.write(database, statements, durable=False)
            points.passed("index.kept")
            still = {int(row[0] or 0) for row in await self._memory.by_id(list(made))}
            existing = {page: vector for page, vector in made.items() if page in still}
            await self._send(existing)

    async def _send(self, made: Mapping[int, bytes]) -> None:
        """Send new vectors to the device; of a space that is not loaded, all vectors."""
        by_space: dict[int, list[int]] = {}
        for page in made:
            by_space.setdefault(schema.space_of(page)[0], []).append(page)
        for space, pages in by_space.items():
            if space in self.loaded:
                places = [schema.space_of(page)[1] for page in pages]
                await self._add(space, places, [made[page] for page in pages])
            else:
                await self._load(space)

    async def _add(self, space: int, places: Sequence[int], vectors: Sequence[bytes]) -> None:
        if self.device.driver is not None:
            await self.device.driver.add(self._memory.directory, space, places, vectors)

    async def _load_all(self, spaces: Sequence[int]) -> None:
        """Send the spaces that the device does not hold: a space is loaded whole or not at all.

        It goes on after the caller has stopped waiting, so the next search finds it done.
        """
        if self.loaded.issuperset(spaces):
            return
        ended, failed = anyio.Event(), list[SyscallError]()

        async def load() -> None:
            try:
                async with self._lock:
                    self.changes += 1
                    for space in spaces:
                        if space not in self.loaded:
                            await self._load(space)
            except SyscallError as error:
                failed.append(error)
            finally:
                ended.set()

        def crashed() -> None:
            failed.append(DeviceFault("sending vectors failed", "see `llmasos daemon logs`"))

        self.device.jobs.once("load vectors", load, failed=crashed)
        await ended.wait()
        if failed:
            raise failed[0]

    async def _load(self, space: int) -> None:
        """Send all vectors of a space."""
        at, end = schema.id_range(space)
        await self._add(space, [], [])  # creates the space, which may have no vectors
        while rows := await self._memory.read(_VECTORS, at, end, limits.LOAD_VECTORS):
            places = [schema.space_of(int(row[0] or 0))[1] for row in rows]
            await self._add(space, places, [bytes(row[1] or b"") for row in rows])  # type: ignore[arg-type]
            at = int(rows[-1][0] or 0) + 1
        self.loaded.add(space)

    # --- removal ----------------------------------------------------------------------------------
    async def remove(self, spaces: Sequence[int], pages: Sequence[int] = ()) -> None:
        """Remove from the device the spaces and pages that were erased from the database."""
        where = self._memory.directory
        if self.device.driver is None or not self.device.holds(where):
            return
        by_space: dict[int, list[int]] = {}
        for page in pages:
            space, place = schema.space_of(page)
            by_space.setdefault(space, []).append(place)
        async with self._lock:  # wait for vectors that are being sent: they are removed as well
            self.changes += 1
            try:
                for space in spaces:
                    await self.device.driver.remove(where, space)
                    self.loaded.discard(space)
                for space, places in by_space.items():
                    await self.device.driver.remove(where, space, places)
            except SyscallError as error:
                log.warning("the recall process still holds erased vectors: %s", error)

    async def clean_files(self) -> None:
        """Remove erased vectors from Chroma's files. Raises EIO when this fails.

        The recall process rewrites the files if it has vectors of this owner. Else it has none of
        the files open, and they are removed; it writes them again when it gets the vectors.
        """
        async with self._lock:  # the device gets no vectors of this owner meanwhile
            self.changes += 1
            in_use = self.device.holds(self._memory.directory)
            if not in_use:
                await self._remove_files()
        if in_use:
            await self.renew()

    async def _remove_files(self) -> None:
        """Remove Chroma's files. Raises EIO when one remains."""
        for name in ("chroma", "chroma.new", "chroma.old"):  # two of an interrupted renewal
            files = self._memory.directory / name
            await self._memory.in_file_thread(partial(shutil.rmtree, files, ignore_errors=True))
            if files.exists():
                raise SyscallError(Errno.EIO, f"{files} cannot be removed", f"run `rm -r {files}`")

    async def renew(self) -> None:
        """Rewrite Chroma's files, so that no erased vector remains in them.

        Raises EIO when the recall process is down or does not finish in time.
        """
        if self.device.driver is None:
            return
        self.ensure_indexing()
        await self.device.lifecycle.attempted.wait()
        if self.device.facts is None:
            why = self.device.unavailable_reason or "the recall process is down"
            raise DeviceFault(why, "try again later")
        try:
            with anyio.fail_after(limits.RENEW_S):
                await self.device.driver.renew(self._memory.directory)
        except TimeoutError:
            message = f"Chroma's files were not rewritten within {limits.RENEW_S:g} s"
            raise DeviceFault(message, "the kernel tries again later") from None

    @property
    def loaded(self) -> set[int]:
        """Spaces that the device holds."""
        return self.device.loaded_spaces_for_update(self._memory.directory)

    async def stored(self, space: int) -> int:
        """The number of vectors of a space in Chroma; -1: Chroma or the device is not available."""
        if self.device.driver is None or self.device.facts is None:
            return -1
        return await self.device.driver.stored(self._memory.directory, space)
