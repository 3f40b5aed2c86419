"""The command line: what it prints, what it says on stderr, and how it ends."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.cli import exits, main, show
from llmasos.userland.cli.table import GROUPS, VERBS, group_help, help_text
from llmasos.userland.client import BlockingClient
from tests.conftest import LIMIT_S, Machine, documents
from tests.loaded import modules_after
from tests.userland.inside import Cli, Said, command

HEAVY = {
    "anyio", "asyncio", "pydantic", "subprocess", "sqlite3", "llama_cpp", "casbin", "ssl",
    "llmasos.kernel.abi.values.pages", "llmasos.kernel.abi.values.policy",
}  # fmt: skip


@pytest.fixture
def cli(
    shared: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """The command of the shared machine's owner, in this process."""
    return command(shared, monkeypatch, capsys)


# --- the table --------------------------------------------------------------------------------
# Each verb's arguments beside --json; {pid} is a living process, {file} a model's file.
WALK: dict[str, list[str]] = {
    "run": ["-m", "echo", "hello"],
    "chat": ["-m", "echo"],
    "embed": ["-m", "smollm2", "hello"],
    "ps": ["-a"],
    "top": ["--once"],
    "attach": ["{ended}"],
    "mem": ["{pid}"],
    "mem why": ["{pid}:0"],
    "mem search": ["{pid}", "hi"],
    "mem read": ["{pid}", "0"],
    "mem write": ["{pid}", "a", "note"],
    "mem pin": ["{pid}", "0"],
    "mem evict": ["{pid}", "1"],
    "mem map": ["{pid}", __file__],
    "mem unmap": ["{pid}", "3"],
    "mem share": ["{pid}", "{other}", "0-1"],
    "mem forget": ["-y", "{pid}", "2"],
    "mem export": ["{pid}"],
    "mem fsck": [],
    "send": ["{pid}", "hello"],
    "recv": ["{pid}"],
    "logs": ["-n", "5"],
    "nice": ["3", "{pid}"],
    "fork": ["{pid}"],
    "models list": [],
    "models show": ["echo"],
    "models alias": ["parrot", "echo"],
    "models add": ["blob", "{file}"],
    "models tune": ["smollm2", "--no-measure"],
    "models rm": ["blob"],
    "devices": [],
    "devices restart": ["echo"],
    "poison list": [],
    "poison lift": ["--all"],
    "kill": ["{pid}"],
    "wait": ["{pid}"],
    "rm": ["{forked}"],
    "prune": ["-y"],
    "unmount": ["echo"],
    "mount": ["echo"],
    "daemon start": [],
    "daemon status": [],
    "daemon logs": [],
    "config list": [],
    "config set": ["window", "2048"],
    "config get": ["window"],
    "config unset": ["window"],
    "config path": [],
    "doctor": [],
    "bench": ["mailbox", "--tiny"],
    "version": [],
    "secrets set": ["parrot"],
    "secrets list": [],
    "secrets rm": ["parrot"],
    "users add": ["bob"],
    "users list": [],
    "users role": ["bob", "guest"],
    "keys create": ["--user", "bob"],
    "keys list": [],
    "keys revoke": ["{key}"],
    "users rm": ["-y", "bob"],
    "policy list": [],
    "policy add": ["p, r:x, ps, /proc, deny"],
    "policy rm": ["p, r:x, ps, /proc, deny"],
    "policy undo": [],
    "policy reload": [],
    "policy edit": [],
    "policy lint": [],
    "policy test": ["r:careful", "ps", "/proc/own"],
    "policy explain": ["r:careful", "ps", "/proc"],
    "policy simulate": ["/dev/null"],
    "policy learn": ["run"],
    "daemon restart": [],
    "daemon stop": [],
}
TYPED = {"chat", "secrets set"}  # what reads stdin
ELSEWHERE = {"daemon run"}  # it becomes the daemon and prints nothing


