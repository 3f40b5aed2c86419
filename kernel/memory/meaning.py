"""Pages become vectors in the background, and the recall device is kept informed.

Vectors stand in the owner's database; the device holds copies, and whatever it forgets by dying is
handed over again. It is started soon after boot when there are pages, when many of them wait, or
when somebody first needs it: a conversation within half of its window never does. Pages wait in the
table `todo`, so that a crash loses none of them; those that the embedder refused stand in
`refused`, until there is another embedder.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio

from .. import limits, points
from ..database import Statement
from ..driver import Death, Likeness, Reach, Recall, RecallFacts
from ..errors import DeviceFault, Errno, SyscallError
from ..supervisor import Supervisor
from ..values import RecallInfo
from . import schema
from .indexing import Embed, Indexer, embedded
from .memory import Memory
from .power import Power
from .refusing import look_again, refuse

log = logging.getLogger(__name__)
# A document's name is a word to find it by, and says nothing of what a page of it means.
WAITING = """SELECT id, CASE kind WHEN 'document' THEN pages.text ELSE said.text END
              FROM todo JOIN said USING(id) JOIN pages USING(id)
              WHERE NOT EXISTS (SELECT 1 FROM going WHERE id BETWEEN low AND high)
              ORDER BY id LIMIT ?"""
_STANDING = """SELECT (SELECT count(*) FROM todo),
                      (SELECT version FROM derived WHERE name = 'vectors'),
                      (SELECT 1 FROM derived WHERE name = 'remake')"""
_KEEP = "INSERT OR REPLACE INTO vectors SELECT id, ? FROM pages WHERE id = ?"
_DONE = "DELETE FROM todo WHERE id = ?"
_VECTORS = "SELECT id, vector FROM vectors WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
_MADE_BY = "INSERT OR IGNORE INTO derived VALUES('vectors', ?), ('numbers', ?)"
_NUMBERS = "SELECT version FROM derived WHERE name = 'numbers'"
_REBUILD = "`llmasos mem fsck --rebuild` makes them anew"


class Meaning:
    """The recall device and what it holds. Without a device, all is found by words."""

    def __init__(self, memory: Memory, device: Recall | None, jobs: Supervisor) -> None:
        self._memory = memory
        self._device, self._jobs = device, jobs
        self._indexers: dict[str, Indexer] = {}
        self._facts: RecallFacts | None = None
        self.power = Power(device, self, jobs)
        self.embedder: tuple[str, Embed] | None = (
            None  # another one than the device's, with its name
        )
        self.off = device is None  # by configuration
        self.trouble = "recall is by words only: memory_embedder is none" if self.off else ""

    # --- what the device tells --------------------------------------------------------------------
    def up(self, facts: RecallFacts) -> None:
        self._facts, self.trouble = facts, ""
        self.power.up()
        for indexer in self._indexers.values():
            indexer.news.set()

    def down(self, death: Death) -> None:
        self._facts = None
        self.trouble = f"recall is by words only: {death.reason}"
        log.warning("the recall process is down: %s", death.reason)
        self.power.down(death)
        for indexer in self._indexers.values():
            indexer.loaded.clear()

    @property
    def os_pid(self) -> int:
        return self._facts.os_pid if self._facts is not None else 0

    @property
    def made_by(self) -> str:
        """The name of the embedder; empty while it is not known, or there is none."""
        if self.embedder is not None:
            return self.embedder[0]
        return self._facts.embedder if self._facts is not None else ""

    def info(self) -> RecallInfo:
        return self.power.info(self.os_pid, self.made_by)

    # --- who needs it -----------------------------------------------------------------------------
    async def begin(self) -> None:
        """Soon after boot, for all who have pages: so that the first question finds it ready."""
        await anyio.sleep(limits.RECALL_BOOT_S)
        for owner in self._memory.owners():
            if any(table.tokens for table in self._memory.tables.of(owner)):
                self.want(owner)

    def want(self, owner: str) -> None:
        """From now on this owner's pages are found by meaning, too."""
        if self._device is None:
            return
        if self.power.demand():
            self.trouble = "recall is by words only for a moment: its process is starting"
        indexer = self._indexers.setdefault(owner, Indexer())
        indexer.news.set()
        if not indexer.running:
            indexer.running = True
            self._jobs.run("index", self._follow, owner, indexer, owner=owner)

    def written(self, owner: str) -> None:
        """There are new pages. Many of them are indexed although nobody has searched yet."""
        many = self._memory.lags.of(owner).waiting >= limits.INDEX_FIRST_PAGES
        if self.power.begun or many:
            self.want(owner)

    def ahead(self, question: str) -> None:
        """A search for it follows, after words were looked for."""
        if self._device is not None and self._facts is not None and self.embedder is None:
            self._device.ahead(question)

    async def search(
        self, owner: Path, question: str, parts: Sequence[Reach], also: Sequence[int]
    ) -> Likeness:
        """How near pages are to a question. What is missing is told in the note."""
        self.want(owner.name)
        with anyio.move_on_after(limits.RECALL_FIRST_S):
            await self.power.tried.wait()
        nothing = Likeness((), (), 0.0, 0.0, note=self.trouble)
        indexer = self._indexers.get(owner.name)
        if self._device is None or indexer is None or self._facts is None:
            return nothing
        known = indexer.loaded.issuperset(part.space for part in parts)
        patience_s = limits.RECALL_S if known else limits.RECALL_FIRST_S
        with anyio.move_on_after(patience_s):
            # Counted before the search: what comes meanwhile may be missed.
            waiting, indexer.other = await self._standing(owner.name, indexer)
            if indexer.other or indexer.misfit:
                return replace(nothing, note=indexer.other or indexer.misfit)
            try:
                asked = await self._asked(question)
                await self._load_all(owner.name, indexer, [part.space for part in parts])
                found = await self._device.search(owner, asked, parts, also)
                if found.unknown:  # it has died and come back meanwhile
                    await self._load_all(owner.name, indexer, found.unknown)
                    found = await self._device.search(owner, asked, parts, also)
            except SyscallError as error:
                return replace(nothing, note=f"recall is by words only: {error.message}")
            if waiting and not found.note:
                words = f"{waiting} pages are found by words only, for a moment"
                return replace(found, note=words)
            return found
        words = f"recall is by words only: no answer within {patience_s:g} s"
        return replace(nothing, note=words)

    async def _asked(self, question: str) -> str | bytes:
        if self.embedder is None:
            return question
        return (await self.embedder[1]([question]))[0]

    # --- vectors ----------------------------------------------------------------------------------
    async def _standing(self, owner: str, indexer: Indexer) -> tuple[int, str]:
        """Pages whose vectors are to come, and why the others' are not used: vectors of another
        embedder are not mixed with ours."""
        [(todo, version, remake)] = await self._memory.read(owner, _STANDING)
        made_by = str(version or "")
        other = bool(made_by) and bool(self.made_by) and made_by != self.made_by
        refused = (
            f"recall is by words only: the vectors are of {made_by}, the embedder is "
            f"{self.made_by}; {_REBUILD}" if other else ""
        )  # fmt: skip
        if remake:
            refused = "recall is by words only: the vectors are being removed, to be made anew"
        return max(int(todo or 0), indexer.coming), refused

    async def _follow(self, owner: str, indexer: Indexer) -> None:
        """Index whatever waits, as long as there is a device; after a failure again, and later."""
        pause_s = limits.INDEX_RETRY_FIRST_S
        while True:
            indexer.news = anyio.Event()
            retry_s = math.inf
            try:
                while self.made_by and await self._index_paced(owner, indexer):
                    pause_s = limits.INDEX_RETRY_FIRST_S
                indexer.stuck = ""
            except SyscallError as error:
                log.warning("pages of %s are not indexed for now: %s", owner, error)
                indexer.stuck = error.message
                retry_s, pause_s = pause_s, min(2 * pause_s, limits.INDEX_RETRY_LAST_S)
            with anyio.move_on_after(retry_s):
                await indexer.news.wait()

    async def _index_paced(self, owner: str, indexer: Indexer) -> bool:
        async with self._memory.store.pacing.piece(limits.INDEX_PAUSE_S):
            return await self._index_some(owner, indexer)

    async def _index_some(self, owner: str, indexer: Indexer) -> bool:
        """A batch of pages. False: nothing waits, or nothing may be done."""
        if self._device is None or self._facts is None:
            return False
        _, indexer.other = await self._standing(owner, indexer)
        if indexer.other:
            return False
        if indexer.looked != self.made_by:
            await look_again(self._memory, owner, self.made_by)
            indexer.looked = self.made_by
        rows = await self._memory.read(owner, WAITING, indexer.pace.pages)
        if not rows:
            return False
        texts = {int(row[0] or 0): str(row[1]) for row in rows}
        embed = self.embedder[1] if self.embedder is not None else self._device.embed
        made = await embedded(embed, texts, indexer.pace)
        if made.refused:
            await refuse(self._memory, owner, self.made_by, made.refused)
        if made.vectors:
            await self._check_size(owner, indexer, len(next(iter(made.vectors.values()))) // 4)
            points.passed("index.embedded")
            indexer.coming = len(made.vectors)  # kept, they wait no more, and are found a bit later
            try:
                await self._keep(owner, indexer, made.vectors)
            finally:
                indexer.coming = 0
            points.passed("index.added")
        await self._memory.count_waiting(owner)
        return True

    def state(self, owner: str) -> tuple[str, str]:
        """How far this owner's vectors are: off, idle, current, running, stuck; and why."""
        if self.off:
            return "off", ""
        if not self._memory.lags.of(owner).waiting:
            return "current", ""
        indexer = self._indexers.get(owner)
        if not self.power.begun or indexer is None:
            return "idle", "nobody has searched yet"
        if not self.power.tried.is_set():
            return "running", "the recall process is starting"
        why = self.trouble or indexer.other or indexer.misfit or indexer.stuck
        return ("stuck", why) if why else ("running", "")

    async def _check_size(self, owner: str, indexer: Indexer, numbers: int) -> None:
        """EINVAL: an embedder of the same name makes vectors of another size now."""
        rows = await self._memory.read(owner, _NUMBERS)
        indexer.misfit = ""
        held = int(rows[0][0] or 0) if rows else numbers
        if held != numbers:
            words = f"vectors have {held} numbers, {self.made_by} makes {numbers} now"
            indexer.misfit = f"recall is by words only: {words}; {_REBUILD}"
            raise SyscallError(Errno.EINVAL, words, _REBUILD)

    async def _keep(self, owner: str, indexer: Indexer, made: Mapping[int, bytes]) -> None:
        """New vectors to the disk and to the device, but for pages that are gone meanwhile."""
        numbers = len(next(iter(made.values()))) // 4
        statements: list[Statement] = [(_MADE_BY, (self.made_by, numbers))]
        statements += [(_KEEP, (vector, page)) for page, vector in made.items()]
        statements += [(_DONE, (page,)) for page in made]
        async with indexer.lock:
            database = self._memory.database(owner)
            await self._memory.store.write(database, statements, durable=False)
            points.passed("index.kept")
            still = {int(row[0] or 0) for row in await self._memory.by_id(owner, list(made))}
            left = {page: vector for page, vector in made.items() if page in still}
            await self._hand_over(owner, indexer, left)

    async def _hand_over(self, owner: str, indexer: Indexer, made: Mapping[int, bytes]) -> None:
        """New vectors to the device; of a space that it does not know, all of them."""
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
        """Hand over what the device does not hold: a space is held whole, or not at all.

        It goes on when who asks waits no longer, so that the next one finds it done.
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

        def broke() -> None:
            failed.append(DeviceFault("handing over vectors failed", "see `llmasos daemon logs`"))

        self._jobs.once("load vectors", load, failed=broke)
        await ended.wait()
        if failed:
            raise failed[0]

    async def _load(self, owner: str, indexer: Indexer, space: int) -> None:
        """Hand over all vectors of a space."""
        at, end = schema.whole(space)
        await self._add(owner, space, [], [])
        while rows := await self._memory.read(owner, _VECTORS, at, end, limits.LOAD_VECTORS):
            places = [schema.space_of(int(row[0] or 0))[1] for row in rows]
            await self._add(owner, space, places, [bytes(row[1] or b"") for row in rows])  # type: ignore[arg-type]
            at = int(rows[-1][0] or 0) + 1
        indexer.loaded.add(space)

    # --- forgetting -------------------------------------------------------------------------------
    async def erased(self, owner: str, spaces: Sequence[int], pages: Sequence[int] = ()) -> None:
        """Spaces or pages are gone from the database: from the device, too."""
        indexer = self._indexers.get(owner)
        if self._device is None or indexer is None or self._facts is None:
            return
        where = self._memory.directory(owner)
        by_space: dict[int, list[int]] = {}
        for page in pages:
            space, place = schema.space_of(page)
            by_space.setdefault(space, []).append(place)
        async with indexer.lock:  # what is being handed over now is removed after that
            try:
                for space in spaces:
                    await self._device.remove(where, space)
                    indexer.loaded.discard(space)
                for space, places in by_space.items():
                    await self._device.remove(where, space, places)
            except SyscallError as error:
                log.warning("the recall process was not told what is gone: %s", error)

    async def sweep(self, owner: str) -> None:
        """After many vectors are gone: Chroma's files without them. Without a device, none. EIO."""
        if self._facts is not None and owner in self._indexers:
            await self.renew(owner)
            return
        for name in ("chroma", "chroma.new", "chroma.old"):  # a renewal may have been cut short
            files = self._memory.directory(owner) / name
            await self._memory.files.run(owner, partial(shutil.rmtree, files, ignore_errors=True))
            if files.exists():
                raise SyscallError(Errno.EIO, f"{files} cannot be removed", f"rm -r {files}")

    async def renew(self, owner: str) -> None:
        """Chroma's files anew, so that nothing of what is gone is left in them. EIO."""
        if self._device is None:
            return
        self.want(owner)
        await self.power.tried.wait()
        if self._facts is None:
            raise DeviceFault(self.trouble or "the recall process is down", "try again later")
        try:
            with anyio.fail_after(limits.RENEW_S):
                await self._device.renew(self._memory.directory(owner))
        except TimeoutError:
            words = f"Chroma's files were not made anew within {limits.RENEW_S:g} s"
            raise DeviceFault(words, "it is tried again later") from None

    def held(self, owner: str) -> list[int]:
        """Spaces that the device holds."""
        indexer = self._indexers.get(owner)
        return sorted(indexer.loaded) if indexer is not None else []

    async def stored(self, owner: str, space: int) -> int:
        """Vectors of a space that Chroma has; -1: it cannot be used, or is not there."""
        if self._device is None or self._facts is None:
            return -1
        return await self._device.stored(self._memory.directory(owner), space)
