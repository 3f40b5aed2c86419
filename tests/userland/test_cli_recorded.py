"""`llmasos policy` beside the rules themselves: on recorded calls, in an editor, with no daemon."""

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.kernel.abi import limits
from llmasos.userland.cli import exits
from tests.conftest import LIMIT_S, Machine, documents
from tests.system.raw import raw
from tests.userland.inside import Cli, command, without_rules

ROW = "p, r:x, ps, /proc, ask"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("recorded"))
    machine.start("--mount", "false")
    yield machine
    machine.down()


@pytest.fixture
def cli(
    box: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    yield command(box, monkeypatch, capsys)
    without_rules(box)


@pytest.fixture
def poet(box: Machine) -> Iterator[int]:
    """A process of an app that has spoken."""
    with raw(box.paths.socket) as client:
        pid: int = client.call("spawn", model="echo", app="poet", keep=False)["pid"]
        client.call("generate", pid=pid, messages=[{"role": "user", "content": "hi"}])
        yield pid


# --- simulate ---------------------------------------------------------------------------------
def test_other_rules_are_tried_on_what_was_recorded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poet: int
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("new.csv")
    cli("policy", "add", "p, r:careful, mount, /dev/image/echo, deny")
    assert cli("nice", "1", str(poet)).code == exits.OK
    assert cli("mount", "echo").code == exits.DENIED
    file.write_text(
        "# new\np, r:careful, generate, /proc/*, deny\np, r:operator, nice, /proc/*, ask\n"
    )
    said = cli("policy", "simulate", "--since", "7d", str(file))
    assert (said.code, said.narrow) == (exits.OK, True)
    lines = said.out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("allow -> deny"))
    assert f"generate /proc/own/{poet}/generate" in lines[at]
    assert lines[at + 2] == "    new.csv:2: p, r:careful, generate, /proc/*, deny"
    assert "deny -> allow  1 x " in said.out
    assert "newly allowed: 1" in said.err
    found = cli("policy", "simulate", "--json", str(file)).json
    assert {one["after"] for one in found["blocked"]} == {"deny", "ask"}
    [mount] = found["allowed"]
    assert (mount["action"], mount["before"], mount["after"]) == ("mount", "deny", "allow")
    assert all(one["rule"].startswith(f"{file}:") for one in found["blocked"])
    assert found["calls"] >= 3
    assert cli("ps").code == exits.OK  # nothing came into force
    file.write_text("p, r:careful, mount, /dev/image/echo, deny\n")
    said = cli("policy", "simulate", str(file))
    assert (said.out, "newly blocked: 0, newly allowed: 0" in said.err) == ("", True)
    file.write_text("p, r:careful, mount, /dev/image/echo, ask\n")
    said = cli("policy", "simulate", str(file))
    assert "newly blocked: 0, newly allowed: 0, between ask and deny: 1" in said.err


