"""`llmasos users` and `llmasos keys`: who is let in, what their keys do, and when they stop."""

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmasos import LLMasOS
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Keys, UserRole
from llmasos.kernel.access.identity import NO_KEY
from llmasos.userland.cli import exits, table
from llmasos.userland.cli.duration import duration
from tests.conftest import Machine
from tests.files import containing
from tests.system.raw import Raw, raw
from tests.system.test_authentication import AS_BOB, BOB, bob, closed, hello, refused
from tests.system.test_tls import flags, port
from tests.userland.inside import Cli, command, without_rules

KEY = re.compile(r"llmasos_([a-z2-7]{10})_[A-Za-z0-9_-]{43}\n")


@pytest.fixture(scope="module")
def box() -> Iterator[Machine]:
    """A machine that other users of the system can reach, where that can be tried."""
    root = Path(tempfile.mkdtemp(prefix="llmasos-users-"))
    root.chmod(0o755)
    machine = Machine(root)
    machine.start("--mount", "false", *(
        () if os.geteuid() else ("--shared", "true", "--group", "nogroup")
    ))  # fmt: skip
    yield machine
    machine.down()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def cli(
    box: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """The command line; nobody but the owner is a user before and after."""
    run = command(box, monkeypatch, capsys)
    yield run
    without_rules(box)
    for user in run("users", "list", "--json").json["users"]:
        run("users", "rm", "-y", user["name"])  # the owner stays


@pytest.fixture
def me(cli: Cli) -> str:
    [user] = cli("users", "list", "--json").json["users"]
    assert user["role"] == "owner"
    name: str = user["name"]
    return name


def make(cli: Cli, *words: str) -> tuple[str, str]:
    """A key and its id."""
    said = cli("keys", "create", *words)
    found = KEY.fullmatch(said.out)
    assert found is not None
    return said.out.strip(), found[1]


# --- users ------------------------------------------------------------------------------------
def test_users_come_change_and_go(cli: Cli, me: str) -> None:
    said = cli("users", "add", "alice", "--uid", "1001")
    assert (said.code, said.out.split()[6:9]) == (exits.OK, ["alice", "1001", "user"])
    assert said.err == ""
    said = cli("users", "add", "robot", "--role", "guest")
    assert cli("users", "list", "--json").json["users"][1]["uid"] is None
    line = said.pasted().split()[1:]
    assert cli(*line).code == exits.OK  # makes the key that the robot comes by
    assert cli("policy", "test", "u:alice", "mount", "/dev/image/echo").code == exits.OK
    assert cli("users", "role", "alice", "guest", "--json").json["role"] == "guest"
    assert cli("policy", "test", "u:alice", "mount", "/dev/image/echo").code == exits.DENIED
    assert " operator " in cli("users", "role", "alice", "operator").out
    said = cli("users", "list")
    assert (said.narrow, [line.split()[0] for line in said.out.splitlines()[1:]]) == (
        True, sorted(["alice", "robot", me]),
    )  # fmt: skip
    said = cli("users", "rm", "-y", "alice")
    assert (said.code, said.err) == (
        exits.OK,
        "removed alice with all keys, processes and pages\n",
    )
    assert cli("users", "rm", "-y", "robot", "--json").json == {
        "name": "robot", "removed": True, "rules": [],
    }  # fmt: skip
    assert cli("keys", "list", "--json").json["keys"] == []
    assert cli("policy", "test", "u:alice", "ps", "/proc").code == exits.DENIED


def test_a_user_of_the_system_is_not_let_in_by_a_machine_that_only_listens(
    machine: Machine, certificates: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    machine.start(*flags(certificates, port()))
    cli = command(machine, monkeypatch, capsys)
    assert "only the owner can connect" in cli("users", "add", "alice", "--uid", "1001").err
    assert "only the owner" not in cli("users", "add", "robot").err  # it comes by TCP


def test_the_json_of_a_user(cli: Cli) -> None:
    made = cli("users", "add", "alice", "--json").json
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made.pop("created"))
    assert made == {"name": "alice", "uid": None, "role": "user", "keys": 0, "connections": 0}


def test_what_is_taken_is_not_given_twice(cli: Cli, me: str) -> None:
    cli("users", "add", "alice", "--uid", "1001")
    for line, words in (
        ("alice", "user alice already exists, with uid 1001 and role user"),
        ("alice --uid 7", "user alice already exists"), (me, f"user {me} already exists"),
        ("bob --uid 1001", "uid 1001 already belongs to user alice"),
        (f"bob --uid {os.geteuid()}", f"belongs to user {me}"),
    ):  # fmt: skip
        said = cli("users", "add", *line.split())
        assert (said.code, said.out, words in said.err) == (exits.FAILED, "", True), said.err
        assert "`llmasos users" in said.err


def test_the_owner_cannot_be_removed_and_nobody_is_asked_about_it(cli: Cli, me: str) -> None:
    cli("users", "add", "alice")
    for name, words in ((me, f"{me} owns this machine's socket"), ("nobody", "nobody")):
        said = cli("users", "rm", name)
        assert said.code != exits.OK
        assert words in said.err
        assert "asked" not in said.err
    assert "cannot ask for confirmation" in cli("users", "rm", "alice").err
    assert len(cli("users", "list", "--json").json["users"]) == 2


@pytest.mark.parametrize("name", ["a b", "", ".a", "-", "ä", "a/b", "a:b", "x" * 33, "a\n"])
def test_a_name_is_plain(cli: Cli, name: str) -> None:
    for line in (
        ["users", "add", "--", name], ["users", "rm", "-y", "--", name],
        ["users", "role", "--", name, "user"],
        ["keys", "list", f"--user={name}"], ["keys", "create", f"--user={name}"],
    ):  # fmt: skip
        said = cli(*line)
        assert (said.code, said.out) == (exits.USAGE, ""), line
    with raw(Path(os.environ["LLMASOS_RUNTIME_DIR"], "kernel.sock"), "owner") as owner:
        owner.refused("user_add", name=name)  # the kernel says so too


@pytest.mark.parametrize(
    "line",
    ["add x --uid -1", "add x --uid 4294967295", "add x --uid abc", "add x --role king", "add",
     "role x king", "role x", "rm", "add x y"],
)  # fmt: skip
def test_wrong_words_are_wrong_usage(cli: Cli, line: str) -> None:
    said = cli("users", *line.split())
    assert (said.code, said.out, "e+" in said.err) == (exits.USAGE, "", False)


def test_who_is_not_there_is_not_found(cli: Cli, me: str) -> None:
    for line in ("users rm -y bob", "users role bob user", "keys create --user bob"):
        said = cli(*line.split())
        assert (said.code, f"no user bob; users: {me}" in said.err) == (exits.NOT_FOUND, True)
        assert said.pasted() == "llmasos users add bob"


def test_the_owner_of_the_socket_stays_its_owner(cli: Cli, me: str) -> None:
    for line in (["rm", "-y", me], ["role", me, "guest"]):
        said = cli("users", *line)
        assert (said.code, "it stays owner" in said.err) == (exits.FAILED, True)


def test_rules_that_outlive_their_user_are_told(cli: Cli) -> None:
    cli("users", "add", "alice")
    cli("policy", "add", "p, u:alice, shutdown, /kernel, allow", "p, u:al, ps, /proc, deny")
    said = cli("users", "rm", "-y", "alice")
    assert (
        "these rules remain and would apply to a new user alice:\n  p, u:alice, shutdown"
        in said.err
    )
    assert "u:al," not in said.err


def test_the_roles_are_the_kernel_s() -> None:
    assert set(table.ROLES) == set(UserRole)


# --- keys -------------------------------------------------------------------------------------
def test_a_key_is_shown_once_and_kept_nowhere(cli: Cli, box: Machine, me: str) -> None:
    key, id = make(cli, "--user", me)
    said = cli("keys", "create", "--user", me, "--expires", "90d")
    assert re.search(
        r"store it now, it is not shown again; it expires at \d{4}-\d\d-\d\d \d\d:\d\d UTC",
        said.err,
    )
    told = cli("keys", "create", "--user", me, "--expires", "2w", "--json").json
    assert set(told) == {"id", "key", "user", "expires"}
    with raw(box.paths.socket, None) as client:
        assert hello(client, key=key)["owner"] == me
    said = cli("keys", "list")
    rows = {line.split()[0]: line.split() for line in said.out.splitlines()}
    assert (said.narrow, rows["ID"]) == (True, ["ID", "USER", "CREATED", "USED", "(UTC)", "STATE"])
    assert (rows[id][1], rows[id][-1], rows[told["id"]][3:5]) == (me, "valid", ["-", "until"])
    listed = cli("keys", "list", "--user", me, "--json")
    [one] = [one for one in listed.json["keys"] if one["id"] == id]
    assert (one["revoked"], one["expires"], one["used"][-1]) == (None, None, "Z")
    secret = key.split("_", 2)[2]
    assert cli("keys", "revoke", key).code == exits.OK  # the whole of it, where the id would do
    assert containing(box.paths.state, b"")
    assert not containing(box.paths.state, secret.encode())
    assert secret not in said.out + listed.out + cli("logs").out + box.log


def test_a_revoked_key_ends_its_connections(cli: Cli, box: Machine, me: str) -> None:
    key, id = make(cli, "--user", me)
    with raw(box.paths.socket, None) as client:
        hello(client, key=key)
        said = cli("keys", "revoke", id)
        assert (said.code, said.err) == (
            exits.OK,
            f"revoked key {id}; its connections are closed\n",
        )
        closed(client)
    with raw(box.paths.socket, None) as client:
        assert f"the key {id} was revoked" in refused(client, key=key)["message"]
    assert f"{id}  " in cli("keys", "list").out
    assert "revoked 20" in cli("keys", "list").out
    assert cli("keys", "revoke", key, "--json").json == {"id": id, "revoked": True}  # again


def test_an_expired_key_ends_its_connections(cli: Cli, box: Machine, me: str) -> None:
    key, id = make(cli, "--user", me, "--expires", "1s")
    with raw(box.paths.socket, None) as client:
        hello(client, key=key)
        closed(client)
    with raw(box.paths.socket, None) as client:
        error = refused(client, key=key)
    assert f"the key {id} expired" in error["message"]
    assert error["hint"].split("`")[1] == f"llmasos keys create --user {me}"
    assert "expired 20" in cli("keys", "list").out


@pytest.mark.parametrize(
    ("key", "words"),
    [("llmasos_abcdefghij_" + "x" * 43, "does not exist, or its secret is wrong"),
     ("sk-1234", "not an LLMasOS key"),
     ("", "not an LLMasOS key")],
)  # fmt: skip
def test_a_wrong_key_is_refused_unrepeated(cli: Cli, box: Machine, key: str, words: str) -> None:
    with raw(box.paths.socket, None) as client:
        error = refused(client, key=key)
    assert (words in error["message"], bool(key) and key in error["message"]) == (True, False)
    said = cli("logs", "--kind", "refused")
    assert (words in said.out, "x" * 43 in said.out) == (True, False)


def test_another_s_key_and_the_placeholder(cli: Cli, box: Machine, me: str) -> None:
    cli("users", "add", "robot")
    key, _ = make(cli, "--user", "robot")
    with raw(box.paths.socket, None) as client:
        error = refused(client, key=key)
    assert f"this key belongs to robot, and you are {me}" in error["message"]
    assert cli(*error["hint"].split("`")[1].split()[1:]).code == exits.OK
    with raw(box.paths.socket, None) as client:
        welcome = hello(client, key=NO_KEY)
    assert (welcome["owner"], NO_KEY in welcome["notices"][0]) == (me, True)


@pytest.mark.parametrize("id", ["nope", "a b", "../x", "_", "ä"])
def test_what_is_no_id_of_a_key_is_refused(cli: Cli, id: str) -> None:
    said = cli("keys", "revoke", id)
    assert (said.code, "want the ten letters" in said.err) == (exits.FAILED, True)


@pytest.mark.parametrize("id", ["abcdefghij", "llmasos_abcdefghij_" + "x" * 43])
def test_a_key_that_is_not_there_cannot_be_revoked(cli: Cli, id: str) -> None:
    said = cli("keys", "revoke", id)
    assert (said.code, "no key with that id" in said.err) == (exits.NOT_FOUND, True)
    assert said.pasted() == "llmasos keys list"


def test_who_has_no_key_is_told(cli: Cli) -> None:
    cli("users", "add", "keyless")
    said = cli("keys", "list", "--user", "keyless")
    assert (said.code, said.out, said.err) == (exits.OK, "", "no keys of keyless\n")
    said = cli("keys", "list", "--user", "nobody")
    assert (said.code, "no user nobody" in said.err) == (exits.NOT_FOUND, True)


def test_more_keys_than_a_reply_holds_are_listed_all(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 2 * limits.KEYS_ROWS + 10
    machine.start("--mount", "false")
    with raw(machine.paths.socket, "owner") as owner:
        owner.call("user_add", name="alice")
    machine.stop()
    with closing(sqlite3.connect(machine.paths.state / "users.db")) as users, users:
        sql = "INSERT INTO keys(id, user, hash, created) VALUES(?,'alice',x'',?)"
        users.executemany(sql, [(f"k{number}", number) for number in range(count)])
    machine.start("--mount", "false")
    told = command(machine, monkeypatch, capsys)("keys", "list", "--json").json["keys"]
    assert [key["id"] for key in told] == [f"k{number}" for number in range(count)]
    with LLMasOS(socket=machine.paths.socket, profile="owner") as client:
        page = client.key_list("alice")
        assert (len(page.keys), page.more) == (limits.KEYS_ROWS, limits.KEYS_ROWS)
        page = client.key_list("alice", after=2 * limits.KEYS_ROWS)
        assert (page.keys[0].id, page.more) == (f"k{2 * limits.KEYS_ROWS}", None)
        assert len(page.keys) == 10
        assert client.key_list(after=count) == Keys([], None)


# --- durations --------------------------------------------------------------------------------
def test_durations_have_a_unit() -> None:
    texts = ("1s", "30m", "12h", "90d", "2w")
    assert [duration(text) for text in texts] == [1, 1800, 43_200, 7_776_000, 1_209_600]


@pytest.mark.parametrize("text", ["", "5", "d", "0s", "-1d", "1.5h", "1y", "1 d", "²d", "99999w"])
def test_what_is_no_duration_is_refused(cli: Cli, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        duration(text)
    said = cli("keys", "create", "--user", "x", f"--expires={text}")
    assert (said.code, "as 30m, 12h, 90d or 2w" in said.err) == (exits.USAGE, True)


# --- other users ------------------------------------------------------------------------------
def comes(client: Raw, **fields: object) -> None:
    hello(client, profile="operator", **fields)


@AS_BOB
def test_who_is_let_in_is_known_by_number_or_by_key(cli: Cli, box: Machine) -> None:
    cli("users", "add", "robot", "--role", "guest")
    key, _ = make(cli, "--user", "robot")
    with bob(box) as client:
        comes(client, key=key)
        assert cli("users", "list", "--json").json["users"][0]["connections"] == 1
        assert "may not stat" in client.refused("stat")["message"]
    cli("users", "add", "bob", "--uid", str(BOB))
    with bob(box) as client:
        assert "belongs to robot, and you are bob" in refused(client, key=key)["message"]
    with bob(box) as client:
        comes(client)
        client.call("stat")
        cli("users", "role", "bob", "guest")
        client.refused("stat")
        cli("users", "rm", "-y", "bob")
        closed(client)


@AS_BOB
def test_what_others_did_is_explained_to_an_owner_alone(cli: Cli, box: Machine) -> None:
    cli("users", "add", "bob", "--uid", str(BOB))
    cli("policy", "add", "p, r:operator, unmount, /dev/image/echo, deny")
    mine = int(cli("unmount", "echo").pasted().split()[-1])
    with bob(box) as client:
        comes(client)
        theirs = int(client.refused("shutdown")["hint"].split("`")[1].split()[-1])
        assert client.call("policy_check", call=theirs)["action"] == "shutdown"
        assert f"no call {mine} of yours" in client.refused("policy_check", call=mine)["message"]
    with raw(box.paths.socket) as careful:  # of the owner, but not as one
        careful.refused("policy_check", call=theirs)
    assert cli("policy", "explain", str(theirs)).out.startswith("deny  shutdown /kernel\n")
