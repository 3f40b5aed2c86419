"""The frames queued for the main thread, and the requests whose caller still waits."""

from queue import SimpleQueue

from llmasos.drivers.frames import Frame

from .frames import EMBED, FORGET, SEARCH


class RequestQueue:
    """Filled by the reader thread; any thread may query it."""

    def __init__(self) -> None:
        self.frames: SimpleQueue[Frame] = SimpleQueue()
        self._waiting: set[int] = set()  # numbers of EMBED and SEARCH requests

    def put(self, frame: Frame) -> None:
        if frame[0] == FORGET:
            self._waiting.discard(frame[1])
            return
        if frame[0] in (EMBED, SEARCH):
            self._waiting.add(frame[1])
        self.frames.put(frame)

    def is_waiting(self, number: int) -> bool:
        """Whether the caller of this EMBED or SEARCH request still waits for the answer."""
        return number in self._waiting

    def answered(self, number: int) -> None:
        self._waiting.discard(number)
