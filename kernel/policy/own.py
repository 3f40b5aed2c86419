"""The owner's own rules: one file in the configuration directory, and what it was before.

A copy of what was loaded last stands beside the databases. A file that has vanished since would
take its denies with it, so that is refused until a person says that it is meant.
"""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

from .. import limits
from ..errors import Errno, SyscallError

log = logging.getLogger(__name__)


class OwnFile:
    def __init__(self, path: Path, memory: Path | None) -> None:
        self.path = path
        self._memory = memory  # the copy; None: nothing is remembered

    @property
    def name(self) -> str:
        return self.path.name

    def read(self) -> str:
        """Its text. EINVAL when it has vanished or is not text."""
        try:
            return _text(self.path)
        except FileNotFoundError:
            if self._remembered().strip():
                words = f"{self.path} has vanished, and it had rules"
                hint = f"`cp {self._memory} {self.path}`, or `touch {self.path}` if none is meant"
                raise SyscallError(Errno.EINVAL, words, hint) from None
            return ""
        except (OSError, UnicodeDecodeError) as error:
            words = f"{self.path} cannot be read: {error}"
            raise SyscallError(Errno.EINVAL, words, "mend it, or move it away") from error

    def _remembered(self) -> bytes:
        """The copy. One that cannot be read counts as rules: nobody knows what would be lost."""
        try:
            return self._memory.read_bytes() if self._memory else b""
        except FileNotFoundError:
            return b""
        except OSError as error:
            return str(error).encode()

    def loaded(self, text: str) -> None:
        """These rules are in force now, and stay so where the copy cannot be written."""
        if self._memory is not None and text.encode() != self._remembered():
            try:
                _write(self._memory, text)
            except SyscallError as error:
                log.warning("the copy of the rules in force is old: %s", error.message)

    def write(self, text: str) -> None:
        """Replace the file, durable; the file before is kept for `undo`. ENOSPC, EIO."""
        with _faults(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = _text(self.path) if self.path.exists() else ""
            _write(self._earlier(0), before)  # first: a full disk moves nothing
            for number in range(limits.POLICY_UNDO - 1, -1, -1):
                if self._earlier(number).exists():
                    self._earlier(number).replace(self._earlier(number + 1))
            _write(self.path, text)

    def earlier(self) -> str:
        """The text before the last change. EINVAL when none is kept, or it is not text."""
        path = self._earlier(1)
        try:
            return _text(path)
        except FileNotFoundError:
            words, hint = "there is no earlier policy to go back to", "`llmasos policy list --own`"
            raise SyscallError(Errno.EINVAL, words, hint) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SyscallError(Errno.EINVAL, f"{path} cannot be read: {error}") from error

    def undone(self, text: str) -> None:
        """Put the earlier text back; the one before it is next."""
        with _faults(self.path):
            _write(self.path, text)
            for number in range(1, limits.POLICY_UNDO + 1):
                self._earlier(number).unlink(missing_ok=True)
                if self._earlier(number + 1).exists():
                    self._earlier(number + 1).replace(self._earlier(number))

    def _earlier(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _text(path: Path) -> str:
    """As it is: Python's own reading takes a lone carriage return for a line's end."""
    return path.read_bytes().decode("utf-8-sig")


def _write(path: Path, text: str) -> None:
    """Whole or not at all, on disk when this returns. ENOSPC, EIO."""
    with _faults(path):
        new = path.with_name(f".{path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _faults(path: Path) -> Generator[None]:
    """What the disk says, as a syscall says it."""
    try:
        yield
    except OSError as error:
        errno = Errno.ENOSPC if error.errno in (ENOSPC, EDQUOT) else Errno.EIO
        raise SyscallError(errno, f"{path} cannot be written: {error}") from error
