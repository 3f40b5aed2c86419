# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Converts a GGUF file to Q8_0, so that the first answer does not wait for llama.cpp.

The result has the same bits as llama.cpp's: blocks of 32 weights with a scale of their largest
magnitude / 127 (quantize_row_q8_0_ref of ggml). As there, tensors of one dimension stay as they
are, and every other one is converted; only files of a few simple types are.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import DeviceFault

from .gguf_file import Source, Tensor, Value, parse
from .quantisation import FILE_TYPES

Floats = NDArray[np.float32]
WANTED = "Q8_0"  # the type of converted files
_WEIGHTS = 32  # in a block
_Q8_0, _F32, _F16, _Q4_0, _Q4_1, _BF16 = 8, 0, 1, 2, 3, 30  # enum ggml_type
_BLOCKS: dict[int, tuple[int, Any]] = {  # weights in a block and its layout, by type
    _F32: (1, np.dtype("<f4")),
    _F16: (1, np.dtype("<f2")),
    _BF16: (1, np.dtype("<u2")),
    _Q4_0: (32, np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])),
    _Q4_1: (32, np.dtype([("scale", "<f2"), ("least", "<f2"), ("pairs", "u1", 16)])),
    _Q8_0: (32, np.dtype([("scale", "<f2"), ("weights", "i1", 32)])),
}
_ALIGNMENT = 32  # of tensors in a file without general.alignment
_FILE_TYPE = "general.file_type"
_STEP_WEIGHTS = 1 << 16  # converted at once: they fit the cache of a processor
_UINT32 = 4  # type of a key's value


class Q8File:
    """A file and the layout of its conversion. Raises EINVAL for a bad header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            source = Source(path, file)
            self._keys, self._tensors = parse(source)
            self._header = bytes(source.buffer[: source.at])
            self._end = source.at
        found = self._keys.get("general.alignment")
        self._alignment = int(found.value) if found and isinstance(found.value, int) else _ALIGNMENT
        self._begin = self._aligned(self._end)
        self._sizes = [_bytes(tensor, _converted(tensor)) for tensor in self._tensors]

    @property
    def convertible(self) -> bool:
        """Whether all of its tensors have a type that is converted here."""
        file_type = self._keys.get(_FILE_TYPE)
        return (
            file_type is not None
            and file_type.kind == _UINT32
            and all(
                tensor.kind in _BLOCKS and tensor.dims[0] % _WEIGHTS == 0
                for tensor in self._tensors
                if len(tensor.dims) > 1
            )
            and all(tensor.kind == _F32 for tensor in self._tensors if len(tensor.dims) == 1)
        )

    @property
    def result_bytes(self) -> int:
        """The size of the converted file."""
        return self._begin + sum(map(self._aligned, self._sizes))

    def convert(self, target: BinaryIO, report: Callable[[float], None]) -> None:
        """Write the converted file; `report` gets the progress, 0 to 1."""
        target.write(self._converted_header())
        target.write(bytes(self._begin - self._end))
        with self.path.open("rb") as file:
            for number, (tensor, size) in enumerate(zip(self._tensors, self._sizes, strict=True)):
                file.seek(self._begin + tensor.data_offset)
                for part in _parts(file, tensor):
                    target.write(part)
                target.write(bytes(self._aligned(size) - size))
                report((number + 1) / len(self._tensors))

    def data(self) -> Iterator[tuple[Tensor, bytes]]:
        """Each tensor and its data as it is."""
        with self.path.open("rb") as file:
            for tensor in self._tensors:
                file.seek(self._begin + tensor.data_offset)
                yield tensor, file.read(_bytes(tensor, tensor.kind))

    def _converted_header(self) -> bytes:
        header = bytearray(self._header)
        _set_file_type(header, self._keys[_FILE_TYPE])
        offset = 0
        for tensor, size in zip(self._tensors, self._sizes, strict=True):
            # The type and the offset are the last fields of an entry.
            end = tensor.at + 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.dims)
            struct.pack_into("<IQ", header, end, _converted(tensor), offset)
            offset += self._aligned(size)
        return bytes(header)

    def _aligned(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment


@dataclass(frozen=True, slots=True)
class Q8Conversion:
    """The conversion of a file."""

    file: Q8File
    report: Callable[[float], None]

    @property
    def result_bytes(self) -> int:
        return self.file.result_bytes

    def write(self, target: Path) -> None:
        """Write the converted file. DeviceFault with the reason."""
        try:
            with target.open("wb") as file:
                self.file.convert(file, self.report)
        except OSError as error:
            message = f"cannot convert {self.file.path} to {WANTED}: {error}"
            raise DeviceFault(message) from error


def conversion(source: Path, wanted: str, report: Callable[[float], None]) -> Q8Conversion | None:
    """The conversion of a file to `wanted`; None: there is none here."""
    if wanted != WANTED:
        return None
    file = Q8File(source)
    return Q8Conversion(file, report) if file.convertible else None


def _set_file_type(header: bytearray, value: Value) -> None:
    struct.pack_into("<I", header, value.at + 4, FILE_TYPES[WANTED])  # after the type of the value


def _converted(tensor: Tensor) -> int:
    """The type of a tensor in the result."""
    return _Q8_0 if len(tensor.dims) > 1 else tensor.kind


def _count(tensor: Tensor) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _bytes(tensor: Tensor, kind: int) -> int:
    weights, layout = _BLOCKS.get(kind, (1, np.dtype("<f4")))
    size: int = _count(tensor) // weights * layout.itemsize
    return size


def _parts(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    """The converted data of a tensor, whose data begins at the position of the file."""
    if _converted(tensor) == tensor.kind:
        yield file.read(_bytes(tensor, tensor.kind))
        return
    weights, layout = _BLOCKS[tensor.kind]
    left = _count(tensor)
    while left:
        count = min(left, _STEP_WEIGHTS)
        data = file.read(count // weights * layout.itemsize)
        yield quantised(_floats(np.frombuffer(data, layout), tensor.kind)).tobytes()
        left -= count


def _floats(blocks: "NDArray[np.void]", kind: int) -> Floats:
    """The weights of some blocks."""
    if kind == _F32:
        return blocks.astype(np.float32)
    if kind == _F16:
        return blocks.astype(np.float32)
    if kind == _BF16:
        return (blocks.astype(np.uint32) << 16).view(np.float32)
    pairs = blocks["pairs"]
    numbers = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]
    # The product is exact, so this rounds once, as a fused multiply-add does.
    if kind == _Q4_0:
        values = (numbers - 8) * scale
    else:
        values = numbers * scale + blocks["least"].astype(np.float32)[:, None]
    return values.reshape(-1)


def quantised(weights: Floats) -> "NDArray[np.void]":
    """Blocks of Q8_0."""
    rows = weights.reshape(-1, _WEIGHTS)
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = rows * inverse[:, None]
    whole = np.rint(scaled)
    # Halves are rounded away from zero, as roundf does.
    halves = np.abs(scaled - whole) == 0.5
    whole[halves] = np.trunc(scaled[halves]) + np.copysign(np.float32(1), scaled[halves])
    blocks: NDArray[np.void] = np.empty(len(rows), _BLOCKS[_Q8_0][1])
    blocks["scale"], blocks["weights"] = scale.astype(np.float16), whole.astype(np.int8)
    return blocks
