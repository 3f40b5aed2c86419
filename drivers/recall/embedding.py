"""Texts that wait to become vectors, cut into small pieces for several threads.

A piece is small so that whoever does not wait any more is soon left. Questions are embedded by
the thread that searches, so they wait for none of these. Child process only.
"""

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

from llmasos.drivers.door import Door
from llmasos.drivers.frames import ANSWER
from llmasos.kernel.errors import Errno, SyscallError

from .arrivals import Arrivals
from .encoder import Encoder

_PIECE_TEXTS = 8  # at once: fewer are slower, more are not faster


class Request:
    """Texts of one frame, until all are vectors."""

    def __init__(self, number: int, texts: list[str]) -> None:
        self.number, self.texts = number, texts
        self.pieces = range(0, len(texts), _PIECE_TEXTS)
        self._vectors = [b""] * len(self.pieces)
        self._left = len(self.pieces)
        self._lock = threading.Lock()

    def done(self, piece: int, vectors: bytes) -> bytes | None:
        """All vectors, when this piece was the last that was missing."""
        with self._lock:
            self._vectors[piece] = vectors
            self._left -= 1
            return None if self._left else b"".join(self._vectors)


class Embedding:
    """The pieces, and the threads' work on them."""

    def __init__(self, encoder: Encoder | SyscallError, door: Door, arrivals: Arrivals) -> None:
        self._encoder, self._door, self._arrivals = encoder, door, arrivals
        self._pieces: SimpleQueue[tuple[Request, int]] = SimpleQueue()
        self._ahead = "", b""  # a question, and its vector

    def take(self, number: int, texts: list[str]) -> None:
        if isinstance(self._encoder, SyscallError):
            self._arrivals.answered(number)
            self._door.refuse(number, self._encoder)
            return
        request = Request(number, texts)
        for piece in range(len(request.pieces)):
            self._pieces.put((request, piece))

    def work(self, rest: Callable[[], None]) -> None:
        """One thread's; `rest` is called between two pieces."""
        while True:
            request, piece = self._pieces.get()
            rest()
            if not self._arrivals.waits(request.number) or isinstance(self._encoder, SyscallError):
                continue
            start = request.pieces[piece]
            try:
                vectors = self._encoder.encode(request.texts[start : start + _PIECE_TEXTS])
            except SyscallError as error:
                self._arrivals.answered(request.number)
                self._door.refuse(request.number, error)
                continue
            joined = request.done(piece, vectors.tobytes())
            if joined is not None:
                self._arrivals.answered(request.number)
                self._door.send([ANSWER, request.number, joined])

    def question(self, text: str) -> bytes:
        """The vector of a question, at once. ENOTSUP: no embedder; EIO: it cannot be used."""
        (known, vector), self._ahead = self._ahead, ("", b"")
        if vector and known == text:
            return vector
        if isinstance(self._encoder, SyscallError):
            raise self._encoder
        return self._encoder.encode([text]).tobytes()

    def ahead(self, text: str) -> None:
        """A search for it will come: embed it while the kernel looks for its words."""
        with contextlib.suppress(SyscallError):  # the search will say so
            self._ahead = text, self.question(text)


def missing() -> SyscallError:
    words = "recall was mounted without an embedder"
    return SyscallError(Errno.ENOTSUP, words, "give it vectors, or mount it with embedder=builtin")
