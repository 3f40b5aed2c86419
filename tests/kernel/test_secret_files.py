"""Secrets on disk and in a keyring: what is refused, and what other users are told."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from llmasos.kernel.abi import secrets
from llmasos.kernel.abi.errors import Errno, SyscallError

KEY = "sk-a-key-that-nobody-may-see"
URL = "https://api.example.com/v1"


class Keyring(ModuleType):
    """A keyring that is locked, or has lost what it was given."""

    locked = False

    def set_password(self, service: str, name: str, value: str) -> None:
        self._check()

    def get_password(self, service: str, name: str) -> str | None:
        self._check()
        return None

    def delete_password(self, service: str, name: str) -> None:
        self._check()

    def _check(self) -> None:
        if self.locked:
            raise RuntimeError(KEY)


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> Keyring:
    keyring = Keyring("keyring")
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    return keyring


def test_without_a_directory_there_are_no_secrets(tmp_path: Path) -> None:
    assert secrets.names(tmp_path / "none") == []


def test_a_secret_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="no secret 'mine'") as caught:
        secrets.read(tmp_path, "mine")
    assert caught.value.errno is Errno.ENOENT


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    with pytest.raises(SyscallError, match="is not a regular file of this user") as caught:
        secrets.read(tmp_path, "mine")
    assert caught.value.errno is Errno.EACCES


def test_other_users_are_not_told_where_a_key_goes(tmp_path: Path) -> None:
    secrets.put(tmp_path, "mine", KEY, keyring=False, url=URL)
    other = "https://other.example.com"
    secrets.check_bound(tmp_path, "mine", URL, is_machine_owner=False)
    with pytest.raises(SyscallError, match=f"no secret of that name is for {other}") as caught:
        secrets.check_bound(tmp_path, "mine", other, is_machine_owner=False)
    assert "api.example.com" not in str(caught.value)
    with pytest.raises(SyscallError, match=r"mine is for https://api\.example\.com"):
        secrets.check_bound(tmp_path, "mine", other)


def test_a_keyring_that_fails_is_told_without_its_message(tmp_path: Path, keyring: Keyring) -> None:
    secrets.put(tmp_path, "mine", KEY, keyring=True)
    with pytest.raises(SyscallError, match="no secret 'mine'"):
        secrets.read(tmp_path, "mine")
    keyring.locked = True
    for act in (
        lambda: secrets.put(tmp_path, "mine", KEY, keyring=True),
        lambda: secrets.read(tmp_path, "mine"),
        lambda: secrets.remove(tmp_path, "mine"),
    ):
        with pytest.raises(SyscallError, match="the keyring failed with RuntimeError") as caught:
            act()
        assert (caught.value.errno, KEY in str(caught.value)) == (Errno.EIO, False)
