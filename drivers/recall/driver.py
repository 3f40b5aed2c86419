"""The kernel's side of recall: starts the child, speaks with it, and outlives it.

Whatever ends the child ends the requests in flight and nothing else: the listener hears `down`
with the reason, and the child is started again. It then holds nothing, until it is handed over.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmasos.drivers.process import Line, Start, environment, launch
from llmasos.drivers.restart import Restarter
from llmasos.kernel import limits
from llmasos.kernel.driver import Likeness, Option, Reach, RecallFacts, RecallListener
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.wire import build

from . import frames
from .options import settings

_ADD_BYTES = 8 * 1024 * 1024  # of vectors in one frame
_EMBED_TEXTS = 64  # in one frame: an answer is a sign of life
# Each thread that embeds computes alone: two of them make more vectors than two threads of BLAS.
_ALONE = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class Link(Line[RecallFacts]):
    """The running child."""

    def take(self, frame: list[Any]) -> bool:
        if frame != [frames.LIVES]:
            return False
        self.lives()
        return True

    def forgotten(self, number: int) -> None:
        self.send([frames.FORGET, number])


class ChromaRecall:
    """One mounted recall device."""

    def __init__(self, options: Mapping[str, Option], log: Path) -> None:
        self._settings = settings(options)
        self._log = log
        self._child = Restarter(frames.NAME, self._launch)

    async def start(self, listener: RecallListener) -> None:
        """Returns after `listener.up`. DeviceFault with the reason."""
        await self._child.start(lambda link: listener.up(link.facts), listener.down)

    async def _launch(self) -> Link:
        start = Start(
            frames.NAME, f"{__package__}.child", self._log, environment({}, **_ALONE),
            [frames.LOAD, asdict(self._settings)],
        )  # fmt: skip
        return await launch(
            start,
            lambda process: Link(
                frames.NAME, process, limits.HANG_S, lambda told: build(RecallFacts, told)
            ),
        )

    async def stop(self) -> None:
        await self._child.stop()

    def retry(self) -> None:
        self._child.retry()

    async def restart(self) -> None:
        await self._child.restart()

    async def embed(self, texts: Sequence[str]) -> Sequence[bytes]:
        """Of a text over EMBED_CHARS, only its beginning counts; of a question, too."""
        link = self._child.running
        vectors: list[bytes] = []
        for start in range(0, len(texts), _EMBED_TEXTS):
            some = [text[: limits.EMBED_CHARS] for text in texts[start : start + _EMBED_TEXTS]]
            [joined] = await link.ask([frames.EMBED, 0, some])
            vectors += frames.cut(joined, len(some))
        return vectors

    async def add(
        self, owner: Path, space: int, places: Sequence[int], vectors: Sequence[bytes]
    ) -> None:
        """EINVAL: a vector is not of length 1, or not of the size of the space's others."""
        link = self._child.running
        if len(places) != len(vectors) or len({len(vector) for vector in vectors}) > 1:
            words = f"{len(places)} places and {len(vectors)} vectors, one of a size for each"
            raise SyscallError(Errno.EINVAL, words)
        step = _ADD_BYTES // max(1, len(vectors[0])) if vectors else 1
        for start in range(0, max(1, len(places)), step):
            numbers = _numbers(places[start : start + step])
            joined = b"".join(vectors[start : start + step])
            await link.ask([frames.ADD, 0, _name(owner), space, numbers, joined])

    def ahead(self, question: str) -> None:
        with suppress(DeviceFault):
            self._child.running.send([frames.AHEAD, 0, question[: limits.EMBED_CHARS]])

    async def search(
        self, owner: Path, question: str | bytes, reaches: Sequence[Reach], also: Sequence[int]
    ) -> Likeness:
        if isinstance(question, str):
            question = question[: limits.EMBED_CHARS]
        flat = [number for reach in reaches for number in (reach.space, reach.first, reach.last)]
        asked = [frames.SEARCH, 0, _name(owner), question, _numbers(flat), _numbers(also)]
        pages, scores, mean, spread, unknown, note = await self._child.running.ask(asked)
        return Likeness(
            frames.numbers_in(pages), frames.scores_in(scores), mean, spread,
            frames.numbers_in(unknown), note,
        )  # fmt: skip

    async def remove(self, owner: Path, space: int, places: Sequence[int] | None = None) -> None:
        numbers = None if places is None else _numbers(places)
        await self._child.running.ask([frames.REMOVE, 0, _name(owner), space, numbers])

    async def renew(self, owner: Path) -> None:
        """DeviceFault: the files are as they were, or there are none."""
        await self._child.running.ask([frames.RENEW, 0, _name(owner)])

    async def stored(self, owner: Path, space: int) -> int:
        [count] = await self._child.running.ask([frames.STORED, 0, _name(owner), space])
        return int(count)


def _name(owner: Path) -> bytes:
    """The child has another working directory."""
    return os.fsencode(owner.absolute())


def _numbers(numbers: Sequence[int]) -> bytes:
    try:
        return frames.numbers_out(numbers)
    except OverflowError as error:
        raise SyscallError(Errno.EINVAL, "a space or a place is below 0 or over 64 bits") from error
