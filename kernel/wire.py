"""Frames: a 4-byte big-endian length, then one msgpack array. The only host of msgpack.

    client to kernel   [CALL, id, syscall, {fields}]      [CANCEL, id]
    kernel to client   [ITEM, id, {fields}]*  then  [REPLY, id, {fields}]  or  [ERROR, id, {...}]

Every length is capped before anything is allocated for it, and a whole frame is at hand before it
is decoded: msgpack's streaming Unpacker trusts announced lengths and is never used. An error with
id 0 answers a frame whose id could not be read.
"""

import dataclasses
import threading
import types
import typing
from collections.abc import Iterator
from enum import Enum
from operator import attrgetter
from typing import Any, TypeVar, cast

import msgpack

from . import limits
from .errors import Errno, SyscallError, TooBig

CALL, CANCEL, REPLY, ITEM, ERROR = range(5)
T = TypeVar("T")
HEADER = 4


# msgpack has no types of its own: the one cast.
_msgpack = cast("Any", msgpack)


class ProtocolError(SyscallError):
    """A frame that cannot be understood. `fatal`: the stream itself is lost."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(Errno.EPROTO, message, "see kernel/wire.py for the form of a frame")
        self.fatal = fatal


def _plain(value: object) -> object:
    """Dataclasses as maps; msgpack asks for whatever it does not know."""
    kind = type(value)
    reader = _readers.get(kind)
    if reader is None:
        if not dataclasses.is_dataclass(kind):
            raise TypeError(f"{kind.__name__} cannot travel in a frame")
        names = tuple(f.name for f in dataclasses.fields(kind))
        reader = _readers[kind] = (names, attrgetter(*names, "__class__", "__class__"))
    names, get = reader
    return dict(zip(names, get(value), strict=False))


# Class -> field names and one C call that reads them all; `__class__` twice keeps it a tuple.
_readers: dict[type, tuple[tuple[str, ...], Any]] = {}


class _Idle(threading.local):
    """A packer that this thread may take: two calls in the midst of one would mix their frames."""

    packer: Any = None


_idle = _Idle()


def _packed(message: list[Any]) -> bytes:
    # Taken out meanwhile: a signal handler may send, too. One that failed is not used again.
    packer, _idle.packer = _idle.packer, None
    packer = packer or _msgpack.Packer(default=_plain, autoreset=True)
    body: bytes = packer.pack(message)
    _idle.packer = packer
    return body


def call(number: int, name: str, request: object) -> bytes:
    """The frame of a call. TooBig says what to do with a text that is over a frame."""
    hint = "say it in parts; `llmasos mem map PID FILE` takes a whole file"
    return pack([CALL, number, name, request], hint=hint)


def pack(
    message: list[Any], cap: int = limits.FRAME_BYTES, *, hint: str = "ask for less at once"
) -> bytes:
    """One frame, header included. Raises TooBig when it is over `cap` bytes."""
    try:
        body = _packed(message)
    except UnicodeEncodeError as error:
        raise ProtocolError("a text holds a lone surrogate: it is not valid Unicode") from error
    if len(body) > cap:
        raise TooBig(f"the call or its reply has {len(body)} bytes; {cap} are allowed", hint)
    return len(body).to_bytes(HEADER, "big") + body


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a map names a key twice")
    return out


def _no_ext(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code}")


def unpack(body: bytes, array_items: int = limits.ARRAY_ITEMS) -> list[Any]:
    """The message of a frame's body. Raises ProtocolError; never allocates beyond the caps.

    A client, who trusts its kernel, reads with REPLY_ITEMS.
    """
    try:
        message: list[Any] = _msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_ext,
            max_array_len=array_items,
            max_map_len=limits.MAP_ITEMS,
            max_ext_len=0,
        )
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a text is not valid UTF-8 at its byte {error.start}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"not a msgpack frame: {error or type(error).__name__}") from error
    if type(message) is not list or not message:
        raise ProtocolError("a frame is an array that begins with its kind")
    _measure(message)
    return message


def _measure(frame: list[Any]) -> None:
    """Caps on depth and on the number of containers: a megabyte of empty maps costs 0.4 s."""
    left = limits.FRAME_ITEMS
    level: list[Any] = [frame]
    for _ in range(limits.FRAME_DEPTH):
        below: list[Any] = []
        for container in level:
            inside = cast("Any", container.values() if type(container) is dict else container)
            below += [value for value in inside if type(value) in (dict, list)]
        left -= len(below)
        if left < 0:
            raise ProtocolError(f"a frame holds more than {limits.FRAME_ITEMS} containers")
        if not below:
            return
        level = below
    raise ProtocolError(f"a frame is nested deeper than {limits.FRAME_DEPTH}")


class Frames:
    """Cuts a byte stream into bodies."""

    __slots__ = ("_buffer", "_cap")

    def __init__(self, cap: int = limits.FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._cap = cap

    @property
    def partial(self) -> bool:
        """A frame has begun and is not whole."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are whole now. Raises a fatal ProtocolError on a length over the cap."""
        buffer = self._buffer
        if not buffer and len(data) - HEADER == int.from_bytes(data[:HEADER], "big") <= self._cap:
            yield data[HEADER:]  # nearly every call: one whole frame, nothing to keep
            return
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER:
                length = int.from_bytes(buffer[start : start + HEADER], "big")
                if length > self._cap:
                    words = f"a frame of {length} bytes is over {self._cap}"
                    raise ProtocolError(words, fatal=True)
                end = start + HEADER + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[start + HEADER : end])
                start = end
                yield body
        finally:
            del buffer[:start]


# --- values out of maps: the receiving side trusts the kernel, so nothing is checked here --------
_known: dict[type, dict[str, Any]] = {}


def _fields(kind: type) -> dict[str, Any]:
    """The fields of a dataclass of the table with their types."""
    known = _known.get(kind)
    if known is None:
        hints = typing.get_type_hints(kind)
        known = _known[kind] = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    return known


def build(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass of the table from a map of the wire. Unknown fields of a newer kernel drop."""
    hints = _fields(kind)
    return kind(**{k: _value(hints[k], v) for k, v in values.items() if k in hints})


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin = typing.get_origin(hint)
    if origin is list:
        (inner,) = typing.get_args(hint)
        return value if inner in (int, str) else [_value(inner, v) for v in value]
    if origin is types.UnionType or origin is typing.Union:
        chosen = next((a for a in typing.get_args(hint) if a is not type(None)), hint)
        return _value(chosen, value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    return value