def test_what_is_no_file_of_rules_is_not_simulated(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("p, r:x\nq\n")
    said = cli("policy", "simulate", str(file))
    assert (said.code, f"{file}:1: 'p' with 1 fields" in said.err) == (exits.FAILED, True)
    assert cli(*shlex.split(said.pasted(5))[1:]).out.startswith(f"{file}:1: ")
    file.write_bytes(b"p\xff")
    assert "not valid UTF-8 at byte 1" in cli("policy", "simulate", str(file)).err
    file.write_text("#" * (limits.POLICY_CHARS + 1))
    assert cli("policy", "simulate", str(file)).code == exits.MEMORY
    assert cli("policy", "simulate", str(tmp_path)).code == exits.FAILED
    assert cli("policy", "simulate", str(tmp_path / "none")).code == exits.NOT_FOUND
    for since in ("5", "0s", "-1d", "1y", "d", "", "9999999999w"):
        said = cli("policy", "simulate", "--since", since, str(file))
        assert (said.code, "--since" in said.err) == (exits.USAGE, True)


# --- learn ------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["poet", "pid"])
def test_what_an_app_did_is_what_it_may_afterwards(cli: Cli, poet: int, by: str) -> None:
    who = "poet" if by == "poet" else str(poet)
    said = cli("policy", "learn", who)
    assert said.out == "g, app:poet, r:learned\np, app:poet, generate, /proc/own/*, allow\n"
    assert "these rules allow app:poet these calls and nothing else" in said.err
    rules = cli("policy", "learn", "--since", "1h", "--json", who).json
    assert (rules["rules"], rules["calls"] > 0) == (said.out.splitlines(), True)
    assert cli("policy", "add", *rules["rules"]).code == exits.OK
    said = cli("fork", str(poet))
    assert (said.code, "no rule allows it for app:poet" in said.err) == (exits.DENIED, True)
    assert cli("policy", "test", "app:poet", "generate", f"/proc/own/{poet}/generate").code == 0


def test_a_process_that_is_gone_is_still_known(cli: Cli) -> None:
    pid = cli("run", "-m", "echo", "--keep", "--json", "hi").json["pid"]
    cli("rm", str(pid))
    assert cli("policy", "learn", str(pid)).out.startswith("g, app:run, r:learned\np, app:run, ")


def test_nothing_is_learned_of_who_did_nothing(cli: Cli) -> None:
    for who, subject in (("nobody", "app:nobody"), ("999999", "pid:999999")):
        said = cli("policy", "learn", who)
        assert (said.code, said.out, subject in said.err) == (exits.OK, "", True)
        assert cli("policy", "learn", "--json", who).json == {"calls": 0, "rules": []}
    assert cli("policy", "learn", "no app").code == exits.FAILED


# --- edit -------------------------------------------------------------------------------------
@pytest.fixture
def kept(box: Machine, tmp_path: Path) -> Iterator[Path]:
    """Where the copies of an editor stand."""
    box.environment["TMPDIR"] = str(tmp_path)
    yield tmp_path
    del box.environment["TMPDIR"]


def editor(tmp_path: Path, script: str) -> str:
    """An editor that does what a script says to the file in $1."""
    file = tmp_path / "editor.sh"
    file.write_text(script)
    return f"sh {shlex.quote(str(file))}"


def copies(tmp_path: Path) -> list[str]:
    return [path.read_text() for path in tmp_path.glob("policy-*.csv")]


def test_what_was_edited_comes_into_force(cli: Cli, box: Machine, kept: Path) -> None:
    cli("policy", "add", ROW)
    by = editor(kept, 'echo "# a remark" >> $1; echo "p, r:y, ps, /proc, deny" >> $1')
    done = box.llmasos("policy", "edit", EDITOR="false", VISUAL=by)
    assert done.stdout == b"+ p, r:y, ps, /proc, deny\n"
    assert box.paths.policy_file.read_text() == f"{ROW}\n# a remark\np, r:y, ps, /proc, deny\n"
    done = box.llmasos(
        "policy", "edit", "--json", EDITOR=editor(kept, "sed -i /r:y/d $1"), VISUAL=""
    )
    assert documents(done)[0]["removed"] == ["p, r:y, ps, /proc, deny"]
    done = box.llmasos("policy", "edit", EDITOR="true", VISUAL=" ")
    assert done.stderr == b"no rules added or removed\n"
    assert cli("policy", "undo").code == exits.OK
    assert copies(kept) == []


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo nonsense >> $1", exits.USAGE, "policy.csv:2: 'nonsense' with 0 fields"),
        ("echo nonsense >> $1; exit 3", exits.INTERRUPTED, "sh exited with 3"),
        ("printf '\\377' >> $1", exits.FAILED, "not valid UTF-8 at byte"),
        ('echo "p, r:owner, *, /*, deny" >> $1', exits.USAGE, "no longer edit the rules"),
        ("$PYTHON -m llmasos policy add 'p, r:z, ps, /proc, ask'; echo >> $1", exits.FAILED,
         "changed while the editor was open"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("cli")
def test_what_was_typed_is_not_lost(
    box: Machine, kept: Path, script: str, code: int, words: str
) -> None:
    box.llmasos("policy", "add", ROW)
    done = box.llmasos(
        "policy", "edit", check=False, VISUAL=editor(kept, script), PYTHON=sys.executable
    )
    said = done.stderr.decode()
    assert (done.returncode, words in said) == (code, True), said
    [copy] = kept.glob("policy-*.csv")
    assert f"your edits are kept in {copy}" in said
    assert copy.read_bytes().startswith(ROW.encode())
    assert b"nonsense" not in box.paths.policy_file.read_bytes()


def test_an_editor_that_is_none_is_said(cli: Cli, box: Machine, kept: Path) -> None:
    for editor, code in (("/no/editor", exits.NOT_FOUND), ('vi "', exits.FAILED)):
        done = box.llmasos("policy", "edit", check=False, EDITOR=editor, VISUAL="")
        assert (done.returncode, b"EDITOR" in done.stderr) == (code, True)
    done = box.llmasos("policy", "edit", check=False, EDITOR="rm", VISUAL="")
    assert done.returncode == exits.NOT_FOUND
    assert copies(kept) == []


def test_ctrl_c_in_an_editor_is_the_editor_s(cli: Cli, box: Machine, kept: Path) -> None:
    by = editor(kept, f'kill -INT $PPID; echo "{ROW}" >> $1')
    assert box.llmasos("policy", "edit", VISUAL=by).stdout == f"+ {ROW}\n".encode()


def test_mistakes_are_shown_and_the_editor_comes_back(cli: Cli, box: Machine, kept: Path) -> None:
    by = editor(kept, f'grep -q nonsense $1 && echo "{ROW}" > $1 || echo nonsense > $1')
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "llmasos", "policy", "edit", "--json"],
        env=box.environment | {"VISUAL": by}, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs,
    ) as child:  # fmt: skip
        os.close(theirs)
        shown = b""
        while b"again? [Y/n] " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"\n")
        out, _ = child.communicate(timeout=LIMIT_S)
    os.close(ours)
    assert (child.returncode, json.loads(out)["added"]) == (exits.OK, [ROW])
    assert copies(kept) == []
