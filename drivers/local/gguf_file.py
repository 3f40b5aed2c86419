"""Parses the bytes of a GGUF header into keys and tensors. Checks the syntax only.

Every count and length is checked against the rest of the file and against limits.py before any
memory is allocated for it; long arrays are skipped. An error has the byte offset. Every `at` is an
offset in the file.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError, descriptors_exhausted

_CHUNK_BYTES = 1024 * 1024
_NAME_BYTES = 63  # of a tensor: ggml reserves 64 with the terminating zero
_NUMBERS_MAX = 512  # items of an array that is stored: one for each block
U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
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
class GgufArray:
    """An array, whose items are not parsed unless it is short and numeric."""

    kind: int  # type of its items
    count: int  # of its items
    numbers: tuple[float, ...]  # the items of a short numeric array, else empty
    raw: tuple[int, int]  # the byte range of its items in the file


class Source:
    """A reader of the file's beginning, which reads on demand. `at`: where it goes on."""

    __slots__ = ("_file", "at", "buffer", "path", "size")

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self.buffer = bytearray()
        self.at = 0
        self.size = file.seek(0, 2)
        file.seek(0)

    def refuse(self, what: str, at: int | None = None) -> NoReturn:
        """Raises EINVAL. `at`: where the file is wrong."""
        where = "" if at is None else f" at byte {at}"
        raise SyscallError(
            Errno.EINVAL,
            f"{self.path.name} is not a usable GGUF model: {what}{where}",
            "download the file again and compare its checksum with the publisher's",
        )

    def consume(self, count: int, what: str) -> int:
        """Read the next `count` bytes and go on after them; their offset, in buffer and file.

        Raises EINVAL when the file or the limit of a header ends before. `what`: in the message.
        """
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
        begin = self.consume(struct.calcsize(form), what)
        value: int = struct.unpack_from(form, self.buffer, begin)[0]
        return value

    def text(self, what: str, most: int = limits.GGUF_STRING_BYTES) -> bytes:
        """Read a length-prefixed string."""
        begin = self.at
        length = self.number("<Q", f"the length of {what}")
        if length > most:
            self.refuse(f"{what} has {length} bytes, at most {most} are allowed", begin)
        start = self.consume(length, what)
        return bytes(self.buffer[start : start + length])


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a key."""

    kind: int  # its type, a key of TYPE_NAMES
    value: Scalar | GgufArray
    at: int  # where it begins


@dataclass(frozen=True, slots=True)
class Tensor:
    """The entry of a tensor in the header."""

    name: str
    dims: tuple[int, ...]
    kind: int  # its ggml type
    data_offset: int  # of its data, from the beginning of all tensors' data
    at: int  # where the entry begins


def load(path: Path) -> tuple[Source, dict[str, Value], list[Tensor]]:
    """The header of a file, and its keys and tensors. EINVAL; EAGAIN: no free descriptor."""
    try:
        with path.open("rb") as file:
            source = Source(path, file)
            return source, *parse(source)
    except OSError as error:
        unreadable = SyscallError(Errno.EINVAL, f"cannot read {path}: {error.strerror}")
        raise descriptors_exhausted(error) or unreadable from error


def parse(source: Source) -> tuple[dict[str, Value], list[Tensor]]:
    """Parse all keys and tensors of the header."""
    magic = source.consume(4, "the magic")
    found = bytes(source.buffer[magic : magic + 4])
    if found != b"GGUF":
        source.refuse(f"it begins with {found!r}, not with b'GGUF'", 0)
    version = source.number("<I", "the version")
    if version not in (2, 3):
        source.refuse(f"version {version} is not supported; 2 and 3 are", 4)
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
            source.refuse(f"key {index} ({name!r}) is empty or used twice", at)
        keys[name] = _value(source, name)
    return keys, [_tensor(source, index) for index in range(tensor_count)]


def _value(source: Source, name: str) -> Value:
    at = source.at
    kind = source.number("<I", f"the type of {name}")
    if kind == STRING:
        text = source.text(name)
        # C stops at a zero byte: gguf.py must check the same text that llama.cpp uses.
        return Value(kind, text.split(b"\0")[0].decode("utf-8", "replace"), at)
    if kind == ARRAY:
        return Value(kind, _array(source, name), at)
    if kind not in _SCALARS:
        source.refuse(f"{name} has unknown type {kind}", at)
    value = source.number(_SCALARS[kind], name)
    if kind == BOOL and value not in (0, 1):
        source.refuse(f"{name} is a bool with value {value}", at)
    return Value(kind, value, at)


def _array(source: Source, name: str) -> GgufArray:
    at = source.at
    kind = source.number("<I", f"the item type of {name}")
    count = source.number("<Q", f"the length of {name}")
    if kind not in _SCALARS and kind != STRING:
        what = "nested array" if kind == ARRAY else f"array of unknown type {kind}"
        source.refuse(f"{name} is a {what}", at)
    if count > limits.GGUF_ARRAY_ITEMS:
        most = limits.GGUF_ARRAY_ITEMS
        source.refuse(f"{name} has {count} items, at most {most} are allowed", at)
    begin = source.at
    numbers: tuple[float, ...] = ()
    if kind == STRING:
        _skip_strings(source, name, count)
    else:
        start = source.consume(count * struct.calcsize(_SCALARS[kind]), name)
        if count <= _NUMBERS_MAX:
            form = f"<{count}{_SCALARS[kind][1]}"
            numbers = struct.unpack_from(form, source.buffer, start)
    return GgufArray(kind, count, numbers, (begin, source.at))


def _skip_strings(source: Source, name: str, count: int) -> None:
    """Skip `count` strings. The default model has 100,000, so the loop is optimised."""
    length_of = struct.Struct("<Q").unpack_from
    most, prefix = limits.GGUF_STRING_BYTES, 8
    for index in range(count):
        at = source.at
        if len(source.buffer) < at + prefix:
            source.consume(prefix, f"the length of {name}[{index}]")
        (length,) = length_of(source.buffer, at)
        if length > most:
            source.refuse(f"{name}[{index}] has {length} bytes, at most {most} are allowed", at)
        source.at = at + prefix
        if len(source.buffer) < source.at + length:
            source.consume(length, f"{name}[{index}]")
        source.at = at + prefix + length


def _tensor(source: Source, index: int) -> Tensor:
    at = source.at
    name = source.text(f"the name of tensor {index}", _NAME_BYTES).decode("utf-8", "replace")
    rank = source.number("<I", f"the rank of {name}")
    if not 1 <= rank <= 4:
        source.refuse(f"tensor {name} has {rank} dimensions; 1 to 4 are allowed", at)
    dims = tuple(source.number("<Q", f"the shape of {name}") for _ in range(rank))
    kind = source.number("<I", f"the type of {name}")
    data_offset = source.number("<Q", f"the offset of {name}")
    return Tensor(name, dims, kind, data_offset, at)
