"""Authentication: peer credentials, keys, profiles, and changes while clients are connected."""

import os
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno
from llmasos.kernel.abi.wire import ERROR, REPLY
from tests.system.daemon import Machine
from tests.system.raw import Raw, hung_up_on, raw

WORD = {"role": "user", "content": "word"}
BOB = 65534  # a user of the system that owns nothing
AS_BOB = pytest.mark.skipif(os.geteuid() != 0, reason="only root can connect as somebody else")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that other users of the system can reach."""
    root = Path(tempfile.mkdtemp(prefix="llmasos-door-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def shared(open_place: Path) -> Iterator[Machine]:
    """A machine that other users of the system may come to."""
    machine = Machine(open_place)
    machine.start("--mount", "false", "--shared", "true", "--group", "nogroup")
    yield machine
    machine.down()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine of one user, for tests that leave it as it was but for keys."""
    machine = Machine(tmp_path_factory.mktemp("plain"))
    machine.start("--mount", "false")
    yield machine
    machine.down()


@contextmanager
def somebody(uid: int) -> Generator[None]:
    """The system takes us for another user meanwhile."""
    os.setegid(BOB)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def bob(machine: Machine) -> Generator[Raw]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        with somebody(BOB):
            connection.connect(str(machine.paths.socket))
        yield Raw(connection)


@contextmanager
def owner(machine: Machine) -> Generator[Raw]:
    with raw(machine.paths.socket, "owner") as client:
        yield client


def hello(client: Raw, **fields: object) -> dict[str, Any]:
    return client.call("hello", version=limits.PROTOCOL_VERSION, **fields)


def refused(client: Raw, **fields: object) -> dict[str, Any]:
    """Why hello was refused, as the last words before the connection closes."""
    client.send("hello", version=limits.PROTOCOL_VERSION, **fields)
    kind, _, error = client.receive()
    assert kind == ERROR
    assert error["errno"] == Errno.EACCES
    closed(client)
    words: dict[str, Any] = error
    return words


def closed(client: Raw) -> None:
    with pytest.raises((EOFError, ConnectionError)):
        while True:
            client.receive()


# --- the two forms ----------------------------------------------------------------------------
@AS_BOB
def test_a_larger_share_from_the_start_takes_the_right_to_nice(shared: Machine) -> None:
    with owner(shared) as boss:
        boss.call("user_add", name="bob", uid=BOB, role="guest")
        with bob(shared) as guest:
            hello(guest, profile="operator")
            guest.send("spawn", model="echo", nice=-1)
            kind, _, error = guest.receive()
            assert (kind, error["errno"]) == (ERROR, Errno.EACCES)
            assert "may not nice" in error["message"]
            pid = guest.call("spawn", model="echo", nice=5)["pid"]
            assert guest.call("ps", pid=pid)["processes"][0]["nice"] == 5
        boss.call("user_role", name="bob", role="user")
        with bob(shared) as user:
            hello(user, profile="operator")
            parent = user.call("spawn", model="echo", nice=-20)["pid"]
            child = user.call("fork", pid=parent, nice=-20)["pids"][0]
            assert user.call("ps", pid=child)["processes"][0]["nice"] == -20
        boss.call("policy_edit", add=["p, u:bob, nice, /proc/*, deny"])
        with bob(shared) as user:
            hello(user, profile="operator")
            user.send("fork", pid=pid, nice=4)
            kind, _, error = user.receive()
            assert (kind, error["errno"]) == (ERROR, Errno.EACCES)
            user.call("fork", pid=pid, nice=5)
            user.call("fork", pid=parent)  # as its parent is


@AS_BOB
def test_a_private_machine_is_its_owner_s_alone(machine: Machine) -> None:
    machine.start("--mount", "false")
    assert machine.paths.socket.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PermissionError), bob(machine):
        pass


@AS_BOB
def test_a_shared_machine_knows_its_users_and_nobody_else(shared: Machine) -> None:
    assert shared.paths.socket.stat().st_mode & 0o777 == 0o660
    with bob(shared) as client:
        assert "is not in the user table" in refused(client)["message"]
    with owner(shared) as root:
        root.call("user_add", name="bob", uid=BOB, role="user")
    with bob(shared) as client:
        assert hello(client, profile="operator")["owner"] == "bob"
        pid = client.call("spawn", model="echo")["pid"]
        assert [p["pid"] for p in client.call("ps")["processes"]] == [pid]
        assert client.refused("shutdown")["errno"] == Errno.EACCES  # his role caps the profile
        assert client.refused("user_add", name="eve")["errno"] == Errno.EACCES
    with owner(shared) as root:
        assert root.call("ps")["processes"] == []  # his are his
        assert root.refused("kill", pid=pid)["errno"] == Errno.ESRCH


