"""Databases that cannot be used: which a run does without, or reads only; which were set aside.

An owner's database is left as it is, and not opened again before a restart. What a machine can do
without, as a segment of the journal, gets another name, and a new file takes its place.
"""

import logging
from contextlib import suppress
from itertools import count
from pathlib import Path

from .errors import Errno, SyscallError
from .values import Damage

log = logging.getLogger(__name__)
_END = ".damaged"  # of the name of a file that was set aside
RESTART = "`llmasos daemon restart` opens it again, once the disk works"


class Damages:
    """Of one state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._withheld: dict[str, SyscallError] = {}
        before = [*directory.glob(f"*{_END}"), *directory.glob(f"journal/**/*{_END}")]
        self.all = [self._aside(path, "it was set aside") for path in sorted(before)]

    def check(self, name: str) -> None:
        """Raise what was wrong with a database that this run does without."""
        error = self._withheld.get(name)
        if error is not None:
            raise SyscallError(error.errno, error.message, error.hint)

    def withhold(self, name: str, owner: str, error: SyscallError) -> None:
        """Do without a database, even when it is mended meanwhile.

        What was not read when the machine started would be taken for absent.
        """
        self._withheld[name] = error
        self.all.append(Damage(name, owner, error.message, error.hint))
        log.error("%s is not used before the next start: %s", name, error.message)

    def lose_flush(self, path: Path, fault: OSError) -> SyscallError:
        """Remember a database that is written no more: the error of each write to it.

        After a failed flush the system may take pages for written that never reached the disk, and
        the next flush may succeed without them: only closing and opening it writes them again.
        """
        name = str(path.relative_to(self._directory))
        why = fault.strerror or str(fault)
        words = f"the disk did not take a flush of {path} ({why}): it is written no more"
        error = SyscallError(Errno.EIO, words, RESTART)
        if all(one.file != name for one in self.all):
            owner = path.parent.name if name.startswith("owners/") else ""
            self.all.append(Damage(name, owner, words, RESTART))
            log.error("%s", words)
        return error

    def set_aside(self, name: str, error: SyscallError) -> None:
        """Give a database that nobody has open another name."""
        path = self._directory / name
        names = (path.with_name(f"{path.name}.{number}{_END}") for number in count(1))
        target = next(one for one in names if not one.exists())
        for end in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + end).rename(target.with_name(target.name + end))
        log.error("%s was set aside as %s: %s", name, target.name, error.message)
        self.all.append(self._aside(target, error.message))

    def _aside(self, path: Path, error: str) -> Damage:
        advice = f"`rm {path}*` when nobody needs it any more"
        return Damage(str(path.relative_to(self._directory)), "", error, advice)
