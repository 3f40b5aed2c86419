"""Frames: a 4-byte big-endian length, then one msgpack array. msgpack is imported here only.

    client to kernel   [CALL, id, syscall, {fields}]      [CANCEL, id]
    kernel to client   [ITEM, id, {fields}]*  then  [REPLY, id, {fields}]  or  [ERROR, id, {...}]

A frame from a client has at most REQUEST_BYTES, one from the kernel at most REPLY_BYTES. Every
length is checked before memory is allocated for it, and a frame is decoded only when it is
complete. The error for a refused frame has the frame's id if it can be read. An error with id 0
concerns the connection.
"""

import dataclasses
import re
import threading
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar, cast

import msgpack

from . import limits
from .errors import Denied, DeviceFault, Errno, SyscallError, TooBig

CALL, CANCEL, REPLY, ITEM, ERROR = range(5)
T = TypeVar("T")
HEADER = 4
HEAD_BYTES = 16  # of a body: the array's header, the kind and the id


# msgpack has no type annotations: the only cast.
_msgpack = cast("Any", msgpack)


class ProtocolError(SyscallError):
    """An invalid frame: EPROTO. `fatal`: the stream cannot be read any further."""

    def __init__(
        self, message: str, *, errno: Errno = Errno.EPROTO, hint: str = "", fatal: bool = False
    ) -> None:
        hint = hint or "kernel/abi/wire.py describes the format of a frame"
        SyscallError.__init__(self, errno, message, hint)
        self.fatal = fatal


class FrameTooBig(ProtocolError, TooBig):
    """A frame that exceeds the limit of its size, items or depth: E2BIG."""

    def __init__(self, message: str, *, hint: str = "", fatal: bool = False) -> None:
        hint = hint or "split it into several calls"
        ProtocolError.__init__(self, message, errno=Errno.E2BIG, hint=hint, fatal=fatal)


def _as_map(value: object) -> object:
    """A dataclass as a map. msgpack calls this for unknown types."""
    kind = type(value)
    reader = _readers.get(kind)
    if reader is None:
        if not dataclasses.is_dataclass(kind):
            raise TypeError(f"{kind.__name__} cannot be sent in a frame")
        names = tuple(f.name for f in dataclasses.fields(kind))
        reader = _readers[kind] = (names, attrgetter(*names, "__class__", "__class__"))
    names, get = reader
    return dict(zip(names, get(value), strict=False))


# Class -> field names and one C call that reads all of them. `__class__` twice: for a single field
# attrgetter would return no tuple.
_readers: dict[type, tuple[tuple[str, ...], Any]] = {}


class _Idle(threading.local):
    """The idle packer of this thread. A packer that is in use must not be shared: it would mix two
    frames."""

    packer: Any = None


_idle = _Idle()


def _packed(message: list[Any]) -> bytes:
    # Taken while in use, as a signal handler may send a frame, too. A packer that fails is dropped.
    packer, _idle.packer = _idle.packer, None
    packer = packer or _msgpack.Packer(default=_as_map, autoreset=True)
    body: bytes = packer.pack(message)
    _idle.packer = packer
    return body


def call(number: int, name: str, request: object) -> bytes:
    """The frame of a call. Raises the same error as the kernel for a frame over its limits: E2BIG
    for a request over REQUEST_BYTES or a list over ARRAY_ITEMS; EINVAL for unsupported values."""
    hint = "send less in one call; `llmasos mem map PID FILE` takes a whole file"
    frame = pack([CALL, number, name, request], limits.REQUEST_BYTES, hint=hint)
    if len(frame) > 2 * limits.MAP_ITEMS:  # a shorter frame cannot have too many items
        unpack(frame[HEADER:])
    return frame


def pack(
    message: list[Any], cap: int = limits.REPLY_BYTES, *, hint: str = "request less in one call"
) -> bytes:
    """One frame, including the header. Raises TooBig above `cap` bytes, EINVAL for values that a
    frame cannot contain."""
    try:
        body = _packed(message)
    except UnicodeEncodeError as error:
        reason = "a text is not valid Unicode: it contains a lone surrogate"
        raise SyscallError(Errno.EINVAL, reason, "replace the surrogate first") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"the call cannot be sent: {error or type(error).__name__}"
        raise SyscallError(Errno.EINVAL, reason, "send texts, numbers, lists and maps") from error
    if len(body) > cap:
        raise TooBig(f"the call or its reply has {len(body)} bytes; {cap} are allowed", hint)
    return len(body).to_bytes(HEADER, "big") + body


def pack_error(number: int, error: SyscallError) -> bytes:
    """The frame that ends a call, or a connection (0), with an error."""
    fields = {
        "errno": int(error.errno), "message": error.message[:_ERROR_CHARS],
        "hint": error.hint[:_ERROR_CHARS], "call": error.call, "pid": error.pid,
        "needs_approval": isinstance(error, Denied) and error.needs_approval,
        "engine": isinstance(error, DeviceFault),
    }  # fmt: skip
    try:
        return pack([ERROR, number, fields])
    except SyscallError:  # a text that is not valid Unicode, such as the name of a file
        escaped = {name: ascii(fields[name])[:_ERROR_CHARS] for name in ("message", "hint")}
        return pack([ERROR, number, {**fields, **escaped}])


_ERROR_CHARS = 10_000  # of a message, which may quote the request


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a map has a duplicate key")
    return out


