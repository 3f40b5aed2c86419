"""The process of recall: embeds, holds the vectors of everybody, searches, dies with its kernel.

    python -m llmasos.drivers.recall.child SOCKET_FD KERNEL_PID

The reader cuts frames off the socket; the main thread alone changes what is held and searches it,
and embeds the question for that; some threads embed texts; one has Chroma follow, which works in
a process of its own. So no search and no change waits for Chroma. The end of the socket is the end.
"""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from llmasos.drivers.door import Door, lower, outermost, thread, tie_to
from llmasos.drivers.frames import ANSWER, UP
from llmasos.kernel.errors import Errno, SyscallError

from . import frames
from .arrivals import Arrivals
from .embedding import Embedding, missing
from .encoder import DIMENSIONS, NAME, Encoder
from .heap import Heap
from .held import Held
from .search import Chooser, search
from .upkeep import Upkeep

_SWITCH_S = 0.0005  # how long a question waits for the Python of those who embed pages
_NICE, _NICE_EMBED = 5, 10  # of what answers, and of what is done beside


def main(fd: int, kernel_pid: int) -> NoReturn:
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o077)
    tie_to(kernel_pid)
    door = Door(fd)
    arrivals = Arrivals()
    thread(frames.NAME, lambda: _read(door, arrivals))
    lower(_NICE)
    settings = frames.Settings(**arrivals.work.get()[1])
    encoder = _encoder(settings.embedder)
    held = Held()
    upkeep = Upkeep(held, settings, door)
    embedding = Embedding(encoder, door, arrivals)
    heap = Heap()
    for _ in range(settings.threads if isinstance(encoder, Encoder) else 0):
        thread(frames.NAME, lambda: _beside(lambda: embedding.work(heap.trim)))
    thread(frames.NAME, lambda: _beside(lambda: upkeep.work(heap.trim)))
    made = NAME if isinstance(encoder, Encoder) else ""
    facts = {"os_pid": os.getpid(), "embedder": made, "dimensions": DIMENSIONS if made else 0}
    door.send([UP, facts])
    Desk(held, upkeep, embedding, settings.exact_pages).work(arrivals, door)


def _read(door: Door, arrivals: Arrivals) -> None:
    with contextlib.suppress(ConnectionError):
        door.read(arrivals.take)
    os._exit(0)


def _beside(work: Callable[[], None]) -> None:
    lower(_NICE_EMBED)
    work()


def _encoder(wanted: str) -> Encoder | SyscallError:
    """The builtin embedder, or why there is none: the rest goes on without."""
    if wanted == "none":
        return missing()
    try:
        return Encoder()
    except SyscallError as error:
        sys.stderr.write(f"no embedder: {error.message}\n")
        return error


class Desk:
    """What the main thread does, one frame after the other."""

    def __init__(self, held: Held, upkeep: Upkeep, embedding: Embedding, exact_pages: int) -> None:
        self._held, self._upkeep, self._embedding = held, upkeep, embedding
        self._exact_pages = exact_pages

    def work(self, arrivals: Arrivals, door: Door) -> NoReturn:
        while True:
            word, number, *values = arrivals.work.get()
            if word == frames.EMBED:
                self._embedding.take(number, *values)
                continue
            if word == frames.AHEAD:
                self._embedding.ahead(*values)
                continue
            if word == frames.SEARCH and not arrivals.waits(number):
                continue
            owner = os.fsdecode(values[0])
            try:
                answer = self._do(word, number, owner, values[1:])
            except SyscallError as error:
                door.refuse(number, error)
            else:
                if answer is not None:
                    door.send([ANSWER, number, *answer])
            arrivals.answered(number)

    def _do(self, word: int, number: int, owner: str, values: list[Any]) -> list[Any] | None:
        """The answer; None when the thread of Chroma gives it."""
        match word:
            case frames.ADD:
                self._held.add(owner, *values)
                self._upkeep.touch(owner)
                return []
            case frames.REMOVE:
                self._held.remove(owner, *values)
                self._upkeep.touch(owner)
                return []
            case frames.SEARCH:
                return self._search(owner, *values)
            case frames.STORED:
                self._upkeep.stored(number, owner, values[0])
                return None
            case _:
                self._upkeep.renew(number, owner)
                return None

    def _search(self, path: str, asked: str | bytes, reach: bytes, also: bytes) -> list[Any]:
        question = self._embedding.question(asked) if isinstance(asked, str) else asked
        vector = _direction(question)
        owner = self._held.owner(path)
        spans = [(int(n), int(a), int(b)) for n, a, b in np.frombuffer(reach, "Q").reshape(-1, 3)]
        choose = Chooser(
            self._exact_pages,
            lambda space, question, many: self._upkeep.offered(path, space, question, many),
        )
        found = search(owner, vector, spans, np.frombuffer(also, np.uint64), choose)
        unknown = frames.numbers_out(found.unknown)
        pages, scores = found.pages.tobytes(), found.scores.tobytes()
        return [pages, scores, found.mean, found.spread, unknown, owner.note]


def _direction(data: bytes) -> Any:
    """A question of length 1. EINVAL."""
    if not data or len(data) % 4:
        raise SyscallError(Errno.EINVAL, f"a question of {len(data)} bytes is no vector")
    vector = np.frombuffer(data, "<f4").astype(np.float32)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise SyscallError(Errno.EINVAL, "a question without a direction")
    return vector / np.float32(length)


if __name__ == "__main__":
    outermost(frames.NAME, lambda: main(int(sys.argv[1]), int(sys.argv[2])))
