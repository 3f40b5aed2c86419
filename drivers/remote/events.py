"""Server-sent events out of bytes, strictly: what is none of theirs, or too much, is refused."""

from collections.abc import Iterator

from llmasos.kernel import limits

from .trouble import Trouble

_FIELDS = (b"event", b"id", b"retry")  # allowed, and of no use here


class Events:
    """One stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []  # of the event that has begun
        self._size = 0  # bytes of it
        self._bytes = 0  # of the stream

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that are whole now. Trouble: it is no stream of events."""
        self._bytes += len(piece)
        if self._bytes > limits.REMOTE_ANSWER_BYTES:
            raise Trouble(f"an answer of more than {limits.REMOTE_ANSWER_BYTES} bytes")
        self._buffer += piece
        start = 0
        try:
            while (end := self._buffer.find(b"\n", start)) >= 0:
                line = bytes(self._buffer[start:end]).removesuffix(b"\r")
                start = end + 1
                if not line and self._data:
                    event = b"\n".join(self._data)
                    self._data, self._size = [], 0
                    yield event
                elif line:
                    self._take(line)
        finally:
            del self._buffer[:start]
        self._check_size(len(self._buffer))

    def _take(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if name == b"data" and colon:
            self._data.append(value.removeprefix(b" "))
            self._size += len(line)
            self._check_size(self._size)
        elif name and name not in _FIELDS:
            raise Trouble(f"not a stream of events: {line[:60]!r}")

    def _check_size(self, size: int) -> None:
        if size > limits.REMOTE_LINE_BYTES:
            raise Trouble(f"a line of more than {limits.REMOTE_LINE_BYTES} bytes")
