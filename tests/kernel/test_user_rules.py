"""The file of the own rules: read and written whole, undone, and an error when it is missing."""

import errno
import os
from importlib.resources import files
from pathlib import Path

import pytest

from llmasos.kernel.abi import limits, paths
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.access.decisions import Policy
from llmasos.kernel.access.user_rules import UserRulesFile
from tests.kernel.gate import CAREFUL, NO_A, NO_B, A, B, policy, restarted


def own(tmp_path: Path) -> UserRulesFile:
    return UserRulesFile(tmp_path / "policy.csv", tmp_path / "memory.csv")


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


# --- read -------------------------------------------------------------------------------------
def test_a_fresh_machine_has_no_own_rules(tmp_path: Path) -> None:
    gate = Policy(TABLE, "alice", tmp_path / "none" / "policy.csv", tmp_path / "memory.csv")
    assert gate.text == ""
    assert not gate.user_rules.path.parent.exists()
    assert UserRulesFile(tmp_path / "policy.csv", None).read() == ""


def test_a_file_that_has_vanished_with_its_denies_is_refused(tmp_path: Path) -> None:
    gate = policy(tmp_path, NO_A)
    gate.user_rules.path.unlink()
    for load in (gate.load, lambda: restarted(tmp_path)):
        with pytest.raises(SyscallError, match="is missing, and it had rules") as caught:
            load()
        assert caught.value.errno is Errno.EINVAL
        assert str(tmp_path / "memory.csv") in caught.value.hint
        assert f"touch {gate.user_rules.path}" in caught.value.hint
    assert not gate.check(CAREFUL, "spawn", A).allowed
    assert gate.epoch == 1
    gate.user_rules.path.write_bytes((tmp_path / "memory.csv").read_bytes())  # as the hint says
    assert not restarted(tmp_path).check(CAREFUL, "spawn", A).allowed


def test_a_person_may_mean_that_there_are_no_rules(tmp_path: Path) -> None:
    path = policy(tmp_path, NO_A).user_rules.path
    path.write_text("")
    assert restarted(tmp_path).check(CAREFUL, "spawn", A).allowed
    path.unlink()  # of nothing, nothing is lost
    assert restarted(tmp_path).check(CAREFUL, "spawn", A).allowed


def test_a_copy_that_cannot_be_read_counts_as_rules(tmp_path: Path) -> None:
    (tmp_path / "memory.csv").mkdir()
    with pytest.raises(SyscallError, match="is missing"):
        restarted(tmp_path)


@pytest.mark.parametrize("row", [NO_A.strip(), "p, r:careful, *, /*, ask"])
def test_a_file_that_is_cut_within_a_rule_is_refused(tmp_path: Path, row: str) -> None:
    gate = policy(tmp_path, f"{NO_B}{row}")
    for end in range(1, len(row)):
        gate.user_rules.path.write_text(f"{NO_B}{row[:end]}")
        with pytest.raises(SyscallError, match=r"policy.csv:2"):
            gate.load()
    assert gate.epoch == 1
    assert not gate.check(CAREFUL, "spawn", A).allowed


def test_a_file_that_cannot_be_read_leaves_the_running_rules(tmp_path: Path) -> None:
    gate = policy(tmp_path, NO_A)
    gate.user_rules.path.unlink()
    gate.user_rules.path.mkdir()
    with pytest.raises(SyscallError, match="cannot be read") as caught:
        gate.load()
    assert caught.value.errno is Errno.EINVAL
    gate.user_rules.path.rmdir()
    gate.user_rules.path.write_bytes(b"p, r:careful, spawn, /dev/image/*, allow # \xff\n")
    with pytest.raises(SyscallError, match=r"policy.csv cannot be read: 'utf-8' codec") as caught:
        gate.load()
    assert caught.value.errno is Errno.EINVAL
    assert (gate.epoch, gate.text) == (1, NO_A)
    assert not gate.check(CAREFUL, "spawn", A).allowed


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_file_of_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "policy.csv").write_text(NO_A, encoding=encoding)
    with pytest.raises(SyscallError, match=r"cannot be read|is not printable"):
        restarted(tmp_path)


# --- the copy of what is in force -------------------------------------------------------------
@pytest.mark.anyio
async def test_the_copy_is_what_is_in_force(tmp_path: Path) -> None:
    gate, copy = policy(tmp_path, NO_A), tmp_path / "memory.csv"
    assert copy.read_text() == NO_A
    await gate.reload(NO_B)
    assert copy.read_text() == NO_B
    gate.user_rules.path.write_text("nonsense")
    with pytest.raises(SyscallError):
        gate.load()
    assert copy.read_text() == NO_B
    gate.user_rules.path.write_text("# none\n")
    gate.load()
    assert copy.read_text() == "# none\n"


def test_the_copy_is_written_only_when_it_differs(tmp_path: Path) -> None:
    gate, copy = policy(tmp_path, NO_A), tmp_path / "memory.csv"
    before = copy.stat().st_ino
    gate.load()
    assert copy.stat().st_ino == before


