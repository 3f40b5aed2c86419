"""`llmasos mem`: every verb over a real socket, what it prints, how it ends."""

import json
import os
import pty
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.userland.cli import exits, show, table_memory
from llmasos.userland.cli.memmap import legend, lines
from tests.conftest import LIMIT_S, Machine, documents
from tests.userland.inside import Cli, command
from tests.userland.test_terminal import expect, on_a_terminal

FACT = "the deposit for the hall is forty euro"
LONG = "word " * 1500
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

WRONG = """mem 0; mem x; mem -3; mem why 3; mem why 3:x; mem why 0:1; mem why :; mem pin 1;
    mem pin 1 7-3; mem pin 1 x; mem evict 1 0-9999999; mem read 1; mem read 1 2 --key k;
    mem write 1; mem write 1 x --page y; mem search 1; mem search 1 x --since soon;
    mem search 1 x --until 1821-01-01; mem map 1 . --pages 3-4; mem share 1 2; mem forget 1;
    mem forget 1 2 --key k; mem forget 1 2; mem forget 1 --key k; mem 1 --text --map;
    send 1; recv 1 --timeout soon; recv 0"""
MISSING = """mem 9999; mem --map 9999; mem why 9999:0; mem search 9999 x; mem read 9999 0;
    mem write 9999 x; mem pin 9999 0; mem evict 9999 0; mem map 9999 .; mem unmap 9999 0;
    mem share 9999 1 0; mem forget -y 9999 0; mem export 9999; send 9999 x; recv 9999;
    mem why {0}:99; mem read {0} 99; mem read {0} nothing; mem pin {0} 99; mem evict {0} 99;
    mem unmap {0} 0; mem share {0} 9999 0; mem forget -y {0} 99;
    mem forget -y {0} --key nothing;
    mem map {0} no/such/place; mem write {0} --page 99 x; mem map {0} 9999"""


def each(lines: str) -> list[str]:
    return [line.strip() for line in lines.split(";")]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("mem"))
    machine.start("--mount", "false", "--window", "512")
    yield machine
    machine.down()