@AS_BOB
def test_nobody_but_an_owner_chooses_the_profile_of_an_owner(shared: Machine) -> None:
    with owner(shared) as root:
        root.call("user_add", name="bob", uid=BOB, role="operator")
    with bob(shared) as client:
        said = client.refused("hello", version=limits.PROTOCOL_VERSION, profile="owner")
        assert "u:bob may not connect as owner" in said["message"]


@AS_BOB
def test_each_user_has_so_many_places(open_place: Path) -> None:
    machine = Machine(open_place)
    machine.start(
        "--mount", "false", "--shared", "true", "--group", "nogroup", "--user-connections", "2"
    )
    try:
        with bob(machine) as one, bob(machine), bob(machine) as late:
            assert late.receive()[2]["errno"] == Errno.EAGAIN
            closed(late)
            with owner(machine) as root:  # whom that does not touch
                assert root.call("stat")["connections"] == 3
            one.socket.close()
            for _ in range(100):
                with bob(machine) as again:
                    if again.refused("ps")["errno"] == Errno.EPROTO:  # it has a place
                        return
        pytest.fail("the place of who left was never free")
    finally:
        machine.down()


# --- keys -------------------------------------------------------------------------------------
def key(root: Raw, user: str, **fields: object) -> dict[str, Any]:
    return root.call("key_create", user=user, **fields)


@AS_BOB
def test_a_key_speaks_for_whom_the_system_does_not_know(shared: Machine) -> None:
    with owner(shared) as root:
        root.call("user_add", name="alice")
        made = key(root, "alice")
        with bob(shared) as client:
            assert hello(client, key=made["key"])["owner"] == "alice"
            [info] = [u for u in root.call("user_list")["users"] if u["name"] == "alice"]
            assert (info["keys"], info["connections"]) == (1, 1)


def test_a_key_of_another_user_is_refused(plain: Machine) -> None:
    with owner(plain) as root:
        root.call("user_add", name="alice")
        made = key(root, "alice")
    with raw(plain.paths.socket, None) as client:
        assert "alice" in refused(client, key=made["key"])["message"]
    with owner(plain) as root:
        root.call("user_remove", name="alice")


def test_a_key_that_is_none_is_refused_and_journaled(machine: Machine) -> None:
    machine.start("--mount", "false")
    wrong = ("not-a-key-4711", "llmasos_aaaaaaaaaa_" + "x" * 43, "k" * 900)
    for key in wrong:
        with raw(machine.paths.socket, None) as client:
            assert key not in refused(client, key=key)["message"]
    with raw(machine.paths.socket, "operator") as client:
        client.send("watch", since=0, kinds=["refused"], follow=False)
        events = client.receive()[2]["events"]
    rows = [(one["syscall"], one["errno"]) for one in events if one["syscall"]]
    assert set(rows) == {("hello", Errno.EACCES)}  # some stand in one row, which counts them
    assert not any(key in one["note"] for key in wrong for one in events)


def test_the_owner_s_own_key_is_checked_too(plain: Machine) -> None:
    with owner(plain) as root:
        name = root.call("stat")["owner"]
        made = key(root, name)
        root.call("key_revoke", id=made["id"])
    with raw(plain.paths.socket, None) as client:
        assert "revoked" in refused(client, key=made["key"])["message"]


def test_a_revoked_key_ends_its_connections_and_their_calls_at_once(plain: Machine) -> None:
    with owner(plain) as root:
        made = key(root, root.call("stat")["owner"])
        with raw(plain.paths.socket, None) as client:
            hello(client, key=made["key"])
            client.send("watch")
            root.call("key_revoke", id=made["id"])
            said = list[object]()
            with pytest.raises((EOFError, ConnectionError)):
                while True:
                    said.append(client.receive())
            assert "revoked" in str(said)


def test_a_key_that_expires_ends_its_connections(plain: Machine) -> None:
    with owner(plain) as root:
        made = key(root, root.call("stat")["owner"], expires_s=1.0)
        with raw(plain.paths.socket, None) as client:
            hello(client, key=made["key"])
            assert "expired" in client.receive()[2]["message"]
            closed(client)
        with raw(plain.paths.socket, None) as client:
            assert "expired" in refused(client, key=made["key"])["message"]


@AS_BOB
def test_a_user_who_is_removed_while_connected_is_out(shared: Machine) -> None:
    with owner(shared) as root:
        root.call("user_add", name="bob", uid=BOB)
        with bob(shared) as client:
            hello(client)
            root.call("user_remove", name="bob")
            assert "removed" in client.receive()[2]["message"]
            closed(client)
    with bob(shared) as client:
        refused(client)


