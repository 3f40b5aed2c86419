"""`llmasos mem export`: all pages of a process as JSON lines. A file is there whole, or not."""

import os
import sys
from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from llmasos.kernel.errors import Errno, SyscallError

from . import exits
from .door import connect
from .mem import count, walk
from .show import document, note, packed


def export(arguments: Namespace) -> int:
    if not arguments.file:
        _export(arguments.pid, sys.stdout)
        return exits.OK
    path = Path(arguments.file)
    with _written(path, force=arguments.force) as file:
        pages = _export(arguments.pid, file)
    if arguments.json:
        document({"pid": arguments.pid, "file": str(path), "pages": pages})
    else:
        note(f"{count(pages, 'page')} of process {arguments.pid} are in {path}")
    return exits.OK


def _export(pid: int, file: TextIO) -> int:
    pages = 0
    with connect() as line:
        for page in walk(line, pid):
            file.write(f"{packed(page)}\n")
            pages += 1
    return pages


@contextmanager
def _written(path: Path, *, force: bool) -> Generator[TextIO]:
    """A new file that only its owner reads; it takes its name when it is complete. EEXIST."""
    _free(path, force=force)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        draft.unlink(missing_ok=True)  # of a process that was killed and had our number
        descriptor = os.open(draft, flags, 0o600)
    except OSError as error:
        errno = Errno.ENOENT if isinstance(error, FileNotFoundError) else Errno.EINVAL
        hint = "give a path in a folder that you may write to"
        raise SyscallError(errno, f"{path}: {error.strerror}", hint) from error
    with open(descriptor, "w", encoding="utf-8") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _free(path, force=force)
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _free(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise SyscallError(Errno.EINVAL, f"{path} is a folder", "give the path of a file")
    if os.path.lexists(path) and not force:
        raise SyscallError(Errno.EEXIST, f"{path} is there already", "--force overwrites it")
