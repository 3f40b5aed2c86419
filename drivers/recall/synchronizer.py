"""Keeps Chroma synchronised with the vectors in memory: the thread that writes, compares, rebuilds.

Any failure of an owner's store closes it, and its searches then score every page. The store is
retried after a growing pause, from the start: opened, compared, updated. Files that stay unusable
are rebuilt, because all of their data is derived. Recall process only.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.child_runtime import ParentConnection
from llmasos.drivers.frames import ANSWER
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault

from . import chroma_store
from .chroma_files import ChromaFiles, NewerVersion
from .chroma_process import ChromaProcess, ProcessLost
from .frames import HEARTBEAT, RecallSettings
from .rows import Places, Vectors
from .store import Space, VectorStore

_WRITE_ROWS, _WRITE_BYTES = 256, 16 * 1024 * 1024  # per request; smaller ones cost more per row
_DELETE_ROWS = 1000  # per request
_PRUNE_S = 5.0  # without a change, before rows that only Chroma has are deleted
# Consecutive failures before the files are rebuilt, and the period of further rebuilds. A rebuild
# ends Chroma's process, which other owners use too.
_REBUILD_AFTER, _REBUILD_EVERY = 2, 3
_TOLERANCE = 1e-5  # difference of a value and the same value read from Chroma
_REBUILD = "`llmasos mem fsck --rebuild` rebuilds them"


@dataclass(slots=True)
class StoreFailure:
    """The failure of one owner's store."""

    pause_s: float
    due: float  # monotonic time of the next try
    tries: int = 1  # consecutive failures
    newer: bool = False  # a newer version wrote the files


