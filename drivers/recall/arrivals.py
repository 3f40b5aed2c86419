"""Frames that wait for the main thread, and the requests that somebody still waits for."""

from queue import SimpleQueue

from llmasos.drivers.frames import Frame

from .frames import EMBED, FORGET, SEARCH


class Arrivals:
    """Filled by the reader; any thread may ask."""

    def __init__(self) -> None:
        self.work: SimpleQueue[Frame] = SimpleQueue()
        self._waiting: set[int] = set()

    def take(self, frame: Frame) -> None:
        if frame[0] == FORGET:
            self._waiting.discard(frame[1])
            return
        if frame[0] in (EMBED, SEARCH):
            self._waiting.add(frame[1])
        self.work.put(frame)

    def waits(self, number: int) -> bool:
        """Of a text or a search: it is worth working on."""
        return number in self._waiting

    def answered(self, number: int) -> None:
        self._waiting.discard(number)
