"""The queue of texts to embed, split into small batches for several threads.

Batches are small so that work for a cancelled request stops soon. The searching thread embeds
questions itself, so they do not wait in this queue. Recall process only.
"""

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

from llmasos.drivers.child_runtime import ParentConnection
from llmasos.drivers.frames import ANSWER
from llmasos.kernel.abi.errors import Errno, SyscallError

from .encoder import Encoder
from .requests import RequestQueue

_BATCH_TEXTS = 8  # fewer are slower, more are not faster


class EmbedRequest:
    """The texts of one frame, until all are embedded."""

    def __init__(self, number: int, texts: list[str]) -> None:
        self.number, self.texts = number, texts
        self.batches = range(0, len(texts), _BATCH_TEXTS)
        self._vectors = [b""] * len(self.batches)
        self._left = len(self.batches)
        self._lock = threading.Lock()

    def done(self, batch: int, vectors: bytes) -> bytes | None:
        """Store the vectors of a batch. Returns all vectors after the last batch, else None."""
        with self._lock:
            self._vectors[batch] = vectors
            self._left -= 1
            return None if self._left else b"".join(self._vectors)


class Embedding:
    """The queue of batches, and the work of the embedding threads."""

    def __init__(
        self, encoder: Encoder | SyscallError, parent: ParentConnection, requests: RequestQueue
    ) -> None:
        self._encoder, self._parent, self._requests = encoder, parent, requests
        self._batches: SimpleQueue[tuple[EmbedRequest, int]] = SimpleQueue()
        self._prepared = "", b""  # a question, and its vector

    def put(self, number: int, texts: list[str]) -> None:
        if isinstance(self._encoder, SyscallError):
            self._requests.answered(number)
            self._parent.send_error(number, self._encoder)
            return
        request = EmbedRequest(number, texts)
        for batch in range(len(request.batches)):
            self._batches.put((request, batch))

    def work(self, between: Callable[[], None]) -> None:
        """The loop of one thread. `between` is called before each batch."""
        while True:
            request, batch = self._batches.get()
            between()
            if not self._requests.is_waiting(request.number) or isinstance(
                self._encoder, SyscallError
            ):
                continue
            start = request.batches[batch]
            try:
                vectors = self._encoder.encode(request.texts[start : start + _BATCH_TEXTS])
            except SyscallError as error:
                self._requests.answered(request.number)
                self._parent.send_error(request.number, error)
                continue
            joined = request.done(batch, vectors.tobytes())
            if joined is not None:
                self._requests.answered(request.number)
                self._parent.send([ANSWER, request.number, joined])

    def question(self, text: str) -> bytes:
        """The vector of a question. ENOTSUP: no embedder; EIO: it failed."""
        (known, vector), self._prepared = self._prepared, ("", b"")
        if vector and known == text:
            return vector
        if isinstance(self._encoder, SyscallError):
            raise self._encoder
        return self._encoder.encode([text]).tobytes()

    def prepare(self, text: str) -> None:
        """Embed a question before its search arrives, while the kernel searches its words."""
        with contextlib.suppress(SyscallError):  # the search will report the error
            self._prepared = text, self.question(text)


def missing() -> SyscallError:
    message = "recall was mounted without an embedder"
    hint = "give vectors instead of texts, or mount it with embedder=builtin"
    return SyscallError(Errno.ENOTSUP, message, hint)
