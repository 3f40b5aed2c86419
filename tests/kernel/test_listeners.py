"""Where the daemon listens: directories that are closed to others, and addresses."""

import os
from pathlib import Path

import pytest

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.connection.listeners import ListenOptions, make_directory

BOB = 65534


def refused(directory: Path, options: ListenOptions) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        make_directory(directory, options)
    assert caught.value.errno is Errno.EACCES
    return caught.value


def test_a_directory_that_others_can_open_is_refused_and_the_hint_closes_it(
    tmp_path: Path,
) -> None:
    place = tmp_path / "runtime"
    make_directory(place, ListenOptions())
    assert place.stat().st_mode & 0o777 == 0o700
    place.chmod(0o755)
    error = refused(place, ListenOptions())
    assert "is open to others (mode 755)" in error.message
    assert error.hint.startswith(f"`chmod 700 {place}`")


def test_a_shared_directory_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    link = tmp_path / "runtime"
    link.symlink_to(tmp_path / "elsewhere")
    make_directory(link, ListenOptions())
    assert "is a symbolic link" in refused(link, ListenOptions(shared=True)).message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "runtime"
    place.mkdir(mode=0o700)
    os.chown(place, BOB, -1)
    assert f"{place} belongs to" in refused(place, ListenOptions()).message


def test_a_shared_directory_is_open_to_the_group(tmp_path: Path) -> None:
    place = tmp_path / "runtime"
    make_directory(place, ListenOptions(shared=True))
    status = place.stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o750, os.getegid())


def test_a_group_that_does_not_exist_is_named(tmp_path: Path) -> None:
    options = ListenOptions(shared=True, group="no-such-group")
    with pytest.raises(SyscallError, match="no group 'no-such-group'") as caught:
        make_directory(tmp_path / "runtime", options)
    assert caught.value.errno is Errno.EINVAL