class Synchronizer:
    """Synchronises the stores of all owners."""

    def __init__(
        self, store: VectorStore, settings: RecallSettings, parent: ParentConnection
    ) -> None:
        self._store, self._parent = store, parent
        self._url, self._first_s = settings.url, settings.retry_first_s
        self._chroma = ChromaProcess(self._heartbeat)
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._queued: set[str] = set()  # owners with a job in `_jobs`
        self._files: dict[str, ChromaFiles] = {}
        self._locations: dict[str, str] = {}  # of the open stores, by owner
        self._failures: dict[str, StoreFailure] = {}
        self._prune: dict[str, float] = {}  # monotonic time of the next prune, by owner

    # --- for the other threads ----------------------------------------------------------------
    def touch(self, path: str) -> None:
        """Schedule a round for an owner whose vectors have changed."""
        with self._store.lock:
            if path in self._queued:
                return
            self._queued.add(path)
        self._jobs.put(lambda: self._run_round(path))

    def stored(self, number: int, path: str, space: int) -> None:
        self._jobs.put(lambda: self._stored(number, path, space))

    def renew(self, number: int, path: str) -> None:
        self._jobs.put(lambda: self._renew(number, path))

    def query(self, path: str, space: int, question: bytes, count: int) -> Places | None:
        """The places that Chroma finds for the question; None when it does not answer soon."""
        location = self._locations.get(path)
        if not location:
            return None
        found = self._chroma.ask_if_idle(chroma_store.QUERY, location, space, question, count)
        return np.frombuffer(found[0], np.int64) if found else None

    # --- the thread ---------------------------------------------------------------------------
    def work(self, between: Callable[[], None]) -> None:
        """The loop of the thread. `between` is called before each job."""
        while True:
            between()
            try:
                job = self._jobs.get(timeout=self._pause_s())
            except Empty:
                self._run_due()
            else:
                job()

    def _pause_s(self) -> float | None:
        """Seconds until the next retry or prune; None: no limit."""
        times = [*(one.due for one in self._failures.values()), *self._prune.values()]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _run_due(self) -> None:
        """Retry and prune the owners that are due."""
        now = time.monotonic()
        for path in [path for path, failure in self._failures.items() if failure.due <= now]:
            self._run_round(path)
        for path in [path for path, due in self._prune.items() if due <= now]:
            self._attempt(path, self._prune_all)

    def _heartbeat(self) -> None:
        self._parent.send([HEARTBEAT])

    def _run_round(self, path: str) -> None:
        """Run one round of an owner. Rounds of other owners come before its next."""
        with self._store.lock:
            self._queued.discard(path)
        failure = self._failures.get(path)
        if failure is not None and time.monotonic() < failure.due:
            return
        if self._attempt(path, self._round):
            self.touch(path)

    def _is_rebuild_due(self, path: str) -> bool:
        failure = self._failures.get(path)
        if failure is None or failure.newer or self._url:
            return False
        return failure.tries % _REBUILD_EVERY == _REBUILD_AFTER and time.monotonic() >= failure.due

    def _rebuild(self, path: str) -> None:
        """Replace unusable files by new ones."""
        self._end()
        try:
            self._renew_files(path)
        except DeviceFault:
            self._end()  # it has the new files open
            raise
        self._release(path)
        self._failures[path].tries = 0

    def _attempt(self, path: str, do: Callable[[str], bool]) -> bool:
        """Run a job on a store and record its failure. True: more work is left."""
        try:
            left = do(path)
        except DeviceFault as error:
            self._fail(path, error)
            return False
        failure = self._failures.get(path)
        if failure is not None:
            failure.due = 0
            if not left:
                del self._failures[path]
                self._store.note(path, "")
        return left

    def _fail(self, path: str, error: DeviceFault) -> None:
        self._failures[path] = self._next_try(path, newer=isinstance(error, NewerVersion))
        what = f"the Chroma server {self._url}" if self._url else "Chroma's files"
        message = f"{what} cannot be used ({error.message}), so every page is scored"
        self._store.note(path, f"{message}; it is retried, and {_REBUILD}")
        if isinstance(error, ProcessLost):
            self._release(path)
            self._close_all()
        else:
            self._close(path)

    def _next_try(self, path: str, *, newer: bool) -> StoreFailure:
        """The next state after a failure. The pause doubles; a failure before it ends changes
        nothing."""
        now, before = time.monotonic(), self._failures.get(path)
        if before is None:
            return StoreFailure(self._first_s, now + self._first_s, 1, newer)
        if now < before.due:
            return before
        pause_s = min(before.pause_s * 2, limits.CHROMA_RETRY_LAST_S)
        return StoreFailure(pause_s, now + pause_s, before.tries + 1, newer)

    def _close_all(self) -> None:
        """The process has ended: mark every store as closed and schedule a round for each."""
        for path in list(self._locations):
            del self._locations[path]
            self._release(path)
            self.touch(path)

    def _close(self, path: str) -> None:
        if (location := self._locations.pop(path, None)) is not None:
            try:
                self._chroma.ask(chroma_store.CLOSE, location)
            except ProcessLost:
                self._close_all()
            except DeviceFault:
                pass  # it cannot be closed: the next open replaces it
        self._release(path)

    def _release(self, path: str) -> None:
        self._prune.pop(path, None)
        self._store.invalidate_chroma(path)
        if (files := self._files.pop(path, None)) is not None:
            files.close()

    def _owner_files(self, path: str) -> ChromaFiles:
        return self._files.setdefault(path, ChromaFiles(Path(path)))

    def _open(self, path: str) -> str:
        """Open the owner's store if needed and return its location."""
        location = self._locations.get(path)
        if location is None:
            files = self._owner_files(path)
            if self._url:
                location = files.prefix()
            else:
                files.prepare()
                location = str(files.path)
            self._chroma.ask(chroma_store.OPEN, location, self._url)
            self._locations[path] = location
        return location

    # --- one owner ----------------------------------------------------------------------------
    def _round(self, path: str) -> bool:
        """Synchronise a part of each space. True: more work is left."""
        owner = self._store.owner(path)
        with self._store.lock:
            dropped, spaces = list(owner.dropped), list(owner.spaces.items())
        if not dropped and not spaces:
            return False
        if self._is_rebuild_due(path):
            self._rebuild(path)
        location = self._open(path)
        for number in dropped:
            self._chroma.ask(chroma_store.DROP, location, number)
        left = [self._synchronize(location, number, space) for number, space in spaces]
        with self._store.lock:
            owner.dropped.difference_update(dropped)
            empty = not owner.spaces and not owner.dropped
            if any(space.foreign for _, space in spaces):
                self._prune[path] = time.monotonic() + _PRUNE_S
        if empty:
            self._close(path)
        return any(left)

    def _synchronize(self, location: str, number: int, space: Space) -> bool:
        """Synchronise a part of one space. True: more work is left."""
        if not space.synchronized:
            listed = self._chroma.ask(chroma_store.PLACES, location, number)[0]
            with self._store.lock:
                space.foreign = set(np.frombuffer(listed, np.int64).tolist())
                space.synchronized = True
        with self._store.lock:
            removed, space.removed = space.removed, set()
            space.foreign -= removed
            places, vectors = space.rows.send(_rows(space))
        self._delete(location, number, removed)
        if len(places):
            changed = self._changed(location, number, space, (places, vectors))
            if changed.any():
                new = np.ascontiguousarray(vectors[changed]).tobytes()
                changed_places = places[changed].tobytes()
                self._chroma.ask(chroma_store.WRITE, location, number, changed_places, new)
            with self._store.lock:
                space.rows.sent()
        with self._store.lock:
            return space.rows.has_pending or bool(space.removed)

    def _changed(
        self, location: str, number: int, space: Space, rows: tuple[Places, Vectors]
    ) -> NDArray[np.bool_]:
        """A mask of the rows that Chroma does not have, or has with another vector.

        A collection of vectors of another size is dropped first.
        """
        places, vectors = rows
        changed = np.ones(len(places), np.bool_)
        known = np.array([one for one in places.tolist() if one in space.foreign], np.int64)
        if not len(known) and not space.foreign:
            return changed
        # Without a known place, any other row of the collection shows the size of its vectors.
        probe = known if len(known) else np.array([next(iter(space.foreign))], np.int64)
        found, data = self._chroma.ask(chroma_store.GET, location, number, probe.tobytes())
        stored_places = np.frombuffer(found, np.int64)
        if not len(stored_places):
            return changed
        stored = np.frombuffer(data, np.float32).reshape(len(stored_places), -1)
        if stored.shape[1] != vectors.shape[1]:
            self._chroma.ask(chroma_store.DROP, location, number)
            space.foreign.clear()
            return changed
        order = np.argsort(stored_places)
        at = np.flatnonzero(np.isin(places, stored_places))
        if len(at):
            difference = np.abs(vectors[at] - stored[order]).max(axis=1)
            changed[at[difference < _TOLERANCE]] = False
        space.foreign.difference_update(places.tolist())
        return changed

    def _delete(self, location: str, number: int, places: set[int]) -> None:
        listed = np.array(sorted(places), np.int64)
        for start in range(0, len(listed), _DELETE_ROWS):
            batch = listed[start : start + _DELETE_ROWS].tobytes()
            self._chroma.ask(chroma_store.DELETE, location, number, batch)

    def _prune_all(self, path: str) -> bool:
        """Delete the rows that only Chroma has."""
        location = self._open(path)
        self._prune.pop(path, None)
        with self._store.lock:
            spaces = list(self._store.owner(path).spaces.items())
        for number, space in spaces:
            foreign, space.foreign = space.foreign, set()
            self._delete(location, number, foreign)
        return False

    # --- requests -----------------------------------------------------------------------------
    def _stored(self, number: int, path: str, space: int) -> None:
        def count(path: str) -> bool:
            while self._round(path):
                self._heartbeat()
            self._prune_all(path)
            counts.append(self._chroma.ask(chroma_store.COUNT, self._open(path), space)[0])
            return False

        counts: list[int] = []
        self._attempt(path, count)
        self._parent.send([ANSWER, number, counts[0] if counts else -1])

    def _renew(self, number: int, path: str) -> None:
        if path in self._failures or self._chroma.has_exited():
            self._end()  # a new process, so that no earlier failure affects it
        try:
            if self._url:
                self._chroma.ask(chroma_store.DROP_ALL, self._open(path))
            else:
                self._renew_files(path)
        except DeviceFault as error:
            self._fail(path, error)
            self._end()
            self._parent.send_error(number, error)
            return
        self._release(path)
        self._locations.pop(path, None)
        self._failures.pop(path, None)
        self._store.note(path, "")
        self._parent.send([ANSWER, number])
        self.touch(path)

    def _end(self) -> None:
        self._chroma.end()
        self._close_all()

    def _renew_files(self, path: str) -> None:
        """Write the vectors in memory to new files, end Chroma's process, swap the files."""
        files, owner = self._owner_files(path), self._store.owner(path)
        with self._store.lock:
            dropped = list(owner.dropped)
            spaces = [(n, space) for n, space in owner.spaces.items() if space.rows.count]
        if spaces:
            location = str(files.create_new())
            self._chroma.ask(chroma_store.OPEN, location, "")
            for number, space in spaces:
                self._write_all(location, number, space)
            self._chroma.ask(chroma_store.CLOSE, location)
        # The process must end first: removed files stay on disk while Chroma has them open.
        self._end()
        if spaces:
            files.swap(self._heartbeat)
        else:
            files.clear()
        with self._store.lock:
            owner.dropped.difference_update(dropped)

    def _write_all(self, location: str, number: int, space: Space) -> None:
        start = 0
        while True:
            with self._store.lock:
                places, vectors = space.rows.block(start, _rows(space))
            if not len(places):
                return
            self._chroma.ask(
                chroma_store.WRITE, location, number, places.tobytes(), vectors.tobytes()
            )
            self._heartbeat()
            start += len(places)


def _rows(space: Space) -> int:
    """The number of rows of this space in one write request."""
    return max(1, min(_WRITE_ROWS, _WRITE_BYTES // (4 * max(1, space.rows.dimensions))))
