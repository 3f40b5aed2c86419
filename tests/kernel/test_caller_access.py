"""What callers other than the owner of the machine use outside of the kernel."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmasos.kernel.abi import paths, secrets
from llmasos.kernel.abi.errors import Denied, SyscallError
from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.abi.values import Profile, UserAdd
from llmasos.kernel.access.decisions import Policy
from llmasos.kernel.access.identity import Caller
from llmasos.kernel.access.users import UserTable
from llmasos.kernel.storage.store import Store
from llmasos.kernel.syscalls.caller_access import CallerAccess
from tests.kernel.test_users import DAY, NOON, Clock

pytestmark = pytest.mark.anyio
URL = "https://api.example.com/v1"


def caller(name: str) -> Caller:
    return Caller(1, name, Profile.OPEN, (f"u:{name}",))


@pytest.fixture
async def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CallerAccess]:
    monkeypatch.setenv("LLMASOS_CONFIG_DIR", str(tmp_path / "config"))
    store = Store(tmp_path / "state")
    users = UserTable(store)
    await users.add(UserAdd("bob", os.geteuid() + 1))
    await users.add(UserAdd("robot"))
    policy = Policy(TABLE, "ann", tmp_path / "policy.csv", tmp_path / "memory.csv")
    yield CallerAccess("ann", users, policy, ())
    store.close()


async def test_only_a_kernel_of_root_opens_files_as_another_user(
    access: CallerAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    access.file_access(caller("ann"))
    with pytest.raises(Denied, match="robot is not a user of the operating system"):
        access.file_access(caller("robot"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Denied, match="this kernel runs as ann and cannot open files as another"):
        access.file_access(caller("bob"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    access.file_access(caller("bob"))


async def test_another_user_uses_a_secret_for_the_endpoint_of_its_owner_only(
    access: CallerAccess,
) -> None:
    folder, options = paths.find().secrets, {"secret": "mine"}
    secrets.put(folder, "mine", "sk-a-key", keyring=False)
    with pytest.raises(SyscallError, match="no secret of that name"):
        access.secret_binder(caller("bob"), URL, options)
    access.secret_binder(caller("ann"), URL, options)()
    access.secret_binder(caller("bob"), URL, options)()
    assert secrets.bound(folder, "mine") == "https://api.example.com:443"
    with pytest.raises(SyscallError, match="no secret of that name"):
        access.secret_binder(caller("bob"), "https://other.example.com", options)
    access.secret_binder(caller("bob"), "https://other.example.com", {})()  # it uses none


async def test_the_owner_is_written_once(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), Clock()
    users = UserTable(store, clock)
    await users.ensure_owner("ann", 1000)
    clock.now += DAY
    await users.ensure_owner("ann", 1000)
    assert store.peek("users.db", "SELECT name, created FROM users") == [("ann", NOON)]
    await users.ensure_owner("ann", 1001)
    assert (users.by_uid(1000), users.by_uid(1001)) == (None, "ann")
    store.close()