@AS_BOB
def test_who_gets_a_name_anew_is_somebody_else(shared: Machine) -> None:
    """Neither what the one before has left nor a connection that it holds is the new one's."""
    with owner(shared) as root, bob(shared) as early, bob(shared) as late:
        root.call("user_add", name="alice", uid=BOB)
        hello(early)
        pid = early.call("spawn", model="echo", system="a secret")["pid"]
        root.call("user_remove", name="alice")
        root.call("user_add", name="alice", uid=BOB - 1)
        assert "removed" in early.receive()[2]["message"]
        assert "is not in the user table" in refused(late)["message"]
        made = key(root, "alice")
    with bob(shared) as client:
        hello(client, key=made["key"], profile="operator")
        assert client.refused("read_mem", pid=pid)["errno"] == Errno.ESRCH
        assert client.call("ps")["processes"] == []


@AS_BOB
def test_nobody_reads_of_others_what_is_not_theirs(shared: Machine) -> None:
    with owner(shared) as root:
        root.call("user_add", name="bob", uid=BOB)
        refusal = root.refused("user_remove", name="nobody")  # no refusal of the gate
        assert refusal["errno"] == Errno.ENOENT
        with raw(shared.paths.socket, None) as stranger:
            refused(stranger, key="llmasos_aaaaaaaaaa_" + "x" * 43)
        with bob(shared) as client:
            hello(client, profile="operator")
            client.send("watch", since=0, kinds=["refused"], follow=False)
            assert client.receive()[0] == REPLY  # not one event
            said = client.refused("policy_check", subjects=["u:root"], action="ps", object="/proc")
            assert said["errno"] == Errno.EACCES
            mine = {"subjects": ["u:bob", "r:careful"], "action": "ps", "object": "/proc/own"}
            assert client.call("policy_check", **mine)["effect"] == "allow"
    assert any("aaaaaaaaaa" in note for note in hung_up_on(shared.paths.socket))


@AS_BOB
def test_what_is_done_is_told_also_to_who_may_it_no_more(shared: Machine) -> None:
    with owner(shared) as root:
        root.call("user_add", name="bob", uid=BOB, role="owner")
    with bob(shared) as client:
        hello(client, profile="owner")
        assert client.call("user_role", name="bob", role="guest")["role"] == "guest"
        assert client.refused("user_list")["errno"] == Errno.EACCES


def test_the_owner_of_the_socket_cannot_be_removed(plain: Machine) -> None:
    with owner(plain) as root:
        name = root.call("stat")["owner"]
        assert root.refused("user_remove", name=name)["errno"] == Errno.EINVAL
        assert root.refused("user_role", name=name, role="guest")["errno"] == Errno.EINVAL


def test_a_login_with_another_name_keeps_what_is_its_own(machine: Machine) -> None:
    machine.start("--mount", "false")
    with owner(machine) as root:
        name = root.call("stat")["owner"]
        pid = root.call("spawn", model="echo")["pid"]
    machine.stop()
    with closing(sqlite3.connect(machine.paths.state / "users.db")) as users, users:
        users.execute("UPDATE users SET name = 'before' WHERE name = ?", (name,))
    with closing(sqlite3.connect(machine.paths.state / "processes.db")) as processes, processes:
        processes.execute("UPDATE processes SET owner = 'before'")
    machine.start("--mount", "false")
    with owner(machine) as root:
        assert root.call("stat")["owner"] == "before"
        assert [process["pid"] for process in root.call("ps")["processes"]] == [pid]
        root.call("user_add", name="alice")  # nobody is taken for removed by it
        assert root.call("ps")["processes"]


def test_a_machine_moves_to_another_uid(machine: Machine) -> None:
    machine.start("--mount", "false")
    machine.stop()
    with closing(sqlite3.connect(machine.paths.state / "users.db")) as users, users:
        users.execute("UPDATE users SET uid = 4711, role = 'guest'")
    machine.start("--mount", "false")
    with owner(machine) as root:
        [me] = root.call("user_list")["users"]
        assert (me["uid"], me["role"]) == (os.geteuid(), "owner")


# --- the gate over the socket -----------------------------------------------------------------
def test_ask_never_allows_and_says_that_a_person_could(plain: Machine) -> None:
    with owner(plain) as root, raw(plain.paths.socket) as client:
        root.call("policy_edit", add=["p, r:careful, spawn, /dev/image/echo, ask"])
        error = client.refused("spawn", model="echo")
        assert error["errno"] == Errno.EACCES
        assert error["needs_approval"] is True
        assert "policy.csv:1" in error["message"]
        root.call("policy_edit", undo=True)
        assert client.call("spawn", model="echo")["pid"]