@pytest.fixture
def cli(box: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("COLUMNS", "80")
    return command(box, monkeypatch, capsys)


def said(box: Machine, *words: str) -> dict[str, object]:
    done = box.llmasos("run", "-m", "echo", "--temperature", "0", "--json", *words)
    return documents(done)[0]


@pytest.fixture
def pid(box: Machine) -> str:
    """A process with two pages in its window."""
    return str(said(box, "--keep", FACT)["pid"])


@pytest.fixture
def other(box: Machine) -> str:
    return str(said(box, "--keep", "hi")["pid"])


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "book.md"
    path.write_text("".join(f"Chapter {n}: a river and a stone and a bridge. " for n in range(86)))
    return path


def wheres(cli: Cli, pid: str) -> list[str]:
    return [page["where"] for page in cli("mem", pid, "--json").json["pages"]]


# --- a verb and a group -----------------------------------------------------------------------
def test_mem_is_a_verb_and_a_group(cli: Cli, pid: str) -> None:
    assert cli("mem", pid).code == cli("mem", "--map", pid).code == exits.OK
    told = cli("mem", "--help")
    assert (told.code, told.narrow) == (exits.OK, True)
    assert all(word in told.out for word in ("mem PID ", "mem why ", "--map ", "mem fsck "))
    assert "one character per page" in cli("mem", pid, "--help").out
    assert cli("mem").code == exits.USAGE
    wrong = cli("mem", "whi", pid)
    assert (wrong.code, wrong.out) == (exits.USAGE, "")
    assert "unknown verb 'mem whi'\n  mem takes PID, why, search, " in wrong.err
    assert "models takes list, show, " in cli("models", "x").err


@pytest.mark.parametrize("line", each(WRONG))
def test_wrong_usage_is_two(cli: Cli, line: str) -> None:
    done = cli(*line.split())
    assert (done.code, done.out, bool(done.err)) == (exits.USAGE, "", True)


def test_what_is_not_there_is_three_and_says_what_to_do(cli: Cli, pid: str) -> None:
    for line in each(MISSING):
        done = cli(*line.format(pid).split())
        assert (done.code, done.out) == (exits.NOT_FOUND, ""), line
        assert re.match(r"llmasos: (ENOENT|ESRCH): .+", done.err), line
    assert len(cli("mem", pid, "--json").json["pages"]) == 2


def test_the_lists_of_words_are_the_kernels() -> None:
    assert set(table_memory.KINDS) == set(v.Kind)
    assert set(table_memory.OVERFLOW) == set(v.Overflow)


# --- the page table ---------------------------------------------------------------------------
def test_the_page_table_and_its_totals(cli: Cli, pid: str, document: Path) -> None:
    cli("mem", "map", pid, str(document))
    cli("mem", "pin", pid, "0", "7")
    told = cli("mem", pid)
    assert told.narrow
    head, first, second, *_, last = told.out.splitlines()
    assert " ".join(head.split()) == "PAGE WHERE KIND SAID BY TIME (UTC) TOKENS USES TEXT"
    assert first.split()[:3] == ["0", "window+pin", "user"]
    assert second.split()[:3] == ["1", "window", "assistant"]
    assert last.split()[:4] == ["7", "store+map+pin", "document", "book.md"]
    assert first.endswith("…")
    assert re.match(r"8 pages, \d+ tokens; in the window 2, \d+ of 512 tokens; pinned 2", told.err)
    found = cli("mem", pid, "--json").json
    assert (str(found["pid"]), found["window"]) == (pid, 512)
    assert [page["pinned"] for page in found["pages"]] == [True, *[False] * 6, True]


def test_a_key_stands_before_its_text(cli: Cli, pid: str, document: Path) -> None:
    cli("mem", "write", pid, "--key", "home", "Lisbon, since May")
    cli("mem", "map", pid, str(document))
    _, first, _, keyed, mapped, *_ = cli("mem", pid).out.splitlines()
    assert keyed.endswith(" [home] Lisbon, …")
    assert "[" not in first + mapped  # a document's name is its author
    assert "[home] Lisbon" in cli("mem", "search", pid, "Lisbon").out
    assert cli("mem", "read", pid, "home").out == "Lisbon, since May"
    assert f"`llmasos mem {pid}` lists its pages" in cli("mem", "read", pid, "hme").err
    for verb, *words in (("read",), ("write", "x"), ("forget", "-y")):
        done = cli("mem", verb, pid, *words, "--key", "")
        assert (done.code, "it is empty" in done.err) == (exits.USAGE, True), verb


def test_chinese_fits_its_columns() -> None:
    assert show.clip("一二三四五六", 12) == "一二三四五六"
    assert show.clip("一二三四五六", 11) == "一二三四五…"
    assert show.clip("a\n  b", 5) == "a b"
    assert [show.short_time(t, 2e9) for t in (0, 2e9 - 60, 1.5e9)] == [
        "-",
        "05-18 03:32",
        "2017-07-14",
    ]


def test_the_map_is_read_without_colour(cli: Cli, pid: str, document: Path, box: Machine) -> None:
    cli("mem", "map", pid, str(document))
    cli("mem", "pin", pid, "1", "7")
    told = cli("mem", "--map", pid)
    assert told.narrow
    assert told.out.splitlines() == [
        "0  #Pdddddp", "", "in the window: # 1   P pinned 1",
        "in the store:  d document 5   p pinned 1",
    ]  # fmt: skip
    seen = on_a_terminal(box, "mem", "--map", pid, TERM="xterm", NO_COLOR="", COLUMNS="80")
    assert "\x1b[32m#\x1b[0m\x1b[33mP\x1b[0md" in seen


def test_long_maps_are_wrapped_and_skip_what_is_gone() -> None:
    signs = dict.fromkeys([*range(130), *range(900, 1001)], ".") | {0: "#"}
    found = list(lines(signs, 80))
    assert all(len(line) <= 80 for line in found)
    assert [line.split()[0] for line in found] == ["0", "60", "120", "900", "960"]
    assert found[0].startswith("   0  #......... ..........")
    assert list(legend({})) == list(lines({}, 80)) == []


def test_a_page_that_came_back_is_marked_and_explained(cli: Cli, pid: str, box: Machine) -> None:
    filler = "".join(f"turn {n} is about {'nothing in particular ' * 12}{n}\n" for n in range(8))
    box.llmasos("chat", "--pid", pid, "--temperature", "0", "--max-tokens", "60",
                stdin=f"{filler}How many euro is the deposit for the hall?\n")  # fmt: skip
    told = cli("mem", "--map", pid)
    assert "R recalled" in told.out
    pages = cli("mem", pid, "--json").json["pages"]
    back = next(p for p in pages if p["uses"] and p["where"] == "window")
    story = cli("mem", "why", f"{pid}:{back['number']}")
    assert (story.code, story.narrow) == (exits.OK, False)
    assert re.search(rf"(?m)^{TIME}  written in call \d+: by ", story.out)
    assert re.search(rf"(?m)^{TIME}  left the window in call \d+: room for a request$", story.out)
    came = rf"(?m)^{TIME}  recalled in call \d+ for a request, score [\d.]+: words \d+\.\d\d"
    assert re.search(came, story.out)
    assert story.out.endswith("  in the window\n")
    found = cli("mem", "why", f"{pid}:{back['number']}", "--json").json
    assert [move["what"] for move in found["moves"]][:2] == ["written", "evicted"]
    assert re.fullmatch(TIME, found["moves"][0]["time"])
    assert found["page"]["number"] == back["number"]
    assert " evictions" in cli("daemon", "status").out
    assert cli("daemon", "status", "--json").json["evictions"] > 0


# --- search -----------------------------------------------------------------------------------
def test_pages_are_found_and_filtered(cli: Cli, pid: str) -> None:
    cli("mem", "write", pid, "--speaker", "bob", "--label", "web", "the hall has a blue door")
    cli("mem", "write", pid, "nothing to be seen here")
    told = cli("mem", "search", pid, "--words", "what", "is", "the", "blue", "door")
    assert (told.code, told.narrow) == (exits.OK, True)
    assert told.out.split()[:4] == ["PAGE", "SCORE", "MADE", "OF"]
    assert re.match(r" +2 +\d+\.\d\d  words \d+\.\d\d", told.out.splitlines()[1])
    assert "lexical only" in cli("mem", "search", pid, "the blue door").err
    for filters, numbers in {
        "--author bob": [2], "--label web": [2], "--kind user --kind assistant": [0, 1],
        "--since 1h --author bob": [2], "--until 1h": [], "--since 2100-01-01": [],
        "--until 2100-01-01T10:00 --label web": [2], "-n 1 --words": [2], "--label none": [],
    }.items():  # fmt: skip
        found = cli("mem", "search", pid, "the hall", *filters.split(), "--json").json
        assert sorted(hit["page"]["number"] for hit in found["hits"]) == numbers, filters
    none = cli("mem", "search", pid, "xyzzy")
    assert (none.code, none.out) == (exits.OK, "")
    assert "no pages found" in none.err


def test_filters_that_nothing_can_meet_say_so(cli: Cli, pid: str) -> None:
    wrong = cli("mem", "search", pid, "hall", "--since", "2026-03-01", "--until", "2026-02-01")
    assert (wrong.code, wrong.out) == (exits.FAILED, "")
    days = "since=2026-03-01T00:00:00+00:00 is later than until=2026-02-01T23:59:59+00:00"
    assert f"EINVAL: {days}" in wrong.err
    few = cli("mem", "search", pid, "deposit", "--tokens", "3")
    tokens = cli("mem", "search", pid, "deposit", "--json").json["hits"][0]["page"]["tokens"]
    assert (few.code, few.out) == (exits.OK, "")
    assert "no pages found within 3 tokens" in few.err
    assert f"no page fits 3 tokens: the best has {tokens}" in few.err
    assert "no page fits" not in cli("mem", "search", pid, "deposit", "--tokens", str(tokens)).err


def test_so_long_ago_is_said_with_and_without_ago(cli: Cli, pid: str) -> None:
    for since in ("30d", "30d ago"):
        found = cli("mem", "search", pid, "deposit", "--since", since, "--json").json
        assert {hit["page"]["number"] for hit in found["hits"]} == {0, 1}
    assert cli("mem", "search", pid, "deposit", "--since", "ago").code == exits.USAGE
    told = cli("mem", "search", "--help").out
    assert "an age (12h, 30d)" in " ".join(told.split())
    assert "not repeatable" in told


# --- read and write ---------------------------------------------------------------------------
def test_texts_are_written_and_read_as_they_are(cli: Cli, pid: str, box: Machine) -> None:
    assert cli("mem", "write", pid, "--key", "plan", "go", "home").out == "2\n"
    assert cli("mem", "read", pid, "plan").out == cli("mem", "read", pid, "2").out == "go home"
    piped = f"a\t\u4f60\n{LONG}\n"
    done = box.llmasos("mem", "write", pid, "--key", "plan", stdin=piped)
    assert re.fullmatch(rb"3-\d+\n", done.stdout)
    assert box.llmasos("mem", "read", pid, "--key", "plan").stdout.decode() == piped
    assert cli("mem", "read", pid, "2").code == exits.NOT_FOUND
    found = cli("mem", "read", pid, "plan", "--json").json
    assert found["text"] == piped
    assert {page["key"] for page in found["pages"]} == {"plan"}
    assert cli("mem", "write", pid, "--page", "3", "other", "--json").json["pages"] == [3]
    assert cli("mem", "read", pid, "3").out == "other"
    assert wheres(cli, pid)[2:] == ["store"] * (len(found["pages"]))


def test_what_cannot_be_written_is_refused_with_the_reason(
    cli: Cli, pid: str, box: Machine, document: Path
) -> None:
    cli("mem", "map", pid, str(document), "--read-only")
    before = cli("mem", pid, "--json").json
    for line, stdin, code, words in (
        (["mem", "write", pid], b"ab\xff", exits.FAILED, "byte 2"),
        (["send", pid], b"ab\xff", exits.FAILED, "byte 2"),
        (["mem", "write", pid], b"x" * 1_000_001, exits.MEMORY, "mem map PID FILE"),
        (["send", pid], b"x" * 500_001, exits.MEMORY, "send it in parts"),
        (["mem", "write", pid, "--page", "3", "x"], b"", exits.DENIED, "read-only"),
        (
            ["mem", "write", pid, "--page", "0", "--key", "k", "x"],
            b"",
            exits.FAILED,
            "a page or a key",
        ),
        (["mem", "write", pid, "--page", "0", LONG], b"", exits.MEMORY, "fit one (page 0)"),
        (["mem", "write", pid, "--label", "a b", "x"], b"", exits.FAILED, "label"),
    ):
        done = box.llmasos(*line, stdin=stdin, check=False)
        assert (done.returncode, done.stdout) == (code, b""), line
        assert words in done.stderr.decode()
    assert cli("mem", pid, "--json").json == before


# --- pin, evict -------------------------------------------------------------------------------
def test_pages_are_pinned_and_evicted(cli: Cli, pid: str) -> None:
    assert cli("mem", "pin", pid, "0-1").out == ""
    busy = cli("mem", "evict", pid, "0")
    assert (busy.code, busy.pasted()) == (exits.FAILED, f"llmasos mem pin {pid} 0 --off")
    assert "ascending, at most 1000000 pages" in cli("mem", "pin", pid, "0-99999999").err
    some = cli("mem", "pin", "--off", pid, "99", "0", "--json")
    assert some.code == exits.NOT_FOUND
    assert [(one["pages"], one["errno"]) for one in some.json["failed"]] == [("99", "ENOENT")]
    assert (some.json["pages"], some.json["pinned"], some.json["pid"]) == (["0"], False, int(pid))
    assert cli("mem", "evict", pid, "0").code == exits.OK
    assert wheres(cli, pid) == ["store", "window"]
    story = cli("mem", "why", f"{pid}:0").out
    assert [line.split("Z  ")[1] for line in story.splitlines()[4:-1]] == [
        "pinned: requested", "unpinned: requested",
        "left the window: requested",
    ]  # fmt: skip
    assert story.endswith("in the store; recalled when a request needs it\n")


# --- map, share -------------------------------------------------------------------------------
def test_documents_folders_and_processes_are_mapped(
    cli: Cli, pid: str, other: str, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(document.parent)
    Path("link").symlink_to(document)
    told = cli("mem", "map", pid, "link")
    assert (told.code, told.out) == (exits.OK, "2-7\n")
    assert told.err == f"mapped 6 pages from page 2: /files{os.path.realpath(document)}\n"
    Path("binary").write_bytes(b"\0")
    told = cli("mem", "map", pid, ".", "--json")
    assert (told.json["first"], told.json["count"]) == (8, 6)
    why = "is not a text file: it has a zero byte"
    assert {"name": "binary", "why": why, "detail": ""} in told.json["skipped"]
    assert "skipped binary: is not a text file" in cli("mem", "map", pid, ".").err
    for name in ("a.pyc", "b.pyc", "c.pyc"):
        Path(name).write_bytes(b"\0")
    for name, wrong in (("x", b"\xff"), ("y", b"yes\xff")):
        Path(name).write_bytes(wrong)
    told = cli("mem", "map", pid, ".")
    assert (
        "skipped 4 files (a.pyc, b.pyc, binary, ...): is not a text file: it has a zero byte"
        in told.err
    )
    assert "skipped 2 files (x, y): is not valid UTF-8\n" in told.err
    assert "-v lists every file" in told.err
    told = cli("mem", "map", "-v", pid, ".")
    assert "skipped c.pyc: is not a text file: it has a zero byte\n" in told.err
    assert "skipped y: is not valid UTF-8 at byte 3\n" in told.err
    assert cli("mem", "unmap", pid, "9").code == exits.OK
    assert cli("mem", "read", pid, "8").code == exits.NOT_FOUND
    assert cli("mem", "map", other, pid, "--pages", "0-1", "--read-only").out == "2-3\n"
    assert cli("mem", "write", other, "--page", "2", "x").code == exits.DENIED
    assert cli("mem", "share", pid, other, "0").out == "4\n"
    assert cli("mem", "share", pid, other, "0-5000", "--json").json["mapped"][0]["first"] == 5
    assert "M" not in cli("mem", "--map", other).out
    assert "m mapped" in cli("mem", "--map", other).out
    assert cli("mem", "read", other, "4").out == FACT


def test_pages_beyond_the_last_are_named(cli: Cli, pid: str, other: str, box: Machine) -> None:
    empty = str(said(box, "--keep", "hi")["pid"])
    cli("mem", "forget", "-y", empty, "0-1")
    for line, words in {
        f"mem share {pid} {other} 200-300": "has no page 200: it has pages up to 1",
        f"mem map {other} {pid} --pages 2-5": "has no page 2: it has pages up to 1",
        f"mem share {empty} {other} 0-300": "has no page from 0 to 1",
    }.items():
        done = cli(*line.split())
        assert (done.code, words in done.err) == (exits.NOT_FOUND, True), done.err


def test_a_place_that_cannot_be_mapped_is_named(cli: Cli, pid: str, tmp_path: Path) -> None:
    for source, words in {
        "0": "source",
        pid: "has its own pages",
        str(tmp_path): "no text",
        "/": "a file or a folder below it",
    }.items():
        done = cli("mem", "map", pid, source)
        assert (done.code, words in done.err) == (exits.FAILED, True), done.err


# --- forget -----------------------------------------------------------------------------------
def test_forgetting_says_how_many_pages_and_whose(cli: Cli, pid: str, other: str) -> None:
    cli("mem", "share", pid, other, "0")
    first, second = sorted((pid, other), key=int)
    told = cli("mem", "forget", "-y", pid, "0")
    assert told.out == f"forgot 1 page of processes {first}, {second}\n"
    assert cli("mem", "read", other, "2").code == exits.NOT_FOUND
    cli("mem", "write", pid, "--key", "k", LONG)
    told = cli("mem", "forget", pid, "--key", "k", "--yes", "--json")
    assert (told.json["pages"] > 1, told.json["processes"]) == (True, [int(pid)])
    some = cli("mem", "forget", "-y", pid, "0", "1")
    assert (some.code, some.out) == (exits.NOT_FOUND, f"forgot 1 page of process {pid}\n")


def test_what_is_still_to_be_erased_is_said(cli: Cli, pid: str, box: Machine) -> None:
    [owner] = (box.paths.state / "owners").iterdir()
    stray = owner / "chroma"  # as a file it is not removed with all that is below it
    stray.write_text("")
    try:
        told = cli("mem", "forget", "-y", pid, "0")
        assert told.out == f"forgot 1 page of process {pid}\n"
        assert f"{stray} cannot be removed" in told.err
        told = cli("mem", "forget", "-y", pid, "1", "--json")
        assert f"{stray} cannot be removed" in told.json["note"]
    finally:
        stray.unlink()


def test_nothing_is_forgotten_where_nobody_can_be_asked(cli: Cli, pid: str, box: Machine) -> None:
    for stdin in ("", "y\n"):
        done = box.llmasos("mem", "forget", pid, "0", stdin=stdin, check=False)
        assert (done.returncode, done.stdout) == (exits.USAGE, b"")
        assert b"confirm with -y" in done.stderr
    assert len(cli("mem", pid, "--json").json["pages"]) == 2


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 2), (b"\n", 2), (b"y\n", 1)])
def test_who_sits_at_a_terminal_is_asked(
    cli: Cli, pid: str, box: Machine, answer: bytes, left: int
) -> None:
    master, slave = pty.openpty()
    line = [sys.executable, "-m", "llmasos", "mem", "forget", pid, "0"]
    with subprocess.Popen(
        line, env=box.environment, stdin=slave, stdout=slave, stderr=slave
    ) as child:
        os.close(slave)
        asked = expect(master, b"[y/N] ")
        assert f"Erase page 0 of process {pid}".encode() in asked
        os.write(master, answer)
        expect(master, b"forgot")
        assert child.wait(LIMIT_S) == (exits.FAILED if left == 2 else exits.OK)
    os.close(master)
    assert len(cli("mem", pid, "--json").json["pages"]) == left