def test_every_verb_is_walked() -> None:
    assert set(WALK) | ELSEWHERE == set(VERBS)


def test_every_verb_prints_json_that_parses(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-09: everything can be seen in a terminal or in JSON."""
    machine.environment |= {"LLMASOS_MOUNT": "false", "EDITOR": "true"}
    for name, value in machine.environment.items():  # of the daemons that the commands start, too
        monkeypatch.setenv(name, value)
    cli = command(machine, monkeypatch, capsys)
    words: dict[str, Any] = {
        name: cli("run", "--json", "--keep", "-m", "echo", "hi").json["pid"]  # starts the daemon
        for name in ("pid", "ended", "other")
    }
    words["file"] = cli("models", "show", "smollm2", "--json").json["path"]
    cli("kill", str(words["ended"]))
    for verb, arguments in WALK.items():
        line = [*verb.split(), *(one.format(**words) for one in arguments), "--json"]
        if verb in TYPED:
            done = machine.llmasos(*line, stdin="hello\n", check=False)
            said = Said(done.returncode, done.stdout.decode(), done.stderr.decode())
        else:
            said = cli(*line)
        found = [json.loads(text) for text in said.out.splitlines()]
        if verb == "fork":
            words["forked"] = found[0]["pids"][0]
        if verb == "keys create":
            words["key"] = found[0]["id"]
        assert found, (verb, said)
        assert said.code == (found[0]["code"] if verb == "wait" else 0), (verb, said)
        assert said.err == "", (verb, said)


def test_the_help_names_every_verb_and_imports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {words} " in shown for words in VERBS)
    assert shown.strip() == help_text()
    loaded = modules_after("from llmasos.userland.cli import main\nmain(['--help'])")
    assert loaded & {*HEAVY, "argparse", "dataclasses", "msgpack"} == set()


def test_ps_loads_no_heavy_module(shared: Machine) -> None:
    code = "from llmasos.userland.cli import main\nassert main(['ps']) == 0"
    assert modules_after(code, shared.environment) & HEAVY == set()


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_group_lists_its_verbs(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {words} " in shown for words in VERBS if words.startswith(f"{group} "))


def test_the_help_fits_a_terminal_of_80_columns() -> None:
    told = [help_text(), *(group_help(group) for group in GROUPS)]
    assert [line for text in told for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("words", [[verb.name] for verb in VERBS.values() if not verb.rest])
def test_every_verb_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words[0].split(), "--help"]) == 0
    assert words[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        [], ["nonsense"], ["models"], ["models", "nonsense"], ["kill"], ["kill", "-s", "HUP", "1"],
        ["ps", "extra"], ["nice", "50", "1"], ["run", "--temperature", "-5", "x"], ["wait", "-3"],
        ["run", "--max-tokens", "0", "x"], ["logs", "--after", "-1"], ["logs", "--since", "5"],
        ["run", "--bias", "7", "x"], ["run", "--bias", "7=101", "x"], ["run", "--bias", "x=1", "x"],
        ["run", "--logprobs", "21", "x"],
    ],
)  # fmt: skip
def test_wrong_usage_is_two(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == exits.USAGE
    out, said = capsys.readouterr()
    assert (out, bool(said)) == ("", True)


# --- without a daemon -------------------------------------------------------------------------
def test_autostart_can_be_forbidden_to_run(machine: Machine) -> None:
    done = machine.llmasos("run", "-m", "echo", "hi", check=False, LLMASOS_AUTOSTART="0")
    assert done.returncode == exits.NO_DAEMON


def test_a_daemon_is_started_stopped_and_told_about(machine: Machine) -> None:
    done = machine.llmasos("daemon", "status", "--json", check=False)
    assert done.returncode == exits.NO_DAEMON
    assert documents(done)[0]["up"] is False
    first = documents(machine.llmasos("daemon", "start", "--mount", "false", "--json"))[0]
    second = documents(machine.llmasos("daemon", "start", "--json"))[0]
    assert (first["started"], second["started"]) == (True, False)
    assert first["os_pid"] == second["os_pid"]
    assert first["private"] is False
    assert b"ready" in machine.llmasos("daemon", "logs").stdout
    machine.llmasos("daemon", "stop")
    assert not machine.paths.socket.exists()
    assert machine.llmasos("daemon", "stop", check=False).returncode == exits.NO_DAEMON


def test_daemon_run_is_the_daemon_itself(machine: Machine) -> None:
    ready, tell = os.pipe()
    line = [sys.executable, "-m", "llmasos", "daemon", "run", "--mount", "false"]
    with subprocess.Popen(
        [*line, "--ready-fd", str(tell)], env=machine.environment, pass_fds=(tell,),
        stderr=subprocess.DEVNULL,
    ) as daemon:  # fmt: skip
        os.close(tell)
        assert os.read(ready, 64)
        os.close(ready)
        stat = documents(machine.llmasos("daemon", "status", "--json"))[0]
        assert stat["os_pid"] == daemon.pid
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(LIMIT_S) == 0


# --- run --------------------------------------------------------------------------------------
def test_an_answer_goes_to_stdout_and_nothing_else_does(shared: Machine) -> None:
    done = shared.llmasos("run", "-m", "echo", "--temperature", "0", "one", "two")
    assert (done.stdout, done.stderr) == (b"one two\n", b"")
    apps = {p["app"] for p in json.loads(shared.llmasos("ps", "-a", "--json").stdout)["processes"]}
    assert "run" not in apps


def test_stdin_is_part_of_the_prompt(shared: Machine) -> None:
    line = ["run", "-m", "echo", "--temperature", "0"]
    assert shared.llmasos(*line, stdin="piped").stdout == b"piped\n"
    assert shared.llmasos(*line, "Say:", stdin="piped\n").stdout == b"Say:\n\npiped\n"
    done = shared.llmasos(*line, check=False)
    assert done.returncode == exits.USAGE


def test_a_prompt_over_a_frame_says_how_a_file_is_taken(machine: Machine) -> None:
    done = machine.llmasos("run", "-m", "echo", "Sum:", stdin="x" * 1_200_000, check=False)
    assert (done.returncode, done.stdout) == (exits.MEMORY, b"")
    assert b"E2BIG: the text has 1200006 characters, 1200006 bytes; the limits are" in done.stderr
    assert b"`llmasos mem map PID FILE` maps a whole file" in done.stderr
    assert not machine.paths.socket.exists()  # no daemon was started for that


def test_the_default_model_can_be_chosen(shared: Machine) -> None:
    line = ["run", "--json", "hi"]
    done = shared.llmasos(*line, LLMASOS_MODEL="echo")
    assert documents(done)[0]["model"] == "echo"
    shared.paths.config.mkdir(exist_ok=True)
    shared.paths.config_file.write_text('model = "echo"\n')
    try:
        assert documents(shared.llmasos(*line))[0]["model"] == "echo"
    finally:
        shared.paths.config_file.unlink()


def test_json_says_how_an_answer_came_about(shared: Machine) -> None:
    line = ["run", "-m", "echo", "--json", "--seed", "7", "--max-tokens", "2", "a b c d e f"]
    one, two = (documents(shared.llmasos(*line))[0] for _ in range(2))
    assert one["text"] == two["text"]
    assert (one["finish"], one["seed"]) == ("length", 7)
    assert one["usage"]["completion_tokens"] == 2
    assert one["usage"]["drafted_tokens"] == one["usage"]["accepted_tokens"] == 0


def test_a_lookup_that_the_engine_does_not_have_is_refused(shared: Machine) -> None:
    done = shared.llmasos("run", "-m", "echo", "--lookup", "a b c", check=False)
    assert b"does not support lookup" in done.stderr
    line = ("run", "-m", "echo", "--no-lookup", "--temperature", "0", "a b c")
    assert shared.llmasos(*line).stdout == b"a b c\n"


def test_each_turn_of_a_chat_has_a_seed_of_its_own(shared: Machine, pid: int) -> None:
    """With the same one a small model says the same again."""
    line = ["chat", "--pid", str(pid), "--json", "--seed", str(2**32 - 2)]
    turns = documents(shared.llmasos(*line, stdin="one two three\none two three\n"))
    assert [turn["seed"] for turn in turns] == [2**32 - 2, 0]


def test_a_kept_process_goes_on_in_chat(shared: Machine, pid: int) -> None:
    done = shared.llmasos("chat", "--pid", str(pid), "--temperature", "0", stdin="three\n")
    assert b"three\n" in done.stdout
    assert f"`llmasos chat --pid {pid}`".encode() in done.stderr
    pages = documents(shared.llmasos("mem", str(pid), "--json"))[0]["pages"]
    assert [page["text"] for page in pages] == ["one two", "one two", "three", "three"]
    assert b"[user]\none two\n[assistant]" in shared.llmasos("mem", "--text", str(pid)).stdout


def test_a_chat_in_which_nobody_spoke_is_not_kept(shared: Machine) -> None:
    before = shared.llmasos("ps", "-a", "--json").stdout
    shared.llmasos("chat", "-m", "echo", stdin="\n\n")
    assert shared.llmasos("ps", "-a", "--json").stdout == before


def test_the_embedded_model_answers(machine: Machine) -> None:
    """P-01: an agent answers on a real model, on a machine that was never used."""
    machine.sense()
    machine.both_engines()
    del machine.environment["LLMASOS_MOUNT"]
    done = machine.llmasos("run", "Say hello.", "--max-tokens", "8", "--seed", "1")
    assert done.stdout.strip()
    assert b"started a private daemon" in done.stderr


# --- errors -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (["run", "-m", "nothing", "hi"], exits.NOT_FOUND),
        (["kill", "9999"], exits.NOT_FOUND),
        (["chat", "--pid", "9999"], exits.NOT_FOUND),
        (["mem", "9999"], exits.NOT_FOUND),
        (["models", "show", "nothing"], exits.NOT_FOUND),
        (["models", "add", "x", "missing.gguf"], exits.NOT_FOUND),
        (["models", "rm", "echo"], exits.FAILED),
        (["run", "-m", "echo", "--overflow", "error", "x" * 30_000], exits.MEMORY),
        (["mount", "echo", "--set", "window"], exits.FAILED),
        (["mount", "echo", "--set", "speed=3"], exits.FAILED),
    ],
)
def test_errors_have_their_exit_code_and_say_what_to_do(
    cli: Cli, line: list[str], code: int
) -> None:
    said = cli(*line)
    assert said.code == code, said.err
    assert re.match(r"llmasos: E[A-Z0-9]+: .+\n  \S", said.err), said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("errno", "code"),
    [(Errno.EACCES, 77), (Errno.ETIMEDOUT, 124), (Errno.EIO, 5), (Errno.EPOISON, 5),
     (Errno.ENOMEM, 6), (Errno.E2BIG, 6), (Errno.EPIPE, 4), (Errno.ESRCH, 3), (Errno.EINVAL, 1)],
)  # fmt: skip
def test_errnos_have_exit_codes(errno: Errno, code: int) -> None:
    assert exits.code(SyscallError(errno, "x")) == code


def test_text_that_is_not_utf8_is_refused(shared: Machine) -> None:
    done = shared.llmasos("run", "-m", "echo", stdin=b"ab\xff", check=False)
    assert (done.returncode, b"byte 2" in done.stderr) == (exits.FAILED, True)
    line: list[str | bytes] = [sys.executable, "-m", "llmasos", "run", "-m", "echo", b"\xff"]
    raw = subprocess.run(
        line, env=shared.environment, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert (raw.returncode, b"UTF-8" in raw.stderr) == (exits.FAILED, True)


def test_a_policy_that_denies_is_77(machine: Machine) -> None:
    machine.paths.config.mkdir()
    machine.paths.policy_file.write_text("p, r:operator, mount, /dev/image/*, deny\n")
    machine.start("--mount", "false")
    done = machine.llmasos("mount", "echo", check=False)
    assert done.returncode == exits.DENIED


# --- doctor, tables ---------------------------------------------------------------------------
def test_doctor_finds_what_is_wrong_and_how_to_mend_it(machine: Machine) -> None:
    machine.paths.state.mkdir(mode=0o755)
    done = machine.llmasos("doctor", check=False)
    assert done.returncode == exits.FAILED
    assert f"chmod 700 {machine.paths.state}".encode() in done.stdout
    missing = machine.llmasos("doctor", "--json", check=False, PATH="/nowhere", CXX="")
    checks = {one["name"]: one for one in json.loads(missing.stdout)["checks"]}
    assert checks["compiler"]["status"] == "warn"
    assert all(one["fix"] for one in checks.values() if one["status"] != "ok")


def test_doctor_and_status_show_an_index_that_is_stuck(machine: Machine) -> None:
    def index() -> dict[str, str]:
        done = machine.llmasos("doctor", "--json", check=False)
        checks: list[dict[str, str]] = json.loads(done.stdout)["checks"]
        return next(one for one in checks if one["name"] == "index")

    machine.meaning()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        line.call("write_mem", v.WriteMem(pid, "My dog is afraid of thunder."), v.Written)
    assert index()["status"] == "ok"
    machine.stop()
    [pages] = machine.paths.state.glob("owners/*/pages.db")
    with closing(sqlite3.connect(pages)) as database, database:
        database.execute("INSERT OR REPLACE INTO derived VALUES('vectors', 'another')")
        database.execute("INSERT OR REPLACE INTO todo SELECT id, time - 200 FROM pages")
    machine.start("--mount", "false")
    machine.llmasos("mem", "search", str(pid), "pets")
    assert index()["status"] == "warn"
    assert re.search(r"1 page has been waiting for its vector for \d+m", index()["what"])
    assert "the vectors are of another" in index()["what"]
    status = documents(machine.llmasos("daemon", "status", "--json"))[0]
    assert (status["pages_waiting"], status["indexing"]) == (1, "stuck")


def test_tables_align_and_stay_on_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("PID", "NAME"), [(7, "a\nb"), (12, "\x1bc")])
    assert capsys.readouterr().out == "PID  NAME\n  7  a␊b\n 12  ␛c\n"


def test_sizes_and_spans_are_for_people() -> None:
    assert [show.size(n) for n in (0, 999, 1500, 98e6, 5e12)] == [
        "0 B", "999 B", "1.5 kB", "98.0 MB", "5.0 TB",
    ]  # fmt: skip
    assert [show.span(s) for s in (0, 59, 185, 7620, 400_000)] == [
        "0s", "59s", "3m05s", "2h07m", "4d",
    ]  # fmt: skip
    assert show.iso(0.5) == "1970-01-01T00:00:00.500Z"


def test_doctor_reads_the_files_that_a_daemon_would_read(machine: Machine) -> None:
    machine.paths.config.mkdir(parents=True)
    (machine.paths.config / "policy.csv").write_text("p, r:careful, fly, /sky, allow\n")
    done = machine.llmasos("doctor", "--json", check=False)
    checks = {check["name"]: check for check in documents(done)[0]["checks"]}
    assert done.returncode == exits.FAILED
    assert "policy.csv:1: no syscall 'fly'" in checks["settings"]["what"]
    (machine.paths.config / "policy.csv").unlink()
    (machine.paths.config / "config.toml").write_text("windoe = 3\n")
    done = machine.llmasos("doctor", "--json", check=False)
    checks = {check["name"]: check for check in documents(done)[0]["checks"]}
    assert "windoe" in checks["settings"]["what"]