def test_a_revocation_reaches_calls_in_flight(machine: Machine) -> None:
    machine.start("--mount", "false")
    with owner(machine) as root, raw(machine.paths.socket) as client:
        root.call("mount", image="echo", options={"rate": 50})
        pid = client.call("spawn", model="echo")["pid"]
        number = client.send(
            "generate", pid=pid, messages=[{"role": "user", "content": "word " * 400}]
        )
        while client.receive()[1] != number:
            pass
        root.call("policy_edit", add=["p, r:careful, generate, /proc/*, deny"])
        kind, _, error = client.answer(number)
        assert (kind, error["errno"]) == (ERROR, Errno.EACCES)
        assert "policy.csv:1" in error["message"]
        assert client.refused("generate", pid=pid, messages=[WORD])["errno"] == Errno.EACCES


def test_a_refusal_can_be_explained_by_its_number(plain: Machine) -> None:
    with owner(plain) as root, raw(plain.paths.socket) as client:
        error = client.refused("shutdown")
        number = int(error["hint"].split("explain ")[1].split("`")[0])
        verdict = root.call("policy_check", call=number)
        assert (verdict["effect"], verdict["action"]) == ("deny", "shutdown")
        effects = {one["subject"]: one["effect"] for one in verdict["rulings"]}
        assert effects["r:careful"] == "deny"
        [change] = verdict["change"]
        assert change["add"] is True
        assert change["rule"]["text"] == "p, r:careful, shutdown, /kernel, allow"


def test_a_rule_about_own_processes_is_found_when_another_acts_as_one(plain: Machine) -> None:
    row = "p, app:poet, generate, /proc/own/*, deny"
    with owner(plain) as root, raw(plain.paths.socket, None) as poet:
        hello(poet, profile="careful", app="poet")
        pid = poet.call("spawn", model="echo")["pid"]
        root.call("policy_edit", add=[row])
        try:
            with raw(plain.paths.socket, "operator") as client:
                error = client.refused("generate", pid=pid, messages=[WORD])
            number = int(error["hint"].split("explain ")[1].split("`")[0])
            verdict = root.call("policy_check", call=number)
        finally:
            root.call("policy_edit", remove=[row])
        assert verdict["effect"] == "deny"
        assert [(one["add"], one["rule"]["text"]) for one in verdict["change"]] == [(False, row)]


def test_recorded_calls_are_simulated_and_learned_from(machine: Machine) -> None:
    machine.start("--mount", "false")
    with owner(machine) as root, raw(machine.paths.socket) as client:
        pid = client.call("spawn", model="echo", app="poet")["pid"]
        client.call("generate", pid=pid, messages=[{"role": "user", "content": "hi"}])
        client.refused("shutdown")
        found = root.call("policy_simulate", text="p, r:careful, generate, /proc/*, deny\n")
        assert [one["action"] for one in found["blocked"]] == ["generate"]
        found = root.call("policy_simulate", text="p, r:careful, shutdown, /kernel, allow\n")
        assert [one["action"] for one in found["allowed"]] == ["shutdown"]
        learned = root.call("policy_learn", pid=pid)
        assert "p, app:poet, generate, /proc/own/*, allow" in learned["rules"]
        assert not any("shutdown" in rule for rule in learned["rules"])


def test_an_alias_of_a_model_is_no_alias_of_a_user(machine: Machine) -> None:
    """The gate and the journal speak of the user that was named."""
    machine.start("--mount", "false")
    with owner(machine) as root:
        root.call("policy_edit", add=["p, r:owner, user_add, /users/alice, deny"])
        root.call("image_add", name="alice", image="echo")
        assert root.refused("user_add", name="alice")["errno"] == Errno.EACCES


def test_counters_do_not_grow_with_every_process_that_was_asked_for(machine: Machine) -> None:
    machine.start("--mount", "false")
    with raw(machine.paths.socket) as client:
        for _ in range(3):
            client.call("read_mem", pid=client.call("spawn", model="echo")["pid"])
        for pid in range(100, 150):
            client.refused("read_mem", pid=pid)
    machine.stop()
    with closing(sqlite3.connect(machine.paths.state / "counters.db")) as counters:
        sql = "SELECT object, calls FROM counters WHERE syscall = 'read_mem'"
        assert counters.execute(sql).fetchall() == [("/proc/own/0/mem", 3)]