@pytest.mark.anyio
async def test_rules_are_in_force_where_the_copy_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "policy.csv"
    own.write_text(NO_A)
    gate = Policy(TABLE, "alice", own, tmp_path / "none" / "memory.csv")
    assert not gate.check(CAREFUL, "spawn", A).allowed
    await gate.reload(NO_B)
    assert not gate.check(CAREFUL, "spawn", B).allowed
    assert caplog.text.count("the copy of the rules in force is outdated") == 2


# --- written ----------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["", "a", "a\n", "a\r\nb\rc\n\n", "# Größe\u2028\n"])
def test_a_text_comes_back_as_it_is(tmp_path: Path, text: str) -> None:
    file = own(tmp_path)
    file.write(text)
    assert file.read() == text
    file.write("other")
    assert file.previous() == text


def test_what_is_written_is_there_after_a_restart_for_the_owner_alone(tmp_path: Path) -> None:
    file = UserRulesFile(tmp_path / "config" / "policy.csv", None)
    file.write(NO_A)
    gate = Policy(TABLE, "alice", file.path)
    assert not gate.check(CAREFUL, "spawn", A).allowed
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    file.write(NO_B)
    assert names(file.path.parent) == {"policy.csv", "policy.csv.1", "policy.csv.2"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in file.path.parent.iterdir())


@pytest.mark.parametrize("call", range(4))
def test_a_full_disk_leaves_a_whole_file_and_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The earlier text and the new one, each a file and its folder: whichever does not fit."""
    file, real, calls = own(tmp_path), os.fsync, 0
    file.write("first")
    file.write("second")

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(errno.ENOSPC, "no space")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SyscallError, match="cannot be written") as caught:
        file.write("third")
    assert caught.value.errno is Errno.ENOSPC
    monkeypatch.undo()
    assert file.read() == ("second" if call < 3 else "third")  # that one not after a power cut
    assert file.previous() == ("first" if call < 2 else "second")
    file.write("fourth")
    assert file.read() == "fourth"


def test_a_disk_that_refuses_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file where the folder should be")
    with pytest.raises(SyscallError, match="cannot be written") as caught:
        UserRulesFile(tmp_path / "config" / "policy.csv", None).write("x")
    assert caught.value.errno is Errno.EIO


# --- undone -----------------------------------------------------------------------------------
def test_each_undo_goes_one_change_further_back(tmp_path: Path) -> None:
    file = own(tmp_path)
    for text in ("a", "b", "c"):
        file.write(text)
    for text in ("b", "a", ""):
        assert file.previous() == text
        file.restore(text)
        assert file.read() == text
    with pytest.raises(SyscallError, match="no previous version") as caught:
        file.previous()
    assert caught.value.errno is Errno.EINVAL
    assert names(tmp_path) == {"policy.csv"}


def test_a_change_after_an_undo_goes_on_from_there(tmp_path: Path) -> None:
    file = own(tmp_path)
    for text in ("a", "b", "c"):
        file.write(text)
    file.restore(file.previous())
    file.write("d")
    for text in ("b", "a", ""):
        assert file.previous() == text
        file.restore(text)


def test_so_many_earlier_files_are_kept_and_no_more(tmp_path: Path) -> None:
    file, most = own(tmp_path), limits.POLICY_UNDO
    for number in range(most + 5):
        file.write(str(number))
    kept = {f"policy.csv.{number}" for number in range(1, most + 1)}
    assert names(tmp_path) == {"policy.csv", *kept}
    for number in range(most + 3, 3, -1):
        assert file.previous() == str(number)
        file.restore(str(number))
    with pytest.raises(SyscallError, match="no previous version"):
        file.previous()


@pytest.mark.parametrize("odd", ["folder", "bytes"])
def test_an_earlier_file_that_cannot_be_read_is_said_to_be_so(tmp_path: Path, odd: str) -> None:
    file = own(tmp_path)
    file.write("a")
    earlier = tmp_path / "policy.csv.1"
    earlier.unlink()
    if odd == "folder":
        earlier.mkdir()
    else:
        earlier.write_bytes(b"\xff")
    with pytest.raises(SyscallError, match=r"policy.csv.1 cannot be read") as caught:
        file.previous()
    assert caught.value.errno is Errno.EINVAL


# --- never in the package ---------------------------------------------------------------------
@pytest.mark.anyio
async def test_own_rules_never_reach_the_installed_package(tmp_path: Path) -> None:
    folder = Path(str(files("llmasos.policies"))).resolve()

    def shipped() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    before, gate = shipped(), policy(tmp_path)
    for text in (NO_A, NO_B, "g, u:bob, r:guest\n"):
        gate.user_rules.write(text)
        await gate.reload(text)
    gate.user_rules.restore(gate.user_rules.previous())
    gate.load()
    assert shipped() == before
    assert names(tmp_path) == {"policy.csv", "policy.csv.1", "policy.csv.2", "memory.csv"}


def test_the_own_rules_stand_in_the_configuration_directory() -> None:
    found = paths.find()
    assert found.policy_file.parent == found.config
    folder = Path(str(files("llmasos"))).resolve()
    assert not found.policy_file.resolve().is_relative_to(folder)
