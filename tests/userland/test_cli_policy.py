"""P-06: `llmasos policy` over a real socket: what verbs print, how they end, what they refuse."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.userland.cli import exits
from tests.conftest import Machine, documents
from tests.system.raw import raw
from tests.userland.inside import Cli, command, without_rules

ROOT = Path(__file__).parents[2]
PS = "p, r:careful, ps, /proc, deny"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("policy"))
    machine.start("--mount", "false")
    yield machine
    machine.down()


@pytest.fixture
def cli(
    box: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    yield command(box, monkeypatch, capsys)
    without_rules(box)


@pytest.fixture(scope="module")
def me(box: Machine) -> str:
    """The subject that the owner is."""
    [user] = documents(box.llmasos("users", "list", "--json"))[0]["users"]
    return f"u:{user['name']}"


# --- list, add, rm, undo, reload --------------------------------------------------------------
def test_rules_are_listed_with_their_place(cli: Cli, me: str, box: Machine) -> None:
    said = cli("policy", "list")
    assert (said.code, said.narrow) == (exits.OK, True)
    assert f"g, {me}, r:owner" in said.out
    assert "careful.csv:5" in said.out
    assert str(box.paths.policy_file) in said.err
    assert cli("policy", "list", "--own").out == "RULE  WHERE\n"
    with raw(box.paths.socket, "owner") as owner:
        owner.call(
            "policy_edit", text="".join(f"p, pid:{n}, ps, /proc, deny\n" for n in range(1, 700))
        )
    found = cli("policy", "list", "--own", "--json").json
    assert [rule["line"] for rule in found["rules"]] == list(range(1, 700))
    assert found["own"] == str(box.paths.policy_file)


def test_rules_come_and_go_and_come_back(cli: Cli) -> None:
    said = cli("policy", "add", "p,r:careful,ps,/proc,deny  # a reason", "p, r:x, ps, /proc, ask")
    assert (said.code, said.out) == (exits.OK, f"+ {PS}\n+ p, r:x, ps, /proc, ask\n")
    said = cli("policy", "rm", PS, "--json")
    assert said.json["removed"] == [PS]
    assert cli("policy", "undo", "--json").json["added"] == [PS]
    assert cli("policy", "undo").out == f"- {PS}\n- p, r:x, ps, /proc, ask\n"
    said = cli("policy", "reload")
    assert (said.out, said.err) == ("", "no rules added or removed\n")


def test_undo_ends_where_nothing_is_kept(machine: Machine) -> None:
    done = machine.llmasos("policy", "undo", check=False)
    assert b"started a private daemon" in done.stderr
    assert (done.returncode, b"no previous version" in done.stderr) == (exits.FAILED, True)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["p, r:careful, ps, /proc, Deny"], "`p, r:careful, ps, /proc, Deny`: effect 'Deny'"),
        ([PS, "nonsense", "p, r:x"], "`nonsense`: 'nonsense' with 0 fields"),
        (["g, r:a, r:b", "g, r:b, r:a"], "`g, r:b, r:a`: the role r:a contains itself"),
        ([f"{PS}\n{PS}"], "a row is one line"),
        (["# hidden\u2028p, r:careful, mount, /dev/image/*, allow"], "the character '\\u2028'"),
        ([""], "add.0"),
    ],
)  # fmt: skip
def test_a_row_with_a_mistake_changes_nothing(cli: Cli, rows: list[str], words: str) -> None:
    cli("policy", "add", "p, r:x, ps, /proc, ask")
    said = cli("policy", "add", *rows)
    assert (said.code, said.out) == (exits.FAILED, "")
    assert words in said.err
    assert len(cli("policy", "list", "--own", "--json").json["rules"]) == 1


def test_what_is_not_there_cannot_be_removed(cli: Cli) -> None:
    cli("policy", "add", PS)
    for row in ("p, r:careful, ps, /proc, allow", "p, r:x, ps, /proc, deny", "# "):
        assert cli("policy", "rm", PS, row).code == exits.NOT_FOUND, row
    assert cli("policy", "rm", PS, "").code == exits.FAILED
    assert "`llmasos policy list --own`" in cli("policy", "rm", "p, r:x, ps, /proc, deny").err
    assert PS in cli("policy", "list", "--own").out


def test_nobody_locks_himself_out(cli: Cli, me: str) -> None:
    for row in (
        "p, r:owner, policy_edit, /kernel/policy, deny", f"p, {me}, *, /*, ask",
        f"p, {me}, hello, /kernel/profile/owner, deny",
    ):  # fmt: skip
        said = cli("policy", "add", row)
        assert (said.code, "no longer edit the rules" in said.err) == (exits.FAILED, True)
    assert cli("policy", "add", PS).code == exits.OK


# --- by hand ----------------------------------------------------------------------------------
def test_a_file_edited_by_hand_comes_into_force_as_it_is(cli: Cli, box: Machine) -> None:
    by_hand = f"# mine\r\n{PS}\r\np, r:x, ps, /proc, ask"
    box.paths.policy_file.write_bytes(by_hand.encode())
    assert cli("ps").code == exits.OK
    assert cli("policy", "reload").out == f"+ {PS}\n+ p, r:x, ps, /proc, ask\n"
    assert cli("ps").code == exits.DENIED
    assert box.paths.policy_file.read_bytes() == by_hand.encode()
    cli("policy", "add", "p, r:y, ps, /proc, ask")
    assert box.paths.policy_file.read_bytes() == f"{by_hand}\np, r:y, ps, /proc, ask\n".encode()
    cli("policy", "rm", PS)
    assert b"# mine\r\np, r:x" in box.paths.policy_file.read_bytes()


def test_a_file_with_a_mistake_leaves_the_rules_in_force(cli: Cli, box: Machine) -> None:
    own = box.paths.policy_file
    cli("policy", "add", "p, r:x, ps, /proc, ask", PS)
    for text, words in (
        (own.read_text()[:-7], "policy.csv:2: 'p' with 3 fields"),  # cut
        ("# hid\u2028p, r:careful, mount, /dev/image/*, allow\n", "policy.csv:1: the character"),
    ):
        own.write_text(text)
        for verb in (["reload"], ["add", "p, r:y, ps, /proc, ask"]):
            said = cli("policy", *verb)
            assert (said.code, words in said.err) == (exits.FAILED, True)
            assert "the rules are unchanged" in said.err
        assert words in cli("policy", "lint").out
        assert own.read_text() == text
    own.write_bytes(b"\xff\n")
    assert "cannot be read" in cli("policy", "reload").err
    assert "not valid UTF-8 at byte 0" in cli("policy", "lint").err
    assert cli("ps").code == exits.DENIED  # all the while


def test_a_file_that_vanished_is_missed(cli: Cli, box: Machine) -> None:
    own = box.paths.policy_file
    cli("policy", "add", PS)
    own.unlink()
    for verb in (["reload"], ["edit"], ["undo"], ["add", "p, r:y, ps, /proc, ask"]):
        said = cli("policy", *verb)
        assert (said.code, "is missing" in said.err) == (exits.FAILED, True)
    assert cli("ps").code == exits.DENIED
    said = cli("policy", "lint")
    assert said.code == exits.USAGE
    assert cli("policy", "lint", "--json").json["mistakes"] == said.out.splitlines()
    cure = said.out.split("`")[1]
    assert cure == f"cp {box.paths.state / 'policy.csv'} {own}"
    shutil.copy(*shlex.split(cure)[1:])
    assert cli("policy", "lint").code == exits.OK
    assert cli("policy", "reload").code == exits.OK
    assert PS in own.read_text()


MISTAKES = [
    "p, r:x, ps, /proc", "q, r:x, ps, /proc, deny", "p, x:y, ps, /proc, deny",
    "p, r:, ps, /proc, deny", "p, pid:x, ps, /proc, deny", "p, r:x, fly, /proc, deny",
    "p, r:x, ps, proc, deny", "p, r:x, ps, /a/*/b, deny", "p, r:x, ps, /a/../b, deny",
    "p, r:x, ps, /a/, deny", "p, r:x, ps, /proc, Deny", "p, r:x, ps, /proc, deny, more",
    "g, r:x, x", "g, x, r:y", "g, r:x", "# hid\u200bden", "# line\rp, r:x, ps, /proc, deny",
    *(f"g, r:d{n}, r:d{n + 1}" for n in range(12)),
]  # fmt: skip


@pytest.mark.parametrize("daemon", [True, False])
def test_lint_names_every_mistake_with_file_and_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daemon: bool
) -> None:
    if not daemon:
        monkeypatch.setenv("LLMASOS_RUNTIME_DIR", str(tmp_path / "nobody"))
    file = tmp_path / "rules.csv"
    file.write_bytes("\n".join(MISTAKES).encode())
    said = cli("policy", "lint", str(file))
    assert said.code == exits.USAGE
    found = said.out.splitlines()
    assert [line.split(": ")[0] for line in found[:-1]] == [f"{file}:{n}" for n in range(1, 18)]
    assert "nested deeper" in found[-1]
    assert f"{file}: 18 mistakes" in said.err
    assert cli("policy", "lint", "--json", str(file)).json == {"file": str(file), "mistakes": found}
    file.write_text("nonsense\n" * 600)
    assert len(cli("policy", "lint", str(file)).out.splitlines()) == 600
    file.write_text(f"{PS}\n")
    assert cli("policy", "lint", str(file)) == (exits.OK, "", f"{file}: no mistakes\n")
    assert cli("policy", "lint").code == exits.OK
    assert cli("policy", "lint", str(tmp_path / "none")).code == exits.NOT_FOUND
    assert cli("policy", "lint", str(tmp_path)).code == exits.FAILED
    assert not (tmp_path / "nobody").exists()


# --- test, explain ----------------------------------------------------------------------------
def test_the_exit_code_of_a_question_is_the_answer(cli: Cli, me: str) -> None:
    cli("policy", "add", "p, r:operator, mount, /dev/image/*, ask")
    for words, effect, code, rule in (
        ("ps /proc", "allow", 0, "owner.csv:15: p, r:owner, *, /*, allow"),
        ("mount /dev/image/echo", "ask", 75, "policy.csv:1: p, r:operator, mount"),
        ("key_list /keys", "deny", 77, "no rule allows it for r:operator"),
    ):
        line = ["policy", "test", me, "r:operator", *words.split()]
        said = cli(*line)
        assert said.code == code
        assert said.out.startswith(f"{effect}  {rule}")
        said = cli(*line, "--json")
        assert (said.code, said.json["effect"]) == (code, effect)


@pytest.mark.parametrize("verb", ["test", "explain"])
@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ("u:a ps", exits.USAGE, "expected SUBJECT..."),
        ("foo ps /proc", exits.USAGE, "'foo' is not a subject"),
        ("u:a r:b ps", exits.USAGE, "'ps' is not an object"),
        ("u:a ps proc", exits.USAGE, "'proc'"),
        ("u: ps /proc", exits.FAILED, "subjects.0"), ("pid:0 ps /proc", exits.FAILED, "subjects.0"),
        ("u:a fly /proc", exits.FAILED, "no syscall fly"),
        ("u:a ps /proc/*", exits.FAILED, "not the path of one"),
        ("u:a ps /a/../b", exits.FAILED, "not the path of one"),
    ],
)  # fmt: skip
def test_a_slip_is_no_deny(cli: Cli, verb: str, words: str, code: int, hint: str) -> None:
    said = cli("policy", verb, *words.split())
    assert (said.code, said.out, hint in said.err) == (code, "", True), said.err


QUESTIONS = [
    ("a rule is missing", "", "ME r:careful shutdown /kernel", "deny"),
    ("to several", "", "u:nobody r:reader app:x pid:7 kill /proc/7", "deny"),
    ("an own deny", PS, "ME r:operator ps /proc", "deny"),
    ("several own denies", f"{PS};{PS};p, r:operator, *, /*, deny;p, ME, ps, /proc, ask",
     "ME r:operator ps /proc", "deny"),
    ("a deny where no allow is", "p, r:careful, shutdown, /kernel, deny",
     "ME r:careful shutdown /kernel", "deny"),
    ("by way of an own role", "g, r:reader, r:strict;p, r:strict, ps, /proc, deny",
     "ME r:reader ps /proc", "deny"),
    ("an ask", "p, r:careful, ps, /proc, ask", "ME r:careful ps /proc", "ask"),
    ("an ask without an allow", "p, r:careful, shutdown, /kernel, ask",
     "ME r:careful shutdown /kernel", "ask"),
    ("an app with a role", "g, app:poet, r:poet", "ME r:careful app:poet pid:7 ps /proc", "deny"),
    ("who has no voice", "", "app:poet pid:7 ps /proc", "deny"),
    ("allowed", "", "ME r:careful app:poet pid:7 ps /proc/own", "allow"),
    ("allowed to one", "", "ME mount /dev/image/echo", "allow"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "words", "effect"), [q[1:] for q in QUESTIONS], ids=[q[0] for q in QUESTIONS]
)
def test_what_explain_tells_to_do_changes_the_answer(
    cli: Cli, me: str, own: str, words: str, effect: str
) -> None:
    if own:
        assert cli("policy", "add", *own.replace("ME", me).split(";")).code == exits.OK
    question = words.replace("ME", me).split()
    said = cli("policy", "explain", *question)
    assert (said.code, said.narrow) == (exits.OK, True)
    assert said.out.startswith(f"{effect}  {' '.join(question[-2:])}\n")
    other = "deny" if effect == "allow" else "allow"
    _, told = said.out.split(f"\nto {other} it:\n")
    for line in told.splitlines():  # as they are pasted
        assert cli(*shlex.split(line, comments=True)[1:]).code == exits.OK, line
    assert cli("policy", "test", *question).out.startswith(f"{other}  ")


def test_explain_tells_rule_place_and_way(cli: Cli, me: str) -> None:
    cli("policy", "add", PS)
    said = cli("policy", "explain", me, "r:operator", "app:x", "ps", "/proc")
    assert [" ".join(line.split()) for line in said.out.splitlines()[2:7]] == [
        f"{me} allow owner.csv:15: p, r:owner, *, /*, allow",
        "through r:owner (socket)",
        f"r:operator deny policy.csv:1: {PS}",
        "through r:careful (operator.csv:14)",
        "app:x allow no rule denies it",
    ]
    told = cli("policy", "explain", me, "r:operator", "ps", "/proc", "--json").json
    rule = {"file": "policy.csv", "line": 1, "text": PS}
    assert (told["change"], told["final"]) == ([{"add": False, "rule": rule}], "")
    assert told["rulings"][1]["rule"] == rule
    assert told["rulings"][1]["roles"][0]["line"] == 14


@pytest.mark.parametrize(("effect", "code"), [("deny", exits.DENIED), ("ask", exits.ASK)])
def test_the_hint_of_a_refusal_explains_it(cli: Cli, effect: str, code: int) -> None:
    row = f"p, r:careful, nice, /proc/*, {effect}"
    cli("policy", "add", row)
    said = cli("nice", "3", "1")
    assert (said.code, f"policy.csv:1: {row}" in said.err) == (code, True)
    hint = shlex.split(said.pasted())[1:]
    assert hint[:2] == ["policy", "explain"]
    said = cli(*hint)
    assert said.out.startswith(f"{effect}  nice /proc/own/1\n")
    assert f'llmasos policy rm "{row}"  # policy.csv:1' in said.out
    assert cli(*hint, "--json").json["action"] == "nice"
    cli("policy", "rm", row)
    assert cli("nice", "3", "1").code == exits.NOT_FOUND


def test_a_number_that_is_no_call_is_not_found(cli: Cli) -> None:
    said = cli("policy", "explain", "9999999")
    assert (said.code, "no call 9999999" in said.err) == (exits.NOT_FOUND, True)
    hint = shlex.split(said.pasted())[1:]
    assert cli(*hint).code == exits.OK  # lists refusals
    said = cli("policy", "explain", "1")  # the machine came up
    assert (said.code, "no rules were evaluated for event 1" in said.err) == (exits.NOT_FOUND, True)
    for number in ("0", "-1", "1" * 30):
        assert cli("policy", "explain", number).code == exits.USAGE


def test_a_shipped_deny_is_no_matter_of_own_rules(tmp_path: Path) -> None:
    """An installation whose rules deny: nothing that the owner may add changes that."""
    for room in ("kernel", "drivers", "userland", "policies", "src"):
        shutil.copytree(ROOT / room, tmp_path / room, symlinks=True,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    (tmp_path / "policies" / "strict.csv").write_text("p, r:strict, ps, /proc, deny\n")
    box = Machine(tmp_path / "box")
    box.environment["PYTHONPATH"] = str(tmp_path / "src")
    (tmp_path / "box").mkdir()
    box.start("--mount", "false")
    try:
        question = ["r:strict", "ps", "/proc"]
        done = box.llmasos("policy", "explain", *question)
        assert done.stdout.endswith(
            b"\nto allow it:\n  strict.csv:1 is a shipped rule: it overrides every allow\n"
        )
        box.llmasos("policy", "add", "g, u:eve, r:strict", "p, r:strict, ps, /proc, allow")
        assert box.llmasos("policy", "test", *question, check=False).returncode == exits.DENIED
        told = box.llmasos("policy", "explain", "u:eve", *question[1:]).stdout.decode()
        for line in told.partition("\nto allow it:\n")[2].splitlines():
            box.llmasos(*shlex.split(line, comments=True)[1:])
        box.llmasos("policy", "test", "u:eve", *question[1:])
    finally:
        box.down()