# --- export, fsck -----------------------------------------------------------------------------
def test_pages_are_exported_whole_or_not_at_all(cli: Cli, pid: str, tmp_path: Path) -> None:
    lines = cli("mem", "export", pid).out.splitlines()
    pages = [json.loads(line) for line in lines]
    assert pages == cli("mem", pid, "--json").json["pages"]
    assert re.fullmatch(TIME, pages[0]["time"])
    path = tmp_path / "pages.jsonl"
    told = cli("mem", "export", pid, str(path))
    assert (told.out, told.err) == ("", f"exported 2 pages of process {pid} to {path}\n")
    assert path.read_text().splitlines() == lines
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("mine")
    again = cli("mem", "export", pid, str(path))
    assert (again.code, path.read_text(), "--force" in again.err) == (exits.FAILED, "mine", True)
    assert cli("mem", "export", "9999", str(path), "--force").code == exits.NOT_FOUND
    assert path.read_text() == "mine"
    assert cli("mem", "export", pid, str(path), "--force", "--json").json["pages"] == 2
    assert [one.name for one in tmp_path.iterdir()] == ["pages.jsonl"]
    assert cli("mem", "export", pid, str(tmp_path)).code == exits.FAILED
    assert cli("mem", "export", pid, str(tmp_path / "no" / "x")).code == exits.NOT_FOUND