class _ItemCounter:
    """Counts the items of a frame during decoding, and stops it when there are too many."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = limits.FRAME_ITEMS

    def array(self, items: list[Any]) -> list[Any]:
        self._count(len(items))
        return items

    def pairs(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._count(len(pairs))
        return _unique(pairs)

    def _count(self, items: int) -> None:
        self._left -= 1 + items
        if self._left < 0:
            raise FrameTooBig(f"the call has more than {limits.FRAME_ITEMS} items")


def _no_ext(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code}")


def unpack(body: bytes) -> list[Any]:
    """The message of a client's frame. Raises ProtocolError, and FrameTooBig for a frame over a
    limit. Never allocates more than the limits allow."""
    hooks: dict[str, Any] = {"object_pairs_hook": _unique}
    if len(body) > limits.FRAME_ITEMS:  # a shorter frame cannot have so many items
        counter = _ItemCounter()
        hooks = {"list_hook": counter.array, "object_pairs_hook": counter.pairs}
    message = _unpacked(
        body, max_array_len=limits.ARRAY_ITEMS, max_map_len=limits.MAP_ITEMS, **hooks
    )
    _check_depth(message)
    return message


def unpack_reply(body: bytes) -> list[Any]:
    """The message of a frame from the kernel. Its lists may have any length. ProtocolError."""
    return _unpacked(body)


def _unpacked(body: bytes, **options: Any) -> list[Any]:
    try:
        message: list[Any] = _msgpack.unpackb(
            body, raw=False, strict_map_key=True, ext_hook=_no_ext, max_ext_len=0, **options
        )
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a text is not valid UTF-8 at its byte {error.start}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _undecoded(error) from error
    if type(message) is not list or not message:
        raise ProtocolError("the frame is not an array that starts with its kind")
    return message


_LIMIT = re.compile(r"(\d+) exceeds max_(array|map)_len\((\d+)\)")


def _undecoded(error: Exception) -> ProtocolError:
    reason = str(error) or type(error).__name__
    if over := _LIMIT.search(reason):
        items, kind, most = over.groups()
        what = {"array": "list", "map": "map"}[kind]
        return FrameTooBig(f"a {what} of the call has {items} items; {most} are allowed")
    if isinstance(error, _msgpack.StackError):
        return _too_deep()
    return ProtocolError(f"not a msgpack frame: {reason}")


def call_number(head: bytes | bytearray) -> int:
    """The id of the call whose frame starts with `head`; 0 when it cannot be read."""
    unpacker = _msgpack.Unpacker(
        max_array_len=4, max_map_len=0, max_str_len=0, max_bin_len=0, max_ext_len=0
    )
    unpacker.feed(head[:HEAD_BYTES])
    try:
        items, kind, number = unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()
    except (ValueError, _msgpack.UnpackException):
        return 0
    return number if items == 4 and kind == CALL and is_number(number) else 0


def is_number(value: object) -> bool:
    """Whether this is a valid id of a call."""
    return type(value) is int and 0 < value < 2**53


_type_of = cast("Callable[[Any], object]", type)  # without narrowing the type of its argument


def _check_depth(frame: list[Any]) -> None:
    level: list[Any] = frame
    for _ in range(limits.FRAME_DEPTH):
        below: list[Any] = []
        deeper = False
        for value in level:
            kind = _type_of(value)
            if kind is dict:
                below += value.values()
                deeper = True
            elif kind is list:
                below += value
                deeper = True
        if not deeper:
            return
        level = below
    raise _too_deep()


def _too_deep() -> FrameTooBig:
    message = f"the call is nested deeper than {limits.FRAME_DEPTH} levels"
    return FrameTooBig(message, hint="send nested data as a text, for example as JSON")


class Frames:
    """Splits the byte stream of a trusted peer into bodies: of the kernel, or a child process."""

    __slots__ = ("_buffer", "_cap")

    def __init__(self, cap: int = limits.REPLY_BYTES) -> None:
        self._buffer = bytearray()
        self._cap = cap

    @property
    def partial(self) -> bool:
        """Whether an incomplete frame is buffered."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The complete bodies so far. Raises a fatal ProtocolError for a length over the cap."""
        buffer = self._buffer
        if not buffer and len(data) - HEADER == int.from_bytes(data[:HEADER], "big") <= self._cap:
            yield data[HEADER:]  # the usual case: exactly one complete frame
            return
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER:
                length = int.from_bytes(buffer[start : start + HEADER], "big")
                if length > self._cap:
                    message = f"the frame has {length} bytes; {self._cap} are allowed"
                    raise ProtocolError(message, fatal=True)
                end = start + HEADER + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[start + HEADER : end])
                start = end
                yield body
        finally:
            del buffer[:start]


# --- values from maps: the receiver trusts the kernel, so nothing is checked here ----------------
Converter = Callable[[Any], Any]
_converters: dict[type, dict[str, Converter | None]] = {}


def build(kind: type[T], values: dict[str, Any]) -> T:
    """A request or reply from a decoded map. Unknown fields, of a newer kernel, are ignored."""
    known = _converters.get(kind)
    if known is None:
        hints = typing.get_type_hints(kind)
        known = {f.name: _converter(hints[f.name]) for f in dataclasses.fields(cast("Any", kind))}
        _converters[kind] = known
    return kind(**{
        name: value if value is None or (convert := known[name]) is None else convert(value)
        for name, value in values.items()
        if name in known
    })  # fmt: skip


def _converter(hint: Any) -> Converter | None:
    """What converts a decoded value of this type, other than None. None: it stays as it is."""
    origin = typing.get_origin(hint)
    if origin is list:
        (inner,) = typing.get_args(hint)
        return None if inner in (int, str) else partial(_list, _converter(inner))
    if origin is types.UnionType or origin is typing.Union:
        return _converter(next(a for a in typing.get_args(hint) if a is not type(None)))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return partial(build, hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    return None


def _list(convert: Converter | None, values: Any) -> list[Any]:
    if convert is None:
        return list(values)
    return [None if value is None else convert(value) for value in values]
