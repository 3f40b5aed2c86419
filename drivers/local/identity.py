"""What a saved context depends on: the file, the library, and the settings that change results."""

import json
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from llmasos.kernel.abi.errors import DeviceFault, os_message

from .shared_memory import ContextHeader

_READ_BYTES = 1024 * 1024
_LAYOUT = 1  # of the bytes of a saved context; increased when an engine saves them in another way
# They change no bit of a context that was computed with other values of them, or only how fast it
# is computed. `window` and what an engine adds are not among them.
_HARMLESS = frozenset({
    "path", "slots", "width", "adaptive", "chunk_s", "batch", "hang_s", "parked_bytes", "nice",
    "blocks",
})  # fmt: skip


def fingerprint(path: str) -> str:
    """Identifies the contents of a file without reading all of it. DeviceFault: it is unreadable.

    Its inode, its size and the times of its last changes, with a digest of its first megabyte.
    """
    try:
        with Path(path).open("rb") as file:
            facts, first = os.fstat(file.fileno()), file.read(_READ_BYTES)
    except OSError as error:
        raise DeviceFault(f"cannot read {path}: {os_message(error)}") from error
    known = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return blake2b(repr(known).encode() + first, digest_size=16).hexdigest()


def identity(file: str, library: str, settings: Mapping[str, object]) -> ContextHeader:
    """The header of the contexts of an engine, without what concerns one context."""
    chosen = {name: value for name, value in settings.items() if name not in _HARMLESS}
    chosen["layout"] = _LAYOUT
    digest = blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=16).hexdigest()
    return ContextHeader(file, library, digest, tokens="", count=0, size=0, checksum=0)
