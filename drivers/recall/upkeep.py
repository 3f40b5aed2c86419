"""Chroma follows what is held: the thread that writes, compares, renews, and tries again.

Whatever goes wrong with an owner's store closes it, and its searches score every page meanwhile.
It is tried again after a growing pause, from the beginning: opened, compared, brought up to date.
Files that stay unusable are made anew, as all in them is derived. Child process only.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.door import Door
from llmasos.drivers.frames import ANSWER
from llmasos.kernel import limits
from llmasos.kernel.errors import DeviceFault

from . import work
from .folder import Folder, Newer
from .frames import LIVES, Settings
from .held import Held, Space
from .rows import Places, Vectors
from .work import Chroma, Lost

_WRITE_ROWS, _WRITE_BYTES = 256, 16 * 1024 * 1024  # at once; fewer cost more each
_DELETE_ROWS = 1000  # at once
_PRUNE_S = 5.0  # without a change: what Chroma has and nobody handed over is deleted
# Tries that failed one after the other until the files are made anew, and until the next time:
# it ends Chroma's process, which the other owners need, too.
_ANEW, _ANEW_EVERY = 2, 3
_SAME = 1e-5  # between a number and what Chroma gives back for it
_REBUILD = "`llmasos mem fsck --rebuild` makes them anew"


@dataclass(slots=True)
class Trouble:
    """Of one owner."""

    pause_s: float
    due: float
    tries: int = 1  # that failed, one after the other
    newer: bool = False  # the files are of a newer version


class Upkeep:
    """The stores of all owners."""

    def __init__(self, held: Held, settings: Settings, door: Door) -> None:
        self._held, self._door = held, door
        self._url, self._first_s = settings.url, settings.retry_first_s
        self._chroma = Chroma(self._lives)
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._queued: set[str] = set()  # owners whose turn is in `_jobs`
        self._folders: dict[str, Folder] = {}
        self._places: dict[str, str] = {}  # of the stores that are open, by owner
        self._troubles: dict[str, Trouble] = {}
        self._prune: dict[str, float] = {}  # when, by owner

    # --- for the other threads ----------------------------------------------------------------
    def touch(self, path: str) -> None:
        """Something of this owner has changed."""
        with self._held.lock:
            if path in self._queued:
                return
            self._queued.add(path)
        self._jobs.put(lambda: self._turn(path))

    def stored(self, number: int, path: str, space: int) -> None:
        self._jobs.put(lambda: self._stored(number, path, space))

    def renew(self, number: int, path: str) -> None:
        self._jobs.put(lambda: self._renew(number, path))

    def offered(self, path: str, space: int, question: bytes, many: int) -> Places | None:
        """What Chroma finds like the question, if it answers soon."""
        place = self._places.get(path)
        found = place and self._chroma.ask_soon(work.QUERY, place, space, question, many)
        return np.frombuffer(found[0], np.int64) if found else None

    # --- the thread ---------------------------------------------------------------------------
    def work(self, rest: Callable[[], None]) -> None:
        """`rest` is called between two jobs."""
        while True:
            rest()
            try:
                job = self._jobs.get(timeout=self._pause_s())
            except Empty:
                self._look()
            else:
                job()

    def _pause_s(self) -> float | None:
        """Until something is to be tried again or pruned."""
        times = [*(one.due for one in self._troubles.values()), *self._prune.values()]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _look(self) -> None:
        now = time.monotonic()
        for path in [path for path, trouble in self._troubles.items() if trouble.due <= now]:
            self._turn(path)
        for path in [path for path, due in self._prune.items() if due <= now]:
            self._attempt(path, self._prune_all)

    def _lives(self) -> None:
        self._door.send([LIVES])

    def _turn(self, path: str) -> None:
        """One round of this owner; the others' turns come before its next."""
        with self._held.lock:
            self._queued.discard(path)
        trouble = self._troubles.get(path)
        if trouble is not None and time.monotonic() < trouble.due:
            return
        if self._attempt(path, self._round):
            self.touch(path)

    def _is_due_anew(self, path: str) -> bool:
        trouble = self._troubles.get(path)
        if trouble is None or trouble.newer or self._url:
            return False
        return trouble.tries % _ANEW_EVERY == _ANEW and time.monotonic() >= trouble.due

    def _anew(self, path: str) -> None:
        """New files instead of those that cannot be used."""
        self._end()
        try:
            self._renew_files(path)
        except DeviceFault:
            self._end()  # with the new files, which it has open
            raise
        self._release(path)
        self._troubles[path].tries = 0

    def _attempt(self, path: str, do: Callable[[str], bool]) -> bool:
        """Work on a store; what goes wrong is noted. True: something is left to be done."""
        try:
            left = do(path)
        except DeviceFault as error:
            self._fail(path, error)
            return False
        trouble = self._troubles.get(path)
        if trouble is not None:
            trouble.due = 0
            if not left:
                del self._troubles[path]
                self._held.note(path, "")
        return left

    def _fail(self, path: str, error: DeviceFault) -> None:
        self._troubles[path] = self._next_try(path, newer=isinstance(error, Newer))
        what = f"the Chroma server {self._url}" if self._url else "Chroma's files"
        words = f"{what} cannot be used ({error.message}), so every page is scored"
        self._held.note(path, f"{words}; it is tried again, and {_REBUILD}")
        if isinstance(error, Lost):
            self._release(path)
            self._lost()
        else:
            self._shut(path)

    def _next_try(self, path: str, *, newer: bool) -> Trouble:
        """After a growing pause. What was asked for meanwhile, and failed too, changes nothing."""
        now, before = time.monotonic(), self._troubles.get(path)
        if before is None:
            return Trouble(self._first_s, now + self._first_s, 1, newer)
        if now < before.due:
            return before
        pause_s = min(before.pause_s * 2, limits.CHROMA_RETRY_LAST_S)
        return Trouble(pause_s, now + pause_s, before.tries + 1, newer)

    def _lost(self) -> None:
        """The process has ended: every store is closed, and opened again when its turn comes."""
        for path in list(self._places):
            del self._places[path]
            self._release(path)
            self.touch(path)

    def _shut(self, path: str) -> None:
        if (place := self._places.pop(path, None)) is not None:
            try:
                self._chroma.ask(work.CLOSE, place)
            except Lost:
                self._lost()
            except DeviceFault:
                pass  # whatever it has against closing: the next who opens begins anew
        self._release(path)

    def _release(self, path: str) -> None:
        self._prune.pop(path, None)
        self._held.forget_chroma(path)
        if (folder := self._folders.pop(path, None)) is not None:
            folder.close()

    def _folder(self, path: str) -> Folder:
        return self._folders.setdefault(path, Folder(Path(path)))

    def _opened(self, path: str) -> str:
        """The place of the owner's store, which is open."""
        place = self._places.get(path)
        if place is None:
            folder = self._folder(path)
            if self._url:
                place = folder.prefix()
            else:
                folder.prepare()
                place = str(folder.path)
            self._chroma.ask(work.OPEN, place, self._url)
            self._places[path] = place
        return place

    # --- one owner ----------------------------------------------------------------------------
    def _round(self, path: str) -> bool:
        """A piece of each space. True: something is left."""
        owner = self._held.owner(path)
        with self._held.lock:
            dropped, spaces = list(owner.dropped), list(owner.spaces.items())
        if not dropped and not spaces:
            return False
        if self._is_due_anew(path):
            self._anew(path)
        place = self._opened(path)
        for number in dropped:
            self._chroma.ask(work.DROP, place, number)
        left = [self._follow(place, number, space) for number, space in spaces]
        with self._held.lock:
            owner.dropped.difference_update(dropped)
            empty = not owner.spaces and not owner.dropped
            if any(space.foreign for _, space in spaces):
                self._prune[path] = time.monotonic() + _PRUNE_S
        if empty:
            self._shut(path)
        return any(left)

    def _follow(self, place: str, number: int, space: Space) -> bool:
        """A piece of one space. True: something is left."""
        if not space.level:
            told = self._chroma.ask(work.PLACES, place, number)[0]
            with self._held.lock:
                space.foreign = set(np.frombuffer(told, np.int64).tolist())
                space.level = True
        with self._held.lock:
            removed, space.removed = space.removed, set()
            space.foreign -= removed
            places, vectors = space.rows.send(_rows(space))
        self._delete(place, number, removed)
        if len(places):
            fresh = self._unlike(place, number, space, (places, vectors))
            if fresh.any():
                written = np.ascontiguousarray(vectors[fresh]).tobytes()
                self._chroma.ask(work.WRITE, place, number, places[fresh].tobytes(), written)
            with self._held.lock:
                space.rows.sent()
        with self._held.lock:
            return space.rows.waiting or bool(space.removed)

    def _unlike(
        self, place: str, number: int, space: Space, rows: tuple[Places, Vectors]
    ) -> NDArray[np.bool_]:
        """Which of the rows Chroma does not have just so. Vectors of another size go first."""
        places, vectors = rows
        fresh = np.ones(len(places), np.bool_)
        asked = np.array([one for one in places.tolist() if one in space.foreign], np.int64)
        if not len(asked) and not space.foreign:
            return fresh
        # One that was not asked for tells of what size the others are.
        probe = asked if len(asked) else np.array([next(iter(space.foreign))], np.int64)
        found, told = self._chroma.ask(work.GET, place, number, probe.tobytes())
        theirs = np.frombuffer(found, np.int64)
        if not len(theirs):
            return fresh
        have = np.frombuffer(told, np.float32).reshape(len(theirs), -1)
        if have.shape[1] != vectors.shape[1]:
            self._chroma.ask(work.DROP, place, number)
            space.foreign.clear()
            return fresh
        order = np.argsort(theirs)
        at = np.flatnonzero(np.isin(places, theirs))
        if len(at):
            off = np.abs(vectors[at] - have[order]).max(axis=1)
            fresh[at[off < _SAME]] = False
        space.foreign.difference_update(places.tolist())
        return fresh

    def _delete(self, place: str, number: int, places: set[int]) -> None:
        listed = np.array(sorted(places), np.int64)
        for start in range(0, len(listed), _DELETE_ROWS):
            some = listed[start : start + _DELETE_ROWS].tobytes()
            self._chroma.ask(work.DELETE, place, number, some)

    def _prune_all(self, path: str) -> bool:
        """Delete what Chroma has and nobody handed over."""
        place = self._opened(path)
        self._prune.pop(path, None)
        with self._held.lock:
            spaces = list(self._held.owner(path).spaces.items())
        for number, space in spaces:
            foreign, space.foreign = space.foreign, set()
            self._delete(place, number, foreign)
        return False

    # --- what is asked ------------------------------------------------------------------------
    def _stored(self, number: int, path: str, space: int) -> None:
        def count(path: str) -> bool:
            while self._round(path):
                self._lives()
            self._prune_all(path)
            counts.append(self._chroma.ask(work.COUNT, self._opened(path), space)[0])
            return False

        counts: list[int] = []
        self._attempt(path, count)
        self._door.send([ANSWER, number, counts[0] if counts else -1])

    def _renew(self, number: int, path: str) -> None:
        # With a process of its own: nothing that happened before has a part in it.
        self._end()
        try:
            if self._url:
                self._chroma.ask(work.DROP_ALL, self._opened(path))
            else:
                self._renew_files(path)
        except DeviceFault as error:
            self._fail(path, error)
            self._end()
            self._door.refuse(number, error)
            return
        self._release(path)
        self._places.pop(path, None)
        self._troubles.pop(path, None)
        self._held.note(path, "")
        self._door.send([ANSWER, number])
        self.touch(path)

    def _end(self) -> None:
        self._chroma.end()
        self._lost()

    def _renew_files(self, path: str) -> None:
        """Write what is held beside the old files, end Chroma's process, swap."""
        folder, owner = self._folder(path), self._held.owner(path)
        with self._held.lock:
            dropped = list(owner.dropped)
            spaces = [(n, space) for n, space in owner.spaces.items() if space.rows.count]
        if spaces:
            place = str(folder.fresh())
            self._chroma.ask(work.OPEN, place, "")
            for number, space in spaces:
                self._write_all(place, number, space)
            self._chroma.ask(work.CLOSE, place)
        # An open file stays on the disk, and Chroma closes some of its own late.
        self._end()
        if spaces:
            folder.swap(self._lives)
        else:
            folder.clear()
        with self._held.lock:
            owner.dropped.difference_update(dropped)

    def _write_all(self, place: str, number: int, space: Space) -> None:
        start = 0
        while True:
            with self._held.lock:
                places, vectors = space.rows.block(start, _rows(space))
            if not len(places):
                return
            self._chroma.ask(work.WRITE, place, number, places.tobytes(), vectors.tobytes())
            self._lives()
            start += len(places)


def _rows(space: Space) -> int:
    """How many of this space are written at once."""
    return max(1, min(_WRITE_ROWS, _WRITE_BYTES // (4 * max(1, space.rows.dimensions))))
