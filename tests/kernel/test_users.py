"""Users and keys: who is let in, why the others are not, and what reaches the disk."""

import hmac
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Denied, Errno, SyscallError
from llmasos.kernel.abi.values import KeyCreate, KeyInfo, UserAdd, UserInfo, UserRole
from llmasos.kernel.access.users import KeyHolder, UserTable
from llmasos.kernel.storage.store import Store

pytestmark = pytest.mark.anyio
NOON = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
DAY = 86_400.0


@dataclass
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(store: Store, clock: Clock) -> UserTable:
    return UserTable(store, clock)


def again(tmp_path: Path, clock: Clock) -> tuple[Store, UserTable]:
    store = Store(tmp_path)
    return store, UserTable(store, clock)


def refusal(users: UserTable, key: str) -> Denied:
    with pytest.raises(Denied) as caught:
        users.identify(key)
    secret = key.split("_", 2)[-1]  # it may hold such a stroke itself
    assert not secret or secret not in str(caught.value)
    assert caught.value.errno is Errno.EACCES
    assert "llmasos keys create --user " in caught.value.hint
    return caught.value


# --- users ------------------------------------------------------------------------------------
async def test_a_fresh_machine_knows_nobody(users: UserTable) -> None:
    assert (users.all(), users.roles(), users.keys("").keys) == ([], [], [])
    assert users.by_uid(1000) is None
    assert users.rejection("ann", "") == "the user ann was removed"


async def test_users_are_added_listed_changed_and_removed(users: UserTable, clock: Clock) -> None:
    ann = await users.add(UserAdd("ann", 1000, UserRole.OPERATOR))
    assert ann == UserInfo("ann", 1000, UserRole.OPERATOR, NOON, 0, 0)
    clock.now += 5
    await users.add(UserAdd("Zoe"))
    assert await users.add(UserAdd("root", 0)) == UserInfo("root", 0, UserRole.USER, NOON + 5, 0, 0)
    assert [user.name for user in users.all()] == ["Zoe", "ann", "root"]
    assert users.roles() == [("ann", "operator"), ("Zoe", "user"), ("root", "user")]
    assert all(type(role) is str for _, role in users.roles())
    assert (users.by_uid(1000), users.by_uid(0), users.by_uid(7)) == ("ann", "root", None)
    changed = await users.change("ann", UserRole.GUEST)
    assert changed == UserInfo("ann", 1000, UserRole.GUEST, NOON, 0, 0)
    assert users.roles()[0] == ("ann", "guest")
    await users.remove("ann")
    assert users.by_uid(1000) is None
    assert [user.name for user in users.all()] == ["Zoe", "root"]
    assert (await users.add(UserAdd("bob", 1000))).uid == 1000  # the uid is free again


async def test_several_users_without_a_uid(users: UserTable) -> None:
    for name in ("a", "b"):
        assert (await users.add(UserAdd(name))).uid is None


async def test_a_name_and_a_uid_are_taken_once(users: UserTable) -> None:
    await users.add(UserAdd("ann", 1000, UserRole.OWNER))
    for request, words, hint in (
        (UserAdd("ann", 1001), "user ann already exists, with uid 1000 and role owner", "rm ann"),
        (UserAdd("bob", 1000), "uid 1000 already belongs to user ann", "rm ann"),
    ):
        with pytest.raises(SyscallError) as caught:
            await users.add(request)
        assert caught.value.errno is Errno.EEXIST
        assert words in caught.value.message
        assert hint in caught.value.hint
    await users.add(UserAdd("key"))
    with pytest.raises(SyscallError, match="with no uid"):
        await users.add(UserAdd("key"))
    assert [user.name for user in users.all()] == ["ann", "key"]


async def test_of_many_at_once_one_gets_the_name(users: UserTable) -> None:
    outcomes: list[str] = []

    async def one(uid: int) -> None:
        try:
            await users.add(UserAdd("ann", uid))
        except SyscallError as error:
            outcomes.append(error.errno.name)
        else:
            outcomes.append("added")

    async with anyio.create_task_group() as group:
        for uid in range(5):
            group.start_soon(one, uid)
    assert sorted(outcomes) == ["EEXIST"] * 4 + ["added"]
    assert len(users.all()) == 1


