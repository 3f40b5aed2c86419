"""The kernel's side of recall: starts the child process, sends requests to it, and restarts it.

When the child dies, only the requests in flight fail: the listener's `down` is called with the
reason, and the child is started again. It is then empty until the kernel adds the vectors again.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmasos.drivers.process import ChildConnection, Start, environment, launch
from llmasos.drivers.restart import Restarter
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.wire import build
from llmasos.kernel.driver import Option
from llmasos.kernel.recall_driver import (
    Recall,
    RecallFacts,
    RecallListener,
    SpaceRange,
    VectorScores,
)

from . import frames
from . import options as _options

_ADD_BYTES = 8 * 1024 * 1024  # of vectors in one frame
_EMBED_TEXTS = 64  # in one frame: each answer resets the watchdog
# BLAS runs single-threaded: two embedding threads are faster than one with two threads of BLAS.
_SINGLE_THREADED = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


check = _options.check


def recall(options: Mapping[str, Option], log: Path, cache: Path) -> Recall:
    """A device that is not started. EINVAL: an option is invalid."""
    return ChromaRecall(options, log, cache)


class RecallConnection(ChildConnection[RecallFacts]):
    """The connection to the running child."""

    def handle_frame(self, frame: list[Any]) -> bool:
        if frame != [frames.HEARTBEAT]:
            return False
        self.note_activity()
        return True

    def request_cancelled(self, number: int) -> None:
        self.send([frames.FORGET, number])


class ChromaRecall:
    """One mounted recall device."""

    def __init__(self, options: Mapping[str, Option], log: Path, cache: Path) -> None:
        self._settings = _options.settings(options, cache)
        self._log = log
        self._child = Restarter(frames.NAME, self._launch)

    async def start(self, listener: RecallListener) -> None:
        """Start the child. Returns after `listener.up`. DeviceFault with the reason."""
        await self._child.start(lambda connection: listener.up(connection.facts), listener.down)

    async def _launch(self) -> RecallConnection:
        start = Start(
            frames.NAME, f"{__package__}.child", self._log, environment({}, **_SINGLE_THREADED),
            [frames.LOAD, asdict(self._settings)],
        )  # fmt: skip
        return await launch(
            start,
            lambda process: RecallConnection(
                frames.NAME, process, limits.HANG_S, lambda facts: build(RecallFacts, facts)
            ),
        )

    async def stop(self) -> None:
        await self._child.stop()

    def retry(self) -> None:
        self._child.retry()

    async def restart(self) -> None:
        await self._child.restart()

    async def embed(self, texts: Sequence[str]) -> Sequence[bytes]:
        """Vectors of length 1, in the order of the texts. Each text is cut to EMBED_CHARS."""
        connection = self._child.running
        vectors: list[bytes] = []
        for start in range(0, len(texts), _EMBED_TEXTS):
            batch = [text[: limits.EMBED_CHARS] for text in texts[start : start + _EMBED_TEXTS]]
            [joined] = await connection.ask([frames.EMBED, 0, batch])
            vectors += frames.cut(joined, len(batch))
        return vectors

    async def add(
        self, owner: Path, space: int, places: Sequence[int], vectors: Sequence[bytes]
    ) -> None:
        """EINVAL: a vector is not of length 1, or not of the size of the space's others."""
        connection = self._child.running
        if len(places) != len(vectors) or len({len(vector) for vector in vectors}) > 1:
            message = (
                f"{len(places)} places and {len(vectors)} vectors: the numbers must be equal, and "
                "the vectors of one size"
            )
            raise SyscallError(Errno.EINVAL, message)
        step = _ADD_BYTES // max(1, len(vectors[0])) if vectors else 1
        for start in range(0, max(1, len(places)), step):
            numbers = _numbers(places[start : start + step])
            joined = b"".join(vectors[start : start + step])
            await connection.ask([frames.ADD, 0, _path(owner), space, numbers, joined])

    def prefetch(self, question: str) -> None:
        with suppress(DeviceFault):
            self._child.running.send([frames.AHEAD, 0, question[: limits.EMBED_CHARS]])

    async def search(
        self, owner: Path, question: str | bytes, ranges: Sequence[SpaceRange], also: Sequence[int]
    ) -> VectorScores:
        if isinstance(question, str):
            question = question[: limits.EMBED_CHARS]
        flat = [number for one in ranges for number in (one.space, one.first, one.last)]
        request = [frames.SEARCH, 0, _path(owner), question, _numbers(flat), _numbers(also)]
        pages, scores, mean, spread, unknown, note = await self._child.running.ask(request)
        return VectorScores(
            frames.numbers_in(pages), frames.scores_in(scores), mean, spread,
            frames.numbers_in(unknown), note,
        )  # fmt: skip

    async def remove(self, owner: Path, space: int, places: Sequence[int] | None = None) -> None:
        numbers = None if places is None else _numbers(places)
        await self._child.running.ask([frames.REMOVE, 0, _path(owner), space, numbers])

    async def renew(self, owner: Path) -> None:
        """Rebuild Chroma's files. DeviceFault: the files are unchanged, or removed."""
        await self._child.running.ask([frames.RENEW, 0, _path(owner)])

    async def stored(self, owner: Path, space: int) -> int:
        [count] = await self._child.running.ask([frames.STORED, 0, _path(owner), space])
        return int(count)


def _path(owner: Path) -> bytes:
    """An absolute path: the child has another current directory."""
    return os.fsencode(owner.absolute())


def _numbers(numbers: Sequence[int]) -> bytes:
    try:
        return frames.numbers_out(numbers)
    except OverflowError as error:
        raise SyscallError(Errno.EINVAL, "a space or a place is below 0 or over 64 bits") from error
