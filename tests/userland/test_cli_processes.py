"""`ps`, `wait`, `rm` and `prune`: what is listed, what fits, and what each pid's failure does."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from llmasos.userland.cli import exits
from llmasos.userland.cli.columns import Column, fitted
from tests.conftest import LIMIT_S, Machine, documents
from tests.userland.inside import Cli, command


@pytest.fixture
def cli(
    shared: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    yield command(shared, monkeypatch, capsys)
    run = command(shared, monkeypatch, capsys)
    left = [one["pid"] for one in run("ps", "-a", "--json").json["processes"]]
    if left:
        run("rm", *map(str, left))


def kept(cli: Cli, words: str) -> int:
    said = cli("run", "-m", "echo", "--keep", "--temperature", "0", "--json", words)
    pid: int = said.json["pid"]
    return pid


def listed(cli: Cli, *more: str) -> dict[int, dict[str, Any]]:
    return {one["pid"]: one for one in cli("ps", "--json", *more).json["processes"]}


# --- ps ---------------------------------------------------------------------------------------
def test_ps_tells_what_a_conversation_is(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = kept(cli, "Which oil does the lighthouse keeper need for his lamp in winter?")
    child = int(cli("fork", str(pid)).out)
    found = listed(cli)
    assert found[pid]["title"].startswith("Which oil does the lighthouse")
    assert (found[child]["parent"], found[pid]["kept"], found[pid]["ended"]) == (pid, True, None)
    for name in ("created", "used"):
        assert found[pid][name].endswith("Z")
    monkeypatch.setenv("COLUMNS", "80")
    narrow = cli("ps")
    assert narrow.narrow
    for head in ("PID", "PARENT", "OWNER", "STATE", "KEPT", "AGE", "TITLE"):
        assert head in narrow.out.splitlines()[0].split()
    assert "Which oil does the" in narrow.out
    assert "…" in narrow.out
    monkeypatch.setenv("COLUMNS", "120")
    assert "CONTEXT" in cli("ps").out
    assert all(len(line) <= 120 for line in cli("ps").out.splitlines())
    monkeypatch.setenv("COLUMNS", "30")
    assert "TITLE" in cli("ps").out.splitlines()[0]
    monkeypatch.delenv("COLUMNS")
    for whole in (cli("ps"), cli("ps", "-l")):  # a pipe has no width
        assert "TOK/S" in whole.out
        assert found[pid]["title"] in whole.out
    assert cli("ps", "-q").out.split() == [str(one) for one in sorted(found)]
    assert {pid, child} <= set(found)


def test_ps_calls_what_has_ended_ended(cli: Cli) -> None:
    pid = kept(cli, "hello")
    cli("kill", str(pid))
    assert pid not in listed(cli)
    one = listed(cli, "-a")[pid]
    assert (one["state"], one["ended"][-1]) == ("ended", "Z")
    assert "ended 0" in cli("ps", "-a").out


class Item(NamedTuple):
    name: str
    more: str
    text: str


def test_columns_leave_by_their_rank_and_the_text_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = [
        Column[Item]("NAME", lambda one: one.name),
        Column[Item]("MORE", lambda one: one.more, 1),
        Column[Item]("TEXT", lambda one: one.text),
    ]
    items = [Item("a", "m" * 30, "1 word " * 20), Item("b\x1b", "m", "2" + "字" * 60)]
    for width, heads in ((80, ["NAME", "MORE", "TEXT"]), (40, ["NAME", "TEXT"])):
        monkeypatch.setenv("COLUMNS", str(width))
        fitted(columns, items)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == heads
        assert all(len(line) + line.count("字") <= width for line in lines)
        assert "\x1b" not in "".join(lines)
        assert lines[0].index("TEXT") == lines[1].index("1 word")  # a text is no number
    fitted(columns, items, whole=True)
    assert items[0].text.strip() in capsys.readouterr().out
    fitted(columns, [])
    assert capsys.readouterr().out.split() == ["NAME", "MORE", "TEXT"]


# --- wait, rm ---------------------------------------------------------------------------------
def test_wait_takes_many_and_its_code_is_the_first_that_is_not_zero(cli: Cli) -> None:
    first, second, third = (kept(cli, "hello") for _ in range(3))
    cli("kill", str(first))
    cli("kill", "-9", str(second), str(third))
    done = cli("wait", str(first), "9999", str(second), str(second), "--json")
    ends = [json.loads(line) for line in done.out.splitlines()]
    assert [(end["pid"], end["code"]) for end in ends] == [(first, 0), (second, 137)]
    assert done.code == 137
    assert [json.loads(line)["errno"] for line in done.err.splitlines()] == ["ESRCH"]
    assert cli("wait", "9999", "9998").code == exits.NOT_FOUND
    text = cli("wait", str(third))
    assert (text.code, f"process {third} ended with 137" in text.err) == (137, True)


def test_wait_has_one_time_for_all(cli: Cli) -> None:
    alive, ended = kept(cli, "hello"), kept(cli, "hello")
    cli("kill", str(ended))
    done = cli("wait", "--timeout", "0.05", str(alive), str(ended), "--json")
    assert done.code == exits.TIMEOUT
    assert [json.loads(line)["pid"] for line in done.out.splitlines()] == [ended]
    said = json.loads(done.err)
    assert said["message"] == f"process {alive} has not ended within 0.05 s"
    assert said["hint"] == f"`llmasos kill {alive}` ends it"


def test_rm_ends_and_removes_what_it_can(cli: Cli) -> None:
    alive, ended, other = (kept(cli, "hello") for _ in range(3))
    cli("kill", str(ended))
    done = cli("rm", str(alive), "9999", str(ended), str(alive))
    assert (done.code, done.out.split()) == (exits.NOT_FOUND, [str(alive), str(ended)])
    assert "ESRCH: there is no process 9999" in done.err
    assert set(listed(cli, "-a")) == {other}
    told = cli("rm", "-f", "9999", str(other), "--json")
    assert (told.code, told.json["removed"]) == (exits.NOT_FOUND, [other])
    assert [(one["pid"], one["number"]) for one in told.json["failed"]] == [(9999, 3)]


# --- prune ------------------------------------------------------------------------------------
def test_prune_removes_what_has_ended_and_asks_before(cli: Cli) -> None:
    alive, ended = kept(cli, "stays here"), kept(cli, "leaves soon")
    assert "nothing to remove" in cli("prune", "-y").err
    cli("kill", str(ended))
    unasked = cli("prune")
    assert (unasked.code, "-y" in unasked.err) == (exits.USAGE, True)
    assert "leaves soon" in unasked.out
    assert "stays here" not in unasked.out
    plan = cli("prune", "--dry-run", "--json").json
    assert (plan["would_remove"], plan["removed"]) == ([ended], [])
    assert cli("prune", "--older-than", "1h", "-y", "--json").json["removed"] == []
    assert cli("prune", "-y", "--json").json == {"removed": [ended], "failed": []}
    assert set(listed(cli, "-a")) == {alive}


def test_prune_takes_kept_conversations_only_when_it_is_told(cli: Cli) -> None:
    pid = kept(cli, "hello")
    assert cli("prune", "-y", "--kept", "--older-than", "1h", "--json").json["removed"] == []
    assert set(listed(cli)) == {pid}
    assert cli("prune", "-y", "--kept", "--json").json["removed"] == [pid]
    assert listed(cli, "-a") == {}


@pytest.mark.parametrize(("answer", "code"), [("y", exits.OK), ("n", exits.FAILED)])
def test_prune_asks_at_a_terminal(cli: Cli, shared: Machine, answer: str, code: int) -> None:
    pid = kept(cli, "hello there")
    cli("kill", str(pid))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "llmasos", "prune"], env=shared.environment, stdin=theirs,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        out, err = child.communicate(timeout=LIMIT_S)
    os.close(ours)
    assert child.returncode == code
    assert b"hello there" in out
    assert b"Remove 1 ended process with all pages? This cannot be undone. [y/N] " in err
    assert (pid in listed(cli, "-a")) is (answer == "n")


def test_pids_can_be_piped_on(shared: Machine, cli: Cli) -> None:
    pid = kept(cli, "hello")
    pids = shared.llmasos("ps", "-q").stdout.split()
    assert pids == [str(pid).encode()]
    assert documents(shared.llmasos("rm", *map(bytes.decode, pids), "--json"))[0]["failed"] == []