async def test_who_is_not_there_is_not_found(users: UserTable) -> None:
    await users.add(UserAdd("ann"))
    for what in (
        users.remove("bob"), users.change("bob", UserRole.GUEST),
        users.create_key(KeyCreate("bob")),
    ):  # fmt: skip
        with pytest.raises(SyscallError) as caught:
            await what
        assert caught.value.errno is Errno.ENOENT
        assert caught.value.message == "no user bob; users: ann"
        assert caught.value.hint == "`llmasos users add bob` adds it"


async def test_connections_are_shown_and_counted_elsewhere(users: UserTable) -> None:
    await users.add(UserAdd("ann"))
    users.connections["ann"] += 2
    assert users.all()[0].connections == 2
    assert "bob" not in users.connections


# --- keys -------------------------------------------------------------------------------------
async def test_a_key_stands_for_its_user(users: UserTable, clock: Clock) -> None:
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann"))
    assert re.fullmatch(r"llmasos_[a-z2-7]{10}_[A-Za-z0-9_-]{43}", made.key)
    assert made.key.split("_")[1] == made.id
    assert (made.user, made.expires) == ("ann", None)
    assert users.identify(made.key) == KeyHolder("ann", made.id)
    assert users.keys("").keys == [KeyInfo(made.id, "ann", NOON, None, NOON, None)]
    assert users.rejection("ann", made.id) == ""
    assert users.all()[0].keys == 1
    clock.now += 1000 * DAY
    assert users.identify(made.key).user == "ann"  # it never expires
    with pytest.raises(FrozenInstanceError):
        users.identify(made.key).user = "bob"  # type: ignore[misc]


async def test_keys_are_many_and_all_different(users: UserTable) -> None:
    await users.add(UserAdd("ann"))
    await users.add(UserAdd("bob"))
    made = [await users.create_key(KeyCreate(name)) for name in ("ann", "bob") * 20]
    assert len({one.id for one in made}) == len({one.key for one in made}) == 40
    assert [users.identify(one.key).user for one in made] == ["ann", "bob"] * 20
    assert {key.id for key in users.keys("ann").keys} == {one.id for one in made[::2]}
    assert len(users.keys("").keys) == 40
    with pytest.raises(SyscallError, match="no user nobody"):
        users.keys("nobody")


