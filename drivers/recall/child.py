"""The recall process: embeds texts, stores the vectors of all owners, searches them.

    python -m llmasos.drivers.recall.child SOCKET_FD KERNEL_PID

The reader thread reads frames from the socket. Only the main thread changes the stored vectors and
searches them; it also embeds the questions. Other threads embed texts. One thread keeps Chroma,
which runs in a process of its own, synchronised. So no search and no change waits for Chroma. The
process exits when the socket closes or the kernel dies.
"""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from llmasos.drivers.child_runtime import (
    ParentConnection,
    exit_with_parent,
    lower_priority,
    run_or_exit,
    start_thread,
)
from llmasos.drivers.frames import ANSWER, UP
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import frames
from .embedding import Embedding, missing
from .encoder import DIMENSIONS, NAME, Encoder
from .heap import Heap
from .requests import RequestQueue
from .search import Chooser, search
from .store import VectorStore
from .synchronizer import Synchronizer

_SWITCH_S = 0.0005  # how long a question waits for the interpreter lock while pages are embedded
_NICE, _NICE_BACKGROUND = 5, 10  # of the main thread, and of the others


def main(fd: int, kernel_pid: int) -> NoReturn:
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o077)
    exit_with_parent(kernel_pid)
    parent = ParentConnection(fd)
    requests = RequestQueue()
    start_thread(frames.NAME, lambda: _read(parent, requests))
    lower_priority(_NICE)
    settings = frames.RecallSettings(**requests.frames.get()[1])
    encoder = _encoder(settings)
    store = VectorStore()
    synchronizer = Synchronizer(store, settings, parent)
    embedding = Embedding(encoder, parent, requests)
    heap = Heap()
    for _ in range(settings.threads if isinstance(encoder, Encoder) else 0):
        start_thread(frames.NAME, lambda: _background(lambda: embedding.work(heap.trim)))
    start_thread(frames.NAME, lambda: _background(lambda: synchronizer.work(heap.trim)))
    name = NAME if isinstance(encoder, Encoder) else ""
    facts = {"os_pid": os.getpid(), "embedder": name, "dimensions": DIMENSIONS if name else 0}
    parent.send([UP, facts])
    RequestLoop(store, synchronizer, embedding, settings.exact_pages).work(requests, parent)


def _read(parent: ParentConnection, requests: RequestQueue) -> None:
    with contextlib.suppress(ConnectionError):
        parent.read(requests.put)
    os._exit(0)


def _background(work: Callable[[], None]) -> None:
    lower_priority(_NICE_BACKGROUND)
    work()


def _encoder(settings: frames.RecallSettings) -> Encoder | SyscallError:
    """The builtin embedder, or the error that embed requests get: the rest works without it."""
    if settings.embedder == "none":
        return missing()
    try:
        return Encoder(Path(settings.cache))
    except SyscallError as error:
        sys.stderr.write(f"no embedder: {error.message}\n")
        return error


class RequestLoop:
    """The loop of the main thread: handles one frame after the other."""

    def __init__(
        self, store: VectorStore, synchronizer: Synchronizer, embedding: Embedding, exact_pages: int
    ) -> None:
        self._store, self._synchronizer, self._embedding = store, synchronizer, embedding
        self._exact_pages = exact_pages

    def work(self, requests: RequestQueue, parent: ParentConnection) -> NoReturn:
        while True:
            kind, number, *values = requests.frames.get()
            if kind == frames.EMBED:
                self._embedding.put(number, *values)
                continue
            if kind == frames.AHEAD:
                self._embedding.prepare(*values)
                continue
            if kind == frames.SEARCH and not requests.is_waiting(number):
                continue
            owner = os.fsdecode(values[0])
            try:
                answer = self._do(kind, number, owner, values[1:])
            except SyscallError as error:
                parent.send_error(number, error)
            else:
                if answer is not None:
                    parent.send([ANSWER, number, *answer])
            requests.answered(number)

    def _do(self, kind: int, number: int, owner: str, values: list[Any]) -> list[Any] | None:
        """The answer; None when the synchronizer's thread sends it."""
        match kind:
            case frames.ADD:
                self._store.add(owner, *values)
                self._synchronizer.touch(owner)
                return []
            case frames.REMOVE:
                self._store.remove(owner, *values)
                self._synchronizer.touch(owner)
                return []
            case frames.SEARCH:
                return self._search(owner, *values)
            case frames.STORED:
                self._synchronizer.stored(number, owner, values[0])
                return None
            case _:
                self._synchronizer.renew(number, owner)
                return None

    def _search(self, path: str, question: str | bytes, ranges: bytes, also: bytes) -> list[Any]:
        if isinstance(question, str):
            question = self._embedding.question(question)
        vector = _unit_vector(question)
        owner = self._store.owner(path)
        spans = [(int(n), int(a), int(b)) for n, a, b in np.frombuffer(ranges, "Q").reshape(-1, 3)]
        choose = Chooser(
            self._exact_pages,
            lambda space, question, count: self._synchronizer.query(path, space, question, count),
        )
        found = search(owner, vector, spans, np.frombuffer(also, np.uint64), choose)
        unknown = frames.numbers_out(found.unknown)
        pages, scores = found.pages.tobytes(), found.scores.tobytes()
        return [pages, scores, found.mean, found.spread, unknown, owner.note]


def _unit_vector(data: bytes) -> Any:
    """The question's vector, scaled to length 1. EINVAL."""
    if not data or len(data) % 4:
        message = f"a question of {len(data)} bytes is not a vector of 32-bit floats"
        raise SyscallError(Errno.EINVAL, message)
    vector = np.frombuffer(data, "<f4").astype(np.float32)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise SyscallError(Errno.EINVAL, "the question's vector has length 0 or is not finite")
    return vector / np.float32(length)


if __name__ == "__main__":
    run_or_exit(frames.NAME, lambda: main(int(sys.argv[1]), int(sys.argv[2])))
