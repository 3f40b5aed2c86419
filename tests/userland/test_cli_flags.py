"""Flags mean the same everywhere: times, durations, and where a page is."""

import pytest

from llmasos.userland.cli import arguments, exits, main
from llmasos.userland.cli.table import VERBS
from tests.conftest import Machine
from tests.userland.inside import Cli, command


@pytest.fixture
def cli(
    shared: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    return command(shared, monkeypatch, capsys)


def timed(flag: str) -> list[str]:
    return [words for words, verb in VERBS.items() if any(flag in o.flags for o in verb.options)]


REST = {
    "run": ["hi"], "wait": ["1"], "recv": ["1"], "mem search": ["1", "x"],
    "policy simulate": ["f"], "policy learn": ["x"],
}  # fmt: skip


@pytest.mark.parametrize("words", timed("--timeout"))
def test_a_timeout_is_seconds_or_has_a_unit(words: str) -> None:
    for text, seconds in (("5", 5), ("0.5", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200)):
        line = [*REST.get(words, []), "--timeout", text]
        assert arguments.parse(VERBS[words], line).timeout == seconds
    for text in ("soon", "-1", "5x", ""):
        with pytest.raises(exits.UsageError, match="--timeout"):
            arguments.parse(VERBS[words], [*REST.get(words, []), f"--timeout={text}"])


@pytest.mark.parametrize("words", timed("--since"))
def test_since_is_so_long_ago_or_a_date(words: str) -> None:
    for text in ("12h", "30d", "30d ago", "2026-11-03", "2026-11-03T14:00"):
        line = [*REST.get(words, []), "--since", text]
        assert arguments.parse(VERBS[words], line).since > 1.7e9
    assert arguments.parse(VERBS[words], [*REST.get(words, []), "--since=2026-11-03"]).since == (
        1793664000
    )
    for text in ("5", "soon", "-1d", ""):
        with pytest.raises(exits.UsageError, match="--since"):
            arguments.parse(VERBS[words], [*REST.get(words, []), f"--since={text}"])


def test_these_flags_are_what_is_told() -> None:
    assert set(timed("--timeout")) == {"run", "chat", "wait", "recv"}
    assert set(timed("--since")) == {"logs", "mem search", "policy simulate", "policy learn"}


def test_logs_since_leaves_out_what_is_older(cli: Cli, pid: int) -> None:
    everything = cli("logs", str(pid), "--json").out.splitlines()
    assert len(everything) > 1
    assert cli("logs", str(pid), "--json", "--since", "1h").out.splitlines() == everything
    assert cli("logs", str(pid), "--json", "--since", "2100-01-01").out == ""
    assert (
        cli("logs", str(pid), "--json", "--since", "1h", "-n", "1").out.splitlines()
        == (everything[-1:])
    )
    assert len(cli("logs", str(pid), "--json", "--after", "0").out.splitlines()) == len(everything)


# --- PID:PAGE ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "short", "long"),
    [
        ("mem why", "3:5", "3 5"), ("mem read", "3:5", "3 5"), ("mem unmap", "3:5", "3 5"),
        ("mem pin", "3:5-9", "3 5-9"), ("mem pin", "3:5 3:7 9", "3 5 7 9"),
        ("mem evict", "3:5", "3 5"), ("mem forget", "3:5-6", "3 5-6"),
        ("mem share", "3:5-6 4", "3 4 5-6"), ("mem write", "3:5 some text", "3 --page 5 some text"),
    ],
)  # fmt: skip
def test_a_page_can_stand_behind_its_process(words: str, short: str, long: str) -> None:
    read = [vars(arguments.parse(VERBS[words], line.split())) for line in (short, long)]
    assert read[0] == read[1]
    assert read[0]["pid"] == 3


@pytest.mark.parametrize(
    "line",
    ["mem why 3", "mem pin 3", "mem evict 3", "mem unmap 3", "mem share 3 4", "mem why 3:5-6",
     "mem read 3:5 6", "mem read 3", "mem share 3:5 4 6", "mem pin 3:5 4:6", "mem unmap 3:5 6",
     "mem map 3 4:0-9 --pages 1", "mem why x:1", "mem why 3:", "mem forget 3"],
)  # fmt: skip
def test_pages_that_are_missing_or_named_twice_are_wrong_usage(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == exits.USAGE
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"llmasos {' '.join(line.split()[:2])}: ")) == ("", True)


def test_pages_of_another_process_are_mapped_by_their_place(cli: Cli, pid: int) -> None:
    other = cli("run", "-m", "echo", "--keep", "--json", "hi").json["pid"]
    mapped = cli("mem", "map", str(other), f"{pid}:0-1", "--json").json
    assert (mapped["count"], mapped["source"]) == (2, f"/proc/{pid}/mem")
    assert cli("mem", "read", f"{pid}:0").out == "one two"
    assert cli("mem", "why", f"{pid}:0").code == exits.OK
    assert cli("mem", "write", f"{pid}:0", "three", "--json").json["pages"] == [0]
    assert cli("mem", "read", f"{pid}:0").out == "three"
    cli("rm", str(other))


# --- questions --------------------------------------------------------------------------------
def test_a_user_is_removed_only_when_somebody_agrees(cli: Cli) -> None:
    cli("users", "add", "bob")
    unasked = cli("users", "rm", "bob", "--json")
    assert (unasked.code, '"errno": "EINVAL"' in unasked.err) == (exits.USAGE, True)
    assert "bob" in cli("users", "list").out
    assert cli("users", "rm", "nobody").code == exits.NOT_FOUND  # there is nothing to ask
    assert cli("users", "rm", "bob", "-y").code == exits.OK
    assert "bob" not in cli("users", "list").out


def test_devices_gives_advice_about_what_is_there_only(cli: Cli) -> None:
    said = cli("devices")
    assert said.code == exits.OK
    advised = {
        line.split()[0] for line in said.out.splitlines() if " gpu " in line and " no " in line
    }
    assert ("GGML_" in said.err) is bool(advised)
