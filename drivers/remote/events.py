"""Splits the bytes of an answer into events: server-sent events, or one JSON document.

Some endpoints do not stream even when requested, and errors are often one document. Any other
format, or too much data, raises EndpointFailure.
"""

import re
from collections.abc import Iterator

from llmasos.kernel.abi import limits

from .failure import EndpointFailure

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a \r at the end may be the first half of \r\n
_FIELD = re.compile(rb"[A-Za-z][A-Za-z_-]{0,63}")  # field name of a line


class EventStream:
    """The parser of one answer."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []  # data lines of the current event
        self._size = 0  # bytes of the current event
        self._bytes = 0  # of the answer
        self.document: bool | None = None  # one JSON document; None: not known yet

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the completed events. EndpointFailure: not events, or too much data."""
        self._bytes += len(piece)
        if self._bytes > limits.REMOTE_ANSWER_BYTES:
            raise EndpointFailure(f"an answer of more than {limits.REMOTE_ANSWER_BYTES} bytes")
        self._buffer += piece
        if self.document is None:
            self._detect()
        if self.document:
            if len(self._buffer) > limits.REMOTE_BODY_BYTES:
                raise EndpointFailure(f"an answer of more than {limits.REMOTE_BODY_BYTES} bytes")
        elif self.document is not None:
            yield from self._lines()

    def end(self) -> Iterator[bytes]:
        """The data of the last event, at the end of the answer."""
        if self.document:
            yield bytes(self._buffer)
        elif self.document is not None:
            self._buffer += b"\n\n"
            yield from self._lines()

    def _detect(self) -> None:
        """Set `document` by the first byte that is not a space."""
        if len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer):
            return
        begin = bytes(self._buffer.removeprefix(_BOM).lstrip())
        if begin:
            self.document = begin[:1] in (b"{", b"[")
            self._buffer[:] = begin

    def _lines(self) -> Iterator[bytes]:
        start = 0
        try:
            while (found := _LINE_END.search(self._buffer, start)) is not None:
                line = bytes(self._buffer[start : found.start()])
                start = found.end()
                if line:
                    self._add(line)
                elif self._data:
                    event = b"\n".join(self._data)
                    self._data, self._size = [], 0
                    yield event
        finally:
            del self._buffer[:start]
        self._check_size(len(self._buffer))

    def _add(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(line)
            self._check_size(self._size)
        elif name and not _FIELD.fullmatch(name):
            raise EndpointFailure(f"not a stream of events: {line[:60]!r}")

    def _check_size(self, size: int) -> None:
        if size > limits.REMOTE_LINE_BYTES:
            raise EndpointFailure(f"a line of more than {limits.REMOTE_LINE_BYTES} bytes")
