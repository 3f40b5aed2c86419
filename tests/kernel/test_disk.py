"""Directories that cannot be used are named, with what helps."""

import errno
import os
from pathlib import Path

import pytest

from llmasos.kernel.abi import disk, limits
from llmasos.kernel.abi.errors import Errno


@pytest.mark.parametrize(
    ("number", "expected", "hint"),
    [
        (errno.EROFS, Errno.EROFS, "findmnt -T /var/state"),
        (errno.ENOSPC, Errno.ENOSPC, "df -h /var/state"),
        (errno.EDQUOT, Errno.ENOSPC, "df -h /var/state"),
        (errno.EACCES, Errno.EACCES, "directories of your own"),
        (errno.EEXIST, Errno.EEXIST, "directories of your own"),
        (errno.ENAMETOOLONG, Errno.EACCES, "directories of your own"),
    ],
)
def test_what_the_system_says_comes_with_advice(number: int, expected: Errno, hint: str) -> None:
    error = disk.unusable(OSError(number, os.strerror(number), "/var/state/lock"))
    assert error.errno is expected
    assert "/var/state/lock" in error.message
    assert hint in error.hint


def test_a_disk_with_room_is_no_error(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    if room.f_bavail * room.f_frsize < 2 * limits.FREE_BYTES:
        pytest.skip("this disk is nearly full")
    assert disk.check_free_space(tmp_path) > limits.FREE_BYTES


def test_a_directory_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.check_free_space(tmp_path / "none")
