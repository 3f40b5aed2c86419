"""Databases that are damaged, cannot be flushed, or are disabled."""

import errno
import os
import signal
from pathlib import Path

import pytest

from llmasos.kernel import points
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.storage.damage import Damages
from llmasos.kernel.storage.filesystem import Access


def test_a_database_that_cannot_be_flushed_is_listed_once(tmp_path: Path) -> None:
    damages, fault = Damages(tmp_path), OSError(errno.EIO, "input/output error")
    errors = [damages.record_failed_flush(tmp_path / "rows.db", fault) for _ in range(2)]
    assert [damage.file for damage in damages.all] == ["rows.db"]
    assert {error.errno for error in errors} == {Errno.EIO}
    damages.check("rows.db")  # it is read


def test_a_disabled_database_is_not_used(tmp_path: Path) -> None:
    damages = Damages(tmp_path)
    damages.disable("rows.db", "", SyscallError(Errno.EIO, "rows.db is damaged"))
    damages.check("others.db")
    with pytest.raises(SyscallError, match=r"rows\.db is damaged"):
        damages.check("rows.db")


def test_a_disk_that_fails_is_told_from_a_file_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it").write_text("it")
    numbers = [errno.EIO, errno.ENOMEM, errno.ENOENT]

    def failing(*_: object) -> int:
        raise OSError(numbers.pop(0), "as the test wants")

    monkeypatch.setattr("llmasos.kernel.storage.openat._openat2", failing)
    for expected in (Errno.EIO, Errno.EIO, Errno.ENOENT):
        with pytest.raises(SyscallError) as caught:
            Access().run(lambda opener: opener.file(tmp_path / "it"))
        assert caught.value.errno is expected


def test_a_crash_is_due_when_its_point_is_passed_for_the_nth_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        killed.append(number)

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(points, "_name", "store.commit")
    monkeypatch.setattr(points, "_left", 3)
    for point in ("store.commit", "store.written", "store.commit"):
        points.passed(point)
    assert killed == []
    points.passed("store.commit")
    assert killed == [signal.SIGKILL]