def test_fsck_tells_faults_and_what_was_mended(machine: Machine) -> None:
    settings = ("--mount", "false")
    machine.start(*settings)
    said(machine, "--keep", FACT)
    sound = machine.llmasos("mem", "fsck")
    assert b"no faults found" in sound.stdout
    machine.stop()
    [path] = machine.paths.state.glob("owners/*/pages.db")
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM pages WHERE id = (SELECT min(id) FROM pages)")
    database.close()
    machine.start(*settings)
    broken = machine.llmasos("mem", "fsck", check=False)
    assert broken.returncode == exits.FAILED
    assert b"fault     process 1: 1 pages from 0 to 1 are missing" in broken.stdout
    mended = machine.llmasos("mem", "fsck", "--rebuild", "--json", check=False)
    found = documents(mended)[0]
    assert (mended.returncode, "rebuilt: text index" in found["mended"]) == (1, True)
    assert [fault.split(":")[0] for fault in found["left"]] == ["process 1"]


# --- run, chat --------------------------------------------------------------------------------
def test_a_prompt_over_the_window_is_paged_or_refused(box: Machine) -> None:
    line = ["run", "-m", "echo", "--max-tokens", "9", LONG]
    done = box.llmasos(*line)
    assert re.search(rb"(?m)^\[the request has \d+ tokens, the window 512: ", done.stderr)
    found = documents(box.llmasos(*line, "--json"))[0]
    assert found["notices"][0].startswith("the request has")
    assert set(found["window"]) >= set(found["pages"][-1:])
    assert (found["faults"], found["evicted"]) == ([], [])
    refused = box.llmasos(*line, "--overflow", "error", check=False)
    assert (refused.returncode, refused.stdout) == (exits.MEMORY, b"")


def test_a_notice_is_told_once_in_a_conversation(box: Machine, cli: Cli, pid: str) -> None:
    done = box.llmasos("chat", "--pid", pid, "--max-tokens", "9", stdin=f"{LONG}\n{LONG}\n")
    assert done.stderr.count(b"[the request has") == 1
    quiet = box.llmasos("chat", "--pid", pid, "--no-recall", "--json", stdin="the deposit?\n")
    assert (documents(quiet)[0]["notices"], documents(quiet)[0]["faults"]) == ([], [])
