"""`llmasos mem export`: all pages of a process as JSON lines. A file is written atomically."""

import os
import sys
from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits
from .connection import connect
from .mem import count, walk
from .show import json_text, note, print_json


def export(arguments: Namespace) -> int:
    if not arguments.file:
        _export(arguments.pid, sys.stdout)
        return exits.OK
    path = Path(arguments.file)
    with _atomic_file(path, force=arguments.force) as file:
        pages = _export(arguments.pid, file)
    if arguments.json:
        print_json({"pid": arguments.pid, "file": str(path), "pages": pages})
    else:
        note(f"exported {count(pages, 'page')} of process {arguments.pid} to {path}")
    return exits.OK


def _export(pid: int, file: TextIO) -> int:
    pages = 0
    with connect() as client:
        for page in walk(client, pid):
            file.write(f"{json_text(page)}\n")
            pages += 1
    return pages


@contextmanager
def _atomic_file(path: Path, *, force: bool) -> Generator[TextIO]:
    """A new file with mode 0600, renamed to `path` when it is complete. Raises EEXIST."""
    _check_target(path, force=force)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        draft.unlink(missing_ok=True)  # left by a killed process with the same pid
        descriptor = os.open(draft, flags, 0o600)
    except OSError as error:
        errno = Errno.ENOENT if isinstance(error, FileNotFoundError) else Errno.EINVAL
        hint = "give a path in a writable folder"
        raise SyscallError(errno, f"{path}: {error.strerror}", hint) from error
    with open(descriptor, "w", encoding="utf-8") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _check_target(path, force=force)
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _check_target(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise SyscallError(Errno.EINVAL, f"{path} is a folder", "give the path of a file")
    if os.path.lexists(path) and not force:
        raise SyscallError(Errno.EEXIST, f"{path} already exists", "--force overwrites it")
