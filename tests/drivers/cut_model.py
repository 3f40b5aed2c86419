"""The embedded model with a few of its blocks: the same vocabulary, a fifth of the computation.

What it says makes no sense. It serves the tests that ask how an engine computes, not what it says.
"""

import atexit
import functools
import shutil
import struct
import tempfile
from pathlib import Path

from llmasos.drivers.local.gguf_file import Source, Tensor, parse
from llmasos.userland.daemon import EMBEDDED
from tests.drivers.default_model import MODEL

BLOCKS = (0, 1, 2, 27, 28, 29)  # with the last ones, different prompts have different answers
_ALIGNMENT = 32  # of tensors in the file; GGUF's default
_TENSOR_COUNT_AT, _TYPE_BYTES = 8, 4


@functools.cache
def folder() -> Path:
    """Programs with it on PYTHONPATH have this model in the place of the embedded one."""
    made = Path(tempfile.mkdtemp(prefix="llmasos-cut-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    _, package, file = EMBEDDED
    (made / package).mkdir()
    (made / package / "__init__.py").touch()
    _make(MODEL, made / package / file)
    return made


def path() -> Path:
    _, package, file = EMBEDDED
    return folder() / package / file


def _make(source: Path, target: Path) -> None:
    with source.open("rb") as file:
        head = Source(source, file)
        keys, tensors = parse(head)
        kept = [(name, tensor) for tensor in tensors if (name := _renamed(tensor))]
        header = bytearray(head.buffer[: tensors[0].at])
        struct.pack_into("<Q", header, _TENSOR_COUNT_AT, len(kept))
        count = keys[f"{keys['general.architecture'].value}.block_count"]
        struct.pack_into("<I", header, count.at + _TYPE_BYTES, len(BLOCKS))
        begin = _aligned(head.at)
        ends = _ends(tensors, source.stat().st_size - begin)
        data = bytearray()
        for name, tensor in kept:
            header += _info(name, tensor, len(data))
            file.seek(begin + tensor.data_offset)
            data += file.read(ends[tensor.name] - tensor.data_offset)
            data += bytes(_aligned(len(data)) - len(data))
    header += bytes(_aligned(len(header)) - len(header))
    target.write_bytes(header + data)


def _renamed(tensor: Tensor) -> str:
    """Its name among the blocks that stay; empty: it does not."""
    first, number, *rest = tensor.name.split(".")
    if first != "blk":
        return tensor.name
    kept = int(number) in BLOCKS
    return ".".join([first, str(BLOCKS.index(int(number))), *rest]) if kept else ""


def _ends(tensors: list[Tensor], size: int) -> dict[str, int]:
    """Where each tensor's data ends: where the next begins."""
    placed = sorted(tensors, key=lambda tensor: tensor.data_offset)
    begins = [tensor.data_offset for tensor in placed[1:]]
    return {tensor.name: end for tensor, end in zip(placed, [*begins, size], strict=True)}


def _info(name: str, tensor: Tensor, offset: int) -> bytes:
    coded, rank = name.encode(), len(tensor.dims)
    form = f"<Q{len(coded)}sI{rank}QIQ"
    return struct.pack(form, len(coded), coded, rank, *tensor.dims, tensor.kind, offset)


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT
