"""The user rules: `policy.csv`, the rules of an installation besides the shipped ones.

The file is in the configuration directory, with its previous versions. A copy of the rules that
were loaded last is stored beside the databases. A missing file would remove its denies, so it is an
error until a person confirms it: see the hint in `read`.
"""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

from ..abi import limits
from ..abi.errors import Errno, SyscallError

log = logging.getLogger(__name__)


class UserRulesFile:
    """The file, the copy of the rules that were loaded last, and the previous versions."""

    def __init__(self, path: Path, copy: Path | None) -> None:
        self.path = path
        self._copy = copy  # of the rules that were loaded last; None: no copy

    @property
    def name(self) -> str:
        return self.path.name

    def read(self) -> str:
        """The text of the file. EINVAL when it is missing but had rules, or is not text."""
        try:
            return _text(self.path)
        except FileNotFoundError:
            if self._had_rules():
                message = f"{self.path} is missing, and it had rules"
                hint = f"`cp {self._copy} {self.path}`, or `touch {self.path}` to have no rules"
                raise SyscallError(Errno.EINVAL, message, hint) from None
            return ""
        except (OSError, UnicodeDecodeError) as error:
            message = f"{self.path} cannot be read: {error}"
            raise SyscallError(Errno.EINVAL, message, "correct it, or move it away") from error

    def _had_rules(self) -> bool:
        """Whether the copy has rules. An unreadable one counts: it could contain denies."""
        copied = self._read_copy()
        return copied is None or bool(copied.strip())

    def _read_copy(self) -> bytes | None:
        """The copy; None when it cannot be read."""
        try:
            return self._copy.read_bytes() if self._copy else b""
        except FileNotFoundError:
            return b""
        except OSError:
            return None

    def save_copy(self, text: str) -> None:
        """Save a copy of the loaded rules. A failure is logged; the rules stay in force."""
        if self._copy is not None and text.encode() != self._read_copy():
            try:
                _write(self._copy, text)
            except SyscallError as error:
                log.warning("the copy of the rules in force is outdated: %s", error.message)

    def write(self, text: str) -> None:
        """Replace the file durably and keep the previous one for `undo`. ENOSPC, EIO."""
        with _disk_errors(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = _text(self.path) if self.path.exists() else ""
            _write(self._version(0), before)  # first: on a full disk nothing is renamed
            for number in range(limits.POLICY_UNDO - 1, -1, -1):
                if self._version(number).exists():
                    self._version(number).replace(self._version(number + 1))
            _write(self.path, text)

    def previous(self) -> str:
        """The text before the last change. EINVAL when none is kept, or it is not text."""
        path = self._version(1)
        try:
            return _text(path)
        except FileNotFoundError:
            message = "there is no previous version of the rules to restore"
            hint = "`llmasos policy list --own` shows the present rules"
            raise SyscallError(Errno.EINVAL, message, hint) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SyscallError(Errno.EINVAL, f"{path} cannot be read: {error}") from error

    def restore(self, text: str) -> None:
        """Write the previous text and remove it from the kept versions."""
        with _disk_errors(self.path):
            _write(self.path, text)
            for number in range(1, limits.POLICY_UNDO + 1):
                self._version(number).unlink(missing_ok=True)
                if self._version(number + 1).exists():
                    self._version(number + 1).replace(self._version(number))

    def _version(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _text(path: Path) -> str:
    """The text without a byte order mark, else unchanged: Python's text mode would treat a lone
    carriage return as a line break."""
    return path.read_bytes().decode("utf-8-sig")


def _write(path: Path, text: str) -> None:
    """Replace a file atomically and durably. ENOSPC, EIO."""
    with _disk_errors(path):
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
def _disk_errors(path: Path) -> Generator[None]:
    """Translate an OSError to ENOSPC or EIO."""
    try:
        yield
    except OSError as error:
        errno = Errno.ENOSPC if error.errno in (ENOSPC, EDQUOT) else Errno.EIO
        raise SyscallError(errno, f"{path} cannot be written: {error}") from error
