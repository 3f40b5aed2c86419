"""The bytes of a GGUF header as keys and tensors: only the form is judged here, not the sense.

Every count and length is checked against what is left of the file and against limits.py before
anything is read or built for it; arrays are passed over. A refusal names the byte.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError

_CHUNK_BYTES = 1024 * 1024
_NAME_BYTES = 63  # of a tensor: ggml keeps 64 with the final zero
_NUMBERS_MAX = 512  # items of an array that is kept: one for each block
STRING, ARRAY, BOOL = 8, 9, 7
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
TYPE_NAMES = {
    0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "string",
    9: "array", 10: "u64", 11: "i64", 12: "f64",
}  # fmt: skip

Scalar = int | float | str


@dataclass(frozen=True, slots=True)
class Array:
    """An array that was passed over. `numbers` holds those of a short numeric one."""

    kind: int
    count: int
    numbers: tuple[float, ...]
    raw: tuple[int, int]  # bytes of the file


class Source:
    """The file's beginning, read as far as it is asked for."""

    __slots__ = ("_file", "at", "buffer", "path", "size")

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self.buffer = bytearray()
        self.at = 0
        self.size = file.seek(0, 2)
        file.seek(0)

    def refuse(self, what: str, at: int | None = None) -> NoReturn:
        where = "" if at is None else f" at byte {at}"
        raise SyscallError(
            Errno.EINVAL,
            f"{self.path.name} is not a usable GGUF model: {what}{where}",
            "get the file again and compare its checksum with the publisher's",
        )

    def need(self, count: int, what: str) -> int:
        """Where the next `count` bytes begin in the buffer; they are there."""
        begin, end = self.at, self.at + count
        if end > self.size:
            left = self.size - begin
            self.refuse(f"{what} needs {count} bytes, the file ends after {left}", begin)
        if end > limits.GGUF_HEADER_BYTES:
            self.refuse(f"the header is longer than {limits.GGUF_HEADER_BYTES} bytes", begin)
        while len(self.buffer) < end:
            more = self._file.read(max(_CHUNK_BYTES, end - len(self.buffer)))
            if not more:
                self.refuse(f"the file became shorter while {what} was read", begin)
            self.buffer += more
        self.at = end
        return begin

    def number(self, form: str, what: str) -> int:
        begin = self.need(struct.calcsize(form), what)
        value: int = struct.unpack_from(form, self.buffer, begin)[0]
        return value

    def text(self, what: str, most: int = limits.GGUF_STRING_BYTES) -> bytes:
        """A string with its length before it."""
        begin = self.at
        length = self.number("<Q", f"the length of {what}")
        if length > most:
            self.refuse(f"{what} announces {length} bytes, {most} are allowed", begin)
        start = self.need(length, what)
        return bytes(self.buffer[start : start + length])


@dataclass(frozen=True, slots=True)
class Value:
    kind: int
    value: Scalar | Array
    at: int


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dims: tuple[int, ...]
    kind: int
    offset: int
    at: int


def parse(source: Source) -> tuple[dict[str, Value], list[Tensor]]:
    """All keys and all tensors of the header."""
    magic = source.need(4, "the magic")
    found = bytes(source.buffer[magic : magic + 4])
    if found != b"GGUF":
        source.refuse(f"it begins with {found!r}, not with b'GGUF'", 0)
    version = source.number("<I", "the version")
    if version not in (2, 3):
        source.refuse(f"version {version} is neither 2 nor 3", 4)
    tensor_count = source.number("<Q", "the tensor count")
    key_count = source.number("<Q", "the key count")
    if not 0 < tensor_count <= limits.GGUF_TENSORS:
        source.refuse(f"{tensor_count} tensors, 1 to {limits.GGUF_TENSORS} are allowed", 8)
    if key_count > limits.GGUF_KEYS:
        source.refuse(f"{key_count} keys, at most {limits.GGUF_KEYS} are allowed", 16)
    keys: dict[str, Value] = {}
    for index in range(key_count):
        at = source.at
        name = source.text(f"key {index}").decode("utf-8", "backslashreplace")
        if not name or name in keys:
            source.refuse(f"key {index} ({name!r}) is empty or there twice", at)
        keys[name] = _value(source, name)
    return keys, [_tensor(source, index) for index in range(tensor_count)]


def _value(source: Source, name: str) -> Value:
    at = source.at
    kind = source.number("<I", f"the type of {name}")
    if kind == STRING:
        text = source.text(name)
        # What follows a zero is not seen by C: both sides must read the same text.
        return Value(kind, text.split(b"\0")[0].decode("utf-8", "replace"), at)
    if kind == ARRAY:
        return Value(kind, _array(source, name), at)
    if kind not in _SCALARS:
        source.refuse(f"{name} has the unknown type {kind}", at)
    value = source.number(_SCALARS[kind], name)
    if kind == BOOL and value not in (0, 1):
        source.refuse(f"{name} is a bool of value {value}", at)
    return Value(kind, value, at)


def _array(source: Source, name: str) -> Array:
    at = source.at
    kind = source.number("<I", f"the item type of {name}")
    count = source.number("<Q", f"the length of {name}")
    if kind not in _SCALARS and kind != STRING:
        what = "nested array" if kind == ARRAY else f"array of the unknown type {kind}"
        source.refuse(f"{name} is a {what}", at)
    if count > limits.GGUF_ARRAY_ITEMS:
        most = limits.GGUF_ARRAY_ITEMS
        source.refuse(f"{name} announces {count} items, {most} are allowed", at)
    begin = source.at
    numbers: tuple[float, ...] = ()
    if kind == STRING:
        _skip_strings(source, name, count)
    else:
        start = source.need(count * struct.calcsize(_SCALARS[kind]), name)
        if count <= _NUMBERS_MAX:
            form = f"<{count}{_SCALARS[kind][1]}"
            numbers = struct.unpack_from(form, source.buffer, start)
    return Array(kind, count, numbers, (begin, source.at))


def _skip_strings(source: Source, name: str, count: int) -> None:
    """Pass over `count` strings; 100,000 of them in the default model, so the loop is bare."""
    length_of = struct.Struct("<Q").unpack_from
    most, bare = limits.GGUF_STRING_BYTES, 8
    for index in range(count):
        at = source.at
        if len(source.buffer) < at + bare:
            source.need(bare, f"the length of {name}[{index}]")
        (length,) = length_of(source.buffer, at)
        if length > most:
            source.refuse(f"{name}[{index}] announces {length} bytes, {most} are allowed", at)
        source.at = at + bare
        if len(source.buffer) < source.at + length:
            source.need(length, f"{name}[{index}]")
        source.at = at + bare + length


def _tensor(source: Source, index: int) -> Tensor:
    at = source.at
    name = source.text(f"the name of tensor {index}", _NAME_BYTES).decode("utf-8", "replace")
    rank = source.number("<I", f"the rank of {name}")
    if not 1 <= rank <= 4:
        source.refuse(f"tensor {name} has {rank} dimensions, 1 to 4 are allowed", at)
    dims = tuple(source.number("<Q", f"the shape of {name}") for _ in range(rank))
    kind = source.number("<I", f"the type of {name}")
    offset = source.number("<Q", f"the offset of {name}")
    return Tensor(name, dims, kind, offset, at)
