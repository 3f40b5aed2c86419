"""Embeds pages in the background and sends their vectors to the recall device.

Vectors are stored in the owner's database. The device holds copies; after a restart of the device
they are sent again. The device is started soon after boot when there are pages, when many pages
wait, or at the first need: a conversation that fits half of its window never needs it. Pages wait
in the table `todo`, so a crash loses none of them. Pages that the embedder refused are in the table
`refused` until the embedder changes.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio

from .. import points
from ..abi import limits
from ..abi.errors import DeviceFault, Errno, SyscallError
from ..abi.values import RecallInfo
from ..driver import Death, Reach, Recall, RecallFacts, VectorScores
from ..storage.database import Statement
from ..supervisor import Supervisor
from . import schema
from .indexing import Embed, Indexer, embedded
from .memory import Memory
from .recall_process import RecallProcess
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
_NUMBERS = "SELECT version FROM derived WHERE name = 'numbers'"
_REBUILD = "`llmasos mem fsck --rebuild` rebuilds them"


class VectorIndex:
    """The recall device and the vectors that it holds. Without a device, recall is lexical only."""

    def __init__(self, memory: Memory, device: Recall | None, jobs: Supervisor) -> None:
        self._memory = memory
        self._device, self._jobs = device, jobs
        self._indexers: dict[str, Indexer] = {}
        self._facts: RecallFacts | None = None
        self.process = RecallProcess(device, self, jobs)
        # Name and function of an embedder that replaces the device's own.
        self.embedder: tuple[str, Embed] | None = None
        self.disabled = device is None  # by configuration
        self.failure = "recall is lexical only: memory_embedder is none" if self.disabled else ""

    # --- reports of the device --------------------------------------------------------------------
    def up(self, facts: RecallFacts) -> None:
        self._facts, self.failure = facts, ""
        self.process.up()
        for indexer in self._indexers.values():
            indexer.wake.set()

    def down(self, death: Death) -> None:
        self._facts = None
        self.failure = f"recall is lexical only: {death.reason}"
        log.warning("the recall process is down: %s", death.reason)
        self.process.down(death)
        for indexer in self._indexers.values():
            indexer.loaded.clear()

    @property
    def os_pid(self) -> int:
        return self._facts.os_pid if self._facts is not None else 0

    @property
    def embedder_name(self) -> str:
        """The name of the embedder; empty while it is unknown or there is none."""
        if self.embedder is not None:
            return self.embedder[0]
        return self._facts.embedder if self._facts is not None else ""

    def info(self) -> RecallInfo:
        return self.process.info(self.os_pid, self.embedder_name)

    # --- start ------------------------------------------------------------------------------------
    async def begin(self) -> None:
        """Start it soon after boot if any owner has pages, so the first search need not wait."""
        await anyio.sleep(limits.RECALL_BOOT_S)
        for owner in self._memory.owners():
            if any(table.tokens for table in self._memory.tables.of(owner)):
                self.ensure_indexing(owner)

    def ensure_indexing(self, owner: str) -> None:
        """Start the device if needed, and keep this owner's pages indexed from now on."""
        if self._device is None:
            return
        if self.process.request_start():
            self.failure = "recall is lexical only for a moment: the recall process is starting"
        indexer = self._indexers.setdefault(owner, Indexer())
        indexer.wake.set()
        if not indexer.running:
            indexer.running = True
            self._jobs.run("index", self._follow, owner, indexer, owner=owner)

    def pages_written(self, owner: str) -> None:
        """New pages were written. Many waiting pages start the indexing before any search."""
        many = self._memory.lags.of(owner).waiting >= limits.INDEX_FIRST_PAGES
        if self.process.requested or many:
            self.ensure_indexing(owner)

    def prefetch(self, question: str) -> None:
        """Let the device embed the question while the text search runs."""
        if self._device is not None and self._facts is not None and self.embedder is None:
            self._device.prefetch(question)

    async def search(
        self, owner: Path, question: str, parts: Sequence[Reach], also: Sequence[int]
    ) -> VectorScores:
        """Similarity of pages to a question. The note says what is missing, and why."""
        self.ensure_indexing(owner.name)
        with anyio.move_on_after(limits.RECALL_FIRST_S):
            await self.process.attempted.wait()
        nothing = VectorScores((), (), 0.0, 0.0, note=self.failure)
        indexer = self._indexers.get(owner.name)
        if self._device is None or indexer is None or self._facts is None:
            return nothing
        known = indexer.loaded.issuperset(part.space for part in parts)
        timeout_s = limits.RECALL_S if known else limits.RECALL_FIRST_S
        with anyio.move_on_after(timeout_s):
            # Counted before the search: it may miss pages that are written meanwhile.
            waiting, indexer.foreign_vectors = await self._vector_state(owner.name, indexer)
            if indexer.foreign_vectors or indexer.dimension_mismatch:
                return replace(nothing, note=indexer.foreign_vectors or indexer.dimension_mismatch)
            try:
                query = await self._query(question)
                await self._load_all(owner.name, indexer, [part.space for part in parts])
                found = await self._device.search(owner, query, parts, also)
                if found.unknown:  # the device was restarted meanwhile
                    await self._load_all(owner.name, indexer, found.unknown)
                    found = await self._device.search(owner, query, parts, also)
            except SyscallError as error:
                return replace(nothing, note=f"recall is lexical only: {error.message}")
            if waiting and not found.note:
                note = f"{waiting} pages are not embedded yet: they are found by words only"
                return replace(found, note=note)
            return found
        note = f"recall is lexical only: no answer within {timeout_s:g} s"
        return replace(nothing, note=note)

    async def _query(self, question: str) -> str | bytes:
        if self.embedder is None:
            return question
        return (await self.embedder[1]([question]))[0]

    # --- vectors ----------------------------------------------------------------------------------
    async def _vector_state(self, owner: str, indexer: Indexer) -> tuple[int, str]:
        """The number of pages without a vector, and why the stored vectors cannot be used.

        Vectors of different embedders are never mixed.
        """
        [(todo, version, remake)] = await self._memory.read(owner, _VECTOR_STATE)
        made_by = str(version or "")
        other = bool(made_by) and bool(self.embedder_name) and made_by != self.embedder_name
        refused = (
            f"recall is lexical only: the vectors are of {made_by}, the embedder is "
            f"{self.embedder_name}; {_REBUILD}" if other else ""
        )  # fmt: skip
        if remake:
            refused = "recall is lexical only: the vectors are being rebuilt"
        return max(int(todo or 0), indexer.in_flight), refused

    async def _follow(self, owner: str, indexer: Indexer) -> None:
        """Index the waiting pages. After a failure, retry with a growing pause."""
        pause_s = limits.INDEX_RETRY_FIRST_S
        while True:
            indexer.wake = anyio.Event()
            retry_s = math.inf
            try:
                while self.embedder_name and await self._index_paced(owner, indexer):
                    pause_s = limits.INDEX_RETRY_FIRST_S
                indexer.last_error = ""
            except SyscallError as error:
                log.warning("pages of %s are not indexed: %s", owner, error)
                indexer.last_error = error.message
                retry_s, pause_s = pause_s, min(2 * pause_s, limits.INDEX_RETRY_LAST_S)
            with anyio.move_on_after(retry_s):
                await indexer.wake.wait()

    async def _index_paced(self, owner: str, indexer: Indexer) -> bool:
        async with self._memory.store.pacing.piece(limits.INDEX_PAUSE_S):
            return await self._index_some(owner, indexer)

    async def _index_some(self, owner: str, indexer: Indexer) -> bool:
        """Index one batch of pages. False: no page waits, or indexing is not possible now."""
        if self._device is None or self._facts is None:
            return False
        _, indexer.foreign_vectors = await self._vector_state(owner, indexer)
        if indexer.foreign_vectors:
            return False
        if indexer.retried_for != self.embedder_name:
            await retry_refused(self._memory, owner, self.embedder_name)
            indexer.retried_for = self.embedder_name
        rows = await self._memory.read(owner, WAITING, indexer.batch.pages)
        if not rows:
            return False
        texts = {int(row[0] or 0): str(row[1]) for row in rows}
        embed = self.embedder[1] if self.embedder is not None else self._device.embed
        batch = await embedded(embed, texts, indexer.batch)
        if batch.refused:
            await refuse(self._memory, owner, self.embedder_name, batch.refused)
        if batch.vectors:
            await self._check_dimensions(
                owner, indexer, len(next(iter(batch.vectors.values()))) // 4
            )
            points.passed("index.embedded")
            # `_store` removes these pages from `todo` before the device can find them.
            indexer.in_flight = len(batch.vectors)
            try:
                await self._store(owner, indexer, batch.vectors)
            finally:
                indexer.in_flight = 0
            points.passed("index.added")
        await self._memory.count_waiting(owner)
        return True

    def state(self, owner: str) -> tuple[str, str]:
        """The state of this owner's vectors, and why: off, idle, current, running or stuck."""
        if self.disabled:
            return "off", ""
        if not self._memory.lags.of(owner).waiting:
            return "current", ""
        indexer = self._indexers.get(owner)
        if not self.process.requested or indexer is None:
            return "idle", "no search yet"
        if not self.process.attempted.is_set():
            return "running", "the recall process is starting"
        why = (
            self.failure
            or indexer.foreign_vectors
            or indexer.dimension_mismatch
            or indexer.last_error
        )
        return ("stuck", why) if why else ("running", "")

    async def _check_dimensions(self, owner: str, indexer: Indexer, numbers: int) -> None:
        """EINVAL: the embedder kept its name and makes vectors of another dimension now."""
        rows = await self._memory.read(owner, _NUMBERS)
        indexer.dimension_mismatch = ""
        stored = int(rows[0][0] or 0) if rows else numbers
        if stored != numbers:
            message = f"vectors have {stored} numbers, {self.embedder_name} makes {numbers} now"
            indexer.dimension_mismatch = f"recall is lexical only: {message}; {_REBUILD}"
            raise SyscallError(Errno.EINVAL, message, _REBUILD)

    async def _store(self, owner: str, indexer: Indexer, made: Mapping[int, bytes]) -> None:
        """Store new vectors and send them to the device, except for pages erased meanwhile."""
        numbers = len(next(iter(made.values()))) // 4
        statements: list[Statement] = [(_MADE_BY, (self.embedder_name, numbers))]
        statements += [(_STORE, (vector, page)) for page, vector in made.items()]
        statements += [(_DONE, (page,)) for page in made]
        async with indexer.lock:
            database = self._memory.database(owner)
            await self._memory.store.write(database, statements, durable=False)
            points.passed("index.kept")
            still = {int(row[0] or 0) for row in await self._memory.by_id(owner, list(made))}
            existing = {page: vector for page, vector in made.items() if page in still}
            await self._send(owner, indexer, existing)

    async def _send(self, owner: str, indexer: Indexer, made: Mapping[int, bytes]) -> None:
        """Send new vectors to the device; of a space that is not loaded, all vectors."""
        by_space: dict[int, list[int]] = {}
        for page in made:
            by_space.setdefault(schema.space_of(page)[0], []).append(page)
        for space, pages in by_space.items():
            if space in indexer.loaded:
                places = [schema.space_of(page)[1] for page in pages]
                await self._add(owner, space, places, [made[page] for page in pages])
            else:
                await self._load(owner, indexer, space)

    async def _add(
        self, owner: str, space: int, places: Sequence[int], vectors: Sequence[bytes]
    ) -> None:
        if self._device is not None:
            await self._device.add(self._memory.directory(owner), space, places, vectors)

    async def _load_all(self, owner: str, indexer: Indexer, spaces: Sequence[int]) -> None:
        """Send the spaces that the device does not hold: a space is loaded whole or not at all.

        It goes on after the caller has stopped waiting, so the next search finds it done.
        """
        if indexer.loaded.issuperset(spaces):
            return
        ended, failed = anyio.Event(), list[SyscallError]()

        async def load() -> None:
            try:
                async with indexer.lock:
                    for space in spaces:
                        if space not in indexer.loaded:
                            await self._load(owner, indexer, space)
            except SyscallError as error:
                failed.append(error)
            finally:
                ended.set()

        def crashed() -> None:
            failed.append(DeviceFault("sending vectors failed", "see `llmasos daemon logs`"))

        self._jobs.once("load vectors", load, failed=crashed)
        await ended.wait()
        if failed:
            raise failed[0]

    async def _load(self, owner: str, indexer: Indexer, space: int) -> None:
        """Send all vectors of a space."""
        at, end = schema.id_range(space)
        await self._add(owner, space, [], [])
        while rows := await self._memory.read(owner, _VECTORS, at, end, limits.LOAD_VECTORS):
            places = [schema.space_of(int(row[0] or 0))[1] for row in rows]
            await self._add(owner, space, places, [bytes(row[1] or b"") for row in rows])  # type: ignore[arg-type]
            at = int(rows[-1][0] or 0) + 1
        indexer.loaded.add(space)

    # --- removal ----------------------------------------------------------------------------------
    async def remove(self, owner: str, spaces: Sequence[int], pages: Sequence[int] = ()) -> None:
        """Remove from the device the spaces and pages that were erased from the database."""
        indexer = self._indexers.get(owner)
        if self._device is None or indexer is None or self._facts is None:
            return
        where = self._memory.directory(owner)
        by_space: dict[int, list[int]] = {}
        for page in pages:
            space, place = schema.space_of(page)
            by_space.setdefault(space, []).append(place)
        async with indexer.lock:  # wait for vectors that are being sent: they are removed as well
            try:
                for space in spaces:
                    await self._device.remove(where, space)
                    indexer.loaded.discard(space)
                for space, places in by_space.items():
                    await self._device.remove(where, space, places)
            except SyscallError as error:
                log.warning("the recall process still holds erased vectors: %s", error)

    async def sweep(self, owner: str) -> None:
        """Remove erased vectors from Chroma's files; while the device is down, the files. EIO."""
        if self._facts is not None and owner in self._indexers:
            await self.renew(owner)
            return
        for name in ("chroma", "chroma.new", "chroma.old"):  # `renew` may have been interrupted
            files = self._memory.directory(owner) / name
            await self._memory.files.run(owner, partial(shutil.rmtree, files, ignore_errors=True))
            if files.exists():
                raise SyscallError(Errno.EIO, f"{files} cannot be removed", f"run `rm -r {files}`")

    async def renew(self, owner: str) -> None:
        """Rewrite Chroma's files, so that no erased vector remains in them. EIO."""
        if self._device is None:
            return
        self.ensure_indexing(owner)
        await self.process.attempted.wait()
        if self._facts is None:
            raise DeviceFault(self.failure or "the recall process is down", "try again later")
        try:
            with anyio.fail_after(limits.RENEW_S):
                await self._device.renew(self._memory.directory(owner))
        except TimeoutError:
            message = f"Chroma's files were not rewritten within {limits.RENEW_S:g} s"
            raise DeviceFault(message, "the kernel tries again later") from None

    def loaded_spaces(self, owner: str) -> list[int]:
        """Spaces that the device holds."""
        indexer = self._indexers.get(owner)
        return sorted(indexer.loaded) if indexer is not None else []

    async def stored(self, owner: str, space: int) -> int:
        """The number of vectors of a space in Chroma; -1: Chroma or the device is not available."""
        if self._device is None or self._facts is None:
            return -1
        return await self._device.stored(self._memory.directory(owner), space)
