"""Damaged databases of this run: disabled, read-only, or renamed and replaced.

The damaged database of an owner stays in place, and is not opened again before a restart. A
replaceable database, such as a segment of the journal, is renamed, and a new file is created.
"""

import logging
from contextlib import suppress
from itertools import count
from pathlib import Path

from ..abi.errors import Errno, SyscallError
from ..abi.values import Damage

log = logging.getLogger(__name__)
_SUFFIX = ".damaged"  # of a renamed file
RESTART = "`llmasos daemon restart` opens it again, once the disk works"


class Damages:
    """The damaged files of one state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._disabled: dict[str, SyscallError] = {}
        found = [*directory.glob(f"*{_SUFFIX}"), *directory.glob(f"journal/**/*{_SUFFIX}")]
        self.all = [self._renamed(path, "it was damaged and renamed") for path in sorted(found)]

    def check(self, name: str) -> None:
        """Raise the error of a disabled database."""
        error = self._disabled.get(name)
        if error is not None:
            raise SyscallError(error.errno, error.message, error.hint)

    def disable(self, name: str, owner: str, error: SyscallError) -> None:
        """Do not use a database in this run, even after it is repaired.

        Rows that could not be read at start-up would count as missing.
        """
        self._disabled[name] = error
        self.all.append(Damage(name, owner, error.message, error.hint))
        log.error("%s is disabled until the next start: %s", name, error.message)

    def record_failed_flush(self, path: Path, fault: OSError) -> SyscallError:
        """List a database as read-only, and return the error of each write to it.

        After a failed flush the operating system may mark pages as written that never reached the
        disk, and the next flush may succeed without them. Only closing and reopening the database
        writes them again.
        """
        name = str(path.relative_to(self._directory))
        reason = fault.strerror or str(fault)
        message = f"cannot flush {path} to disk ({reason}): it is read-only now"
        error = SyscallError(Errno.EIO, message, RESTART)
        if all(damage.file != name for damage in self.all):
            owner = path.parent.name if name.startswith("owners/") else ""
            self.all.append(Damage(name, owner, message, RESTART))
            log.error("%s", message)
        return error

    def set_aside(self, name: str, error: SyscallError) -> None:
        """Rename a damaged database. No connection to it may be open."""
        path = self._directory / name
        names = (path.with_name(f"{path.name}.{number}{_SUFFIX}") for number in count(1))
        target = next(candidate for candidate in names if not candidate.exists())
        for end in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + end).rename(target.with_name(target.name + end))
        log.error("%s is damaged and was renamed to %s: %s", name, target.name, error.message)
        self.all.append(self._renamed(target, error.message))

    def _renamed(self, path: Path, error: str) -> Damage:
        advice = f"`rm {path}*` deletes it when it is no longer needed"
        return Damage(str(path.relative_to(self._directory)), "", error, advice)