async def test_an_id_that_is_taken_is_not_given_again(
    users: UserTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    await users.add(UserAdd("ann"))
    drawn = iter([bytes(10), bytes(10), b"\xff" * 10])

    def draw(count: int) -> bytes:
        return next(drawn) if count == 10 else bytes(count)  # the secret's bytes

    monkeypatch.setattr("secrets.token_bytes", draw)
    ids = [(await users.create_key(KeyCreate("ann"))).id for _ in range(2)]
    assert ids == ["a" * 10, "7" * 10]


async def test_there_is_a_limit_of_valid_keys_for_each_user(
    users: UserTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "USER_KEYS", 2)
    for name in ("ann", "bob"):
        await users.add(UserAdd(name))
    first = await users.create_key(KeyCreate("ann"))
    await users.create_key(KeyCreate("ann", expires_s=DAY))
    with pytest.raises(SyscallError, match="ann has 2 valid keys; at most 2") as caught:
        await users.create_key(KeyCreate("ann"))
    assert caught.value.errno is Errno.EAGAIN
    await users.create_key(KeyCreate("bob"))
    await users.revoke(first.id)
    await users.create_key(KeyCreate("ann"))
    clock.now += 2 * DAY
    await users.create_key(KeyCreate("ann"))


async def test_keys_are_listed_as_they_were_made(users: UserTable, clock: Clock) -> None:
    await users.add(UserAdd("ann"))
    made: list[str] = []
    for _ in range(5):
        clock.now += 1
        made.append((await users.create_key(KeyCreate("ann"))).id)
    assert [key.id for key in users.keys("ann").keys] == made


async def test_a_key_expires(users: UserTable, clock: Clock) -> None:
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann", 90 * DAY))
    end = NOON + 90 * DAY
    assert made.expires == users.expires(made.id) == end
    clock.now = end - 0.001
    assert users.identify(made.key).key == made.id
    clock.now = end
    assert (
        refusal(users, made.key).message == f"the key {made.id} expired at 2027-04-15 08:00:00 UTC"
    )
    assert "--user ann" in refusal(users, made.key).hint
    assert users.rejection("ann", made.id).startswith(f"the key {made.id} expired at ")
    assert users.rejection("ann", "") == ""
    assert users.all()[0].keys == 0
    assert len(users.keys("ann").keys) == 1


async def test_when_a_key_ends_by_itself(users: UserTable) -> None:
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann"))
    assert [users.expires(id) for id in (made.id, "", "nothing")] == [None, None, None]


async def test_a_revoked_key_is_over(users: UserTable, clock: Clock) -> None:
    await users.add(UserAdd("ann"))
    made, other = [await users.create_key(KeyCreate("ann", DAY)) for _ in range(2)]
    clock.now += 60
    await users.revoke(made.id)
    words = f"the key {made.id} was revoked at 2027-01-15 08:01:00 UTC"
    assert refusal(users, made.key).message == words
    assert users.rejection("ann", made.id) == words
    clock.now += 60
    await users.revoke(made.id)  # once more, and nothing happens
    assert {key.id: key.revoked for key in users.keys("").keys} == {
        made.id: NOON + 60,
        other.id: None,
    }
    assert users.identify(other.key).key == other.id
    assert users.all()[0].keys == 1
    clock.now += 2 * DAY
    assert refusal(users, made.key).message == words  # not that it has expired since


async def test_revoking_what_is_not_there_is_not_found_and_not_repeated(users: UserTable) -> None:
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann"))
    for id in ("aaaaaaaaaa", made.key, ""):
        with pytest.raises(SyscallError) as caught:
            await users.revoke(id)
        assert caught.value.errno is Errno.ENOENT
        assert made.key not in str(caught.value)
    assert users.identify(made.key).user == "ann"


@pytest.mark.parametrize(
    "key",
    [
        "", "x", "sk-1234567890", "llmasos_", "llmasos__", f"llmasos_{'a' * 10}",
        f"llmasos_{'a' * 10}_{'x' * 42}", f"llmasos_{'a' * 10}_{'x' * 44}",
        f"llmasos_{'A' * 10}_{'x' * 43}", f"llmasos_{'a' * 9}1_{'x' * 43}",
        f"LLMASOS_{'a' * 10}_{'x' * 43}", f"llmasos_{'a' * 10}_{'x' * 43}\n",
        f" llmasos_{'a' * 10}_{'x' * 43}", f"llmasos_{'a' * 10}_{'é' * 43}", "\0" * 1000,
    ],
)  # fmt: skip
async def test_what_is_no_key_is_said_to_be_none_and_not_repeated(
    users: UserTable, key: str
) -> None:
    error = refusal(users, key)
    assert "this is not an LLMasOS key" in error.message
    assert len(key) < 10 or key not in str(error)


async def test_unknown_and_wrong_sound_the_same(users: UserTable) -> None:
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann"))
    last = "b" if made.key.endswith("a") else "a"
    wrong = refusal(users, made.key[:-1] + last)
    unknown = refusal(users, made.key.replace(made.id, "a" * 10))
    assert wrong.message.replace(made.id, "ID") == unknown.message.replace("a" * 10, "ID")
    assert wrong.hint == unknown.hint
    assert "ann" not in str(wrong)
    assert users.keys("").keys[0].used is None
    await users.revoke(made.id)  # who does not have the secret does not hear of that
    assert refusal(users, made.key[:-1] + last).message == wrong.message


async def test_secrets_are_compared_in_constant_time_known_or_not(
    users: UserTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann"))
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(one: bytes, two: bytes) -> bool:
        compared.append((len(one), len(two)))
        return real(one, two)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    users.identify(made.key)
    assert compared == [(32, 32)]
    refusal(users, made.key.replace(made.id, "b" * 10))
    assert compared == [(32, 32)] * 2
    refusal(users, f"llmasos_{made.id}_{'x' * 43}")
    assert compared == [(32, 32)] * 3


async def test_the_dummy_is_nobody_s_secret(
    users: UserTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the comparison said yes, an unknown key stays unknown."""

    def same(_one: bytes, _two: bytes) -> bool:
        return True

    monkeypatch.setattr(hmac, "compare_digest", same)
    assert (
        "does not exist, or its secret is wrong"
        in refusal(users, f"llmasos_{'a' * 10}_{'x' * 43}").message
    )


# --- users and their keys ---------------------------------------------------------------------
async def test_a_user_s_keys_go_with_it(store: Store, users: UserTable) -> None:
    for name in ("ann", "bob"):
        await users.add(UserAdd(name))
    ann, bob = [await users.create_key(KeyCreate(name)) for name in ("ann", "bob")]
    await users.remove("ann")
    assert "does not exist, or its secret is wrong" in refusal(users, ann.key).message
    assert (
        users.rejection("ann", ann.id) == users.rejection("ann", "") == "the user ann was removed"
    )
    assert [key.id for key in users.keys("").keys] == [bob.id]
    await users.add(UserAdd("ann"))  # somebody else, of the same name
    assert "does not exist, or its secret is wrong" in refusal(users, ann.key).message
    assert users.rejection("ann", ann.id) == f"the key {ann.id} was removed with its user"
    assert users.rejection("ann", "") == ""
    assert users.rejection("ann", bob.id) != ""  # a key lets in nobody but its user
    assert users.keys("ann").keys == []
    assert [key.id for key in UserTable(store).keys("").keys] == [bob.id]  # on disk, too


async def test_a_key_whose_user_is_gone_lets_nobody_in(tmp_path: Path, clock: Clock) -> None:
    """No call can make that; a hand in the database can."""
    store, users = again(tmp_path, clock)
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann"))
    store.close()
    with sqlite3.connect(tmp_path / "users.db") as database:  # foreign keys are off here
        database.execute("DELETE FROM users")
    database.close()
    store, users = again(tmp_path, clock)
    error = refusal(users, made.key)
    assert error.message == "the user ann was removed"
    assert "--user ann" in error.hint
    store.close()


# --- on disk ----------------------------------------------------------------------------------
async def test_users_and_keys_survive_a_restart(tmp_path: Path, clock: Clock) -> None:
    store, users = again(tmp_path, clock)
    await users.add(UserAdd("ann", 2**32 - 2, UserRole.OWNER))
    await users.add(UserAdd("bob"))
    await users.add(UserAdd("gone", 7))
    await users.change("bob", UserRole.GUEST)
    keys = [
        await users.create_key(request)
        for request in (KeyCreate("ann"), KeyCreate("bob", DAY), KeyCreate("ann"))
    ]
    await users.create_key(KeyCreate("gone"))
    await users.remove("gone")
    users.identify(keys[1].key)
    clock.now += 10
    await users.revoke(keys[2].id)
    told = users.all(), users.roles(), users.keys("").keys
    store.close()
    store, users = again(tmp_path, clock)
    assert (users.all(), sorted(users.roles()), users.keys("").keys) == (
        told[0],
        sorted(told[1]),
        told[2],
    )
    assert users.by_uid(2**32 - 2) == "ann"
    assert users.by_uid(7) is None
    assert users.identify(keys[0].key) == KeyHolder("ann", keys[0].id)
    assert "was revoked" in refusal(users, keys[2].key).message
    clock.now += DAY
    assert "expired" in refusal(users, keys[1].key).message
    with pytest.raises(SyscallError, match="already"):
        await users.add(UserAdd("bob"))
    store.close()


async def test_no_secret_reaches_the_disk(tmp_path: Path, clock: Clock) -> None:
    store, users = again(tmp_path, clock)
    await users.add(UserAdd("ann"))
    made = await users.create_key(KeyCreate("ann"))
    users.identify(made.key)
    secret = made.key.removeprefix(f"llmasos_{made.id}_").encode()
    for _ in range(2):  # with the log beside it, and without
        files = [path.read_bytes() for path in tmp_path.iterdir()]
        assert any(made.id.encode() in data for data in files)
        assert not any(secret in data or secret[:16] in data for data in files)
        store.close()
        store = Store(tmp_path)
        users = UserTable(store, clock)
    store.close()
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


async def test_the_time_of_use_is_written_at_most_once_a_minute(
    store: Store, users: UserTable, clock: Clock
) -> None:
    await users.add(UserAdd("ann"))
    made, other = [await users.create_key(KeyCreate("ann")) for _ in range(2)]

    async def written() -> list[float | None]:
        # What was queued before this write is on disk after it.
        await users.change("ann", UserRole.USER)
        return [key.used for key in UserTable(store).keys("").keys if key.id == made.id]

    assert await written() == [None]
    for later, used in ((0, 0), (30, 0), (59.9, 0), (60, 60), (100, 60), (120, 120), (30, 30)):
        clock.now = NOON + later  # the last: somebody sets the clock back
        users.identify(made.key)
        assert [k.used for k in users.keys("").keys if k.id == made.id] == [NOON + later]
        assert await written() == [NOON + used], later
    users.identify(other.key)  # each key has a minute of its own
    await written()
    assert all(key.used is not None for key in UserTable(store).keys("").keys)


async def test_reads_never_touch_the_disk(
    store: Store, users: UserTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    await users.add(UserAdd("ann", 1000))
    made = await users.create_key(KeyCreate("ann", DAY))
    users.identify(made.key)
    await users.change("ann", UserRole.USER)

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("read", "submit", "write"):
        monkeypatch.setattr(store, name, never)
    assert users.identify(made.key).user == "ann"
    assert (users.by_uid(1000), users.rejection("ann", made.id)) == ("ann", "")
    assert (users.expires(made.id), users.roles()) == (NOON + DAY, [("ann", "user")])
    assert (len(users.all()), len(users.keys("").keys)) == (1, 1)


# --- when the disk is full --------------------------------------------------------------------
async def test_a_full_disk_lets_go_and_takes_in_nothing(tmp_path: Path, clock: Clock) -> None:
    store, users = again(tmp_path, clock)
    for name in ("ann", "bob"):
        await users.add(UserAdd(name))
    ann, bob = [await users.create_key(KeyCreate(name)) for name in ("ann", "bob")]
    store.close()
    store = Store(tmp_path, reserve_bytes=2**62)
    users = UserTable(store, clock)
    before = users.all(), users.keys("").keys
    for what in (
        users.add(UserAdd("zoe")), users.change("ann", UserRole.OWNER),
        users.create_key(KeyCreate("ann")),
    ):  # fmt: skip
        with pytest.raises(SyscallError) as caught:
            await what
        assert caught.value.errno is Errno.ENOSPC
    assert (users.all(), users.keys("").keys) == before  # what was not written does not hold
    assert users.identify(ann.key).user == "ann"  # only the time of that is not kept
    await users.revoke(ann.id)
    assert "was revoked" in refusal(users, ann.key).message
    await users.remove("bob")
    assert "does not exist, or its secret is wrong" in refusal(users, bob.key).message
    store.close()


async def test_keys_are_told_page_by_page(
    users: UserTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEYS_ROWS", 2)
    await users.add(UserAdd("ann"))
    made = [(await users.create_key(KeyCreate("ann"))).id for _ in range(5)]
    told: list[str] = []
    after: int | None = 0
    while after is not None:
        page = users.keys("ann", after)
        assert len(page.keys) <= 2
        told += [key.id for key in page.keys]
        after = page.more
    assert sorted(told) == sorted(made)
