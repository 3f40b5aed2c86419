"""Signals, terminals and pipes: the command line beside people and other programs."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

from llmasos.kernel.abi import values as v
from llmasos.userland.cli import exits
from llmasos.userland.client import BlockingClient
from tests.conftest import LIMIT_S, Machine, documents
from tests.waiting import until

LONG = "word " * 400


# --- signals ----------------------------------------------------------------------------------
def test_kill_takes_every_spelling_and_tells_each_failure(shared: Machine, pid: int) -> None:
    def state() -> object:
        found = json.loads(shared.llmasos("ps", "--json").stdout)["processes"]
        return {one["pid"]: one["state"] for one in found}.get(pid)

    shared.llmasos("kill", "-STOP", str(pid))
    assert state() == "stopped"
    shared.llmasos("kill", "-s", "cont", str(pid))
    assert state() == "ready"
    done = shared.llmasos("kill", "--json", "-9", "9999", str(pid), check=False)
    assert done.returncode == exits.NOT_FOUND
    said = documents(done)[0]
    assert said["sent"] == [pid]
    assert [(one["pid"], one["errno"]) for one in said["failed"]] == [(9999, "ESRCH")]
    assert shared.llmasos("wait", str(pid), check=False).returncode == 137


def test_wait_gives_up_in_time(shared: Machine, pid: int) -> None:
    done = shared.llmasos("wait", "--timeout", "0.05", str(pid), check=False)
    assert done.returncode == exits.TIMEOUT


def test_ctrl_c_interrupts_the_process_and_keeps_what_was_said(slow: Machine) -> None:
    run = slow.begin("run", "-m", "echo", "--keep", "--temperature", "0", LONG)
    assert run.stdout is not None
    first = run.stdout.read(1)
    run.send_signal(signal.SIGINT)
    rest, said = run.communicate(timeout=LIMIT_S)
    assert run.returncode == exits.INTERRUPTED
    number = re.search(rb"pid (\d+)", said)
    assert number is not None
    pages = documents(slow.llmasos("mem", number[1].decode(), "--json"))[0]["pages"]
    texts = [page["text"] for page in pages]
    assert (first + rest).decode().strip() == texts[-1].strip()
    assert len(texts[-1]) < len(LONG)


def test_ctrl_c_cancels_a_single_answer(slow: Machine) -> None:
    run = slow.begin("run", "-m", "echo", "--temperature", "0", LONG)
    assert run.stdout is not None
    first = run.stdout.read(1)
    run.send_signal(signal.SIGINT)
    rest, said = run.communicate(timeout=LIMIT_S)
    assert (run.returncode, said) == (exits.INTERRUPTED, b"[interrupted]\n")
    assert LONG.startswith((first + rest).decode().strip())
    assert json.loads(slow.llmasos("ps", "-a", "--json").stdout)["processes"] == []


def test_a_second_ctrl_c_leaves(slow: Machine) -> None:
    run = slow.begin("run", "-m", "echo", LONG)
    assert run.stdout is not None
    run.stdout.read(1)
    with BlockingClient(slow.paths.socket) as line:
        (info,) = line.call("ps", v.Ps(), v.Processes).processes
        line.call("kill", v.Kill(info.pid, v.Signal.STOP), v.Nothing)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=LIMIT_S)
    assert run.returncode == exits.INTERRUPTED


def test_attach_detaches_and_the_process_goes_on(slow: Machine) -> None:
    run = slow.begin("run", "-m", "echo", "--temperature", "0", LONG)
    assert run.stdout is not None
    run.stdout.read(1)
    pid = json.loads(slow.llmasos("ps", "--json").stdout)["processes"][0]["pid"]
    attach = slow.begin("attach", str(pid))
    assert attach.stdout is not None
    assert attach.stdout.read(1)
    attach.send_signal(signal.SIGINT)
    _rest, said = attach.communicate(timeout=LIMIT_S)
    assert (attach.returncode, b"continues" in said) == (exits.OK, True)
    assert json.loads(slow.llmasos("ps", "--json").stdout)["processes"][0]["state"] == "running"
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=LIMIT_S)


def test_a_timeout_is_124_and_what_was_said_stands(slow: Machine) -> None:
    done = slow.llmasos("run", "-m", "echo", "--timeout", "0.5", LONG, check=False)
    assert done.returncode == exits.TIMEOUT
    assert done.stdout


def test_logs_follow_what_happens(shared: Machine, pid: int) -> None:
    logs = shared.begin("logs", "-f", "--json", "--after", "0", str(pid))
    assert logs.stdout is not None
    first = json.loads(logs.stdout.readline())
    shared.llmasos("nice", "4", str(pid))
    for line in logs.stdout:
        event = json.loads(line)
        assert event["pid"] == first["pid"] == pid
        if event["syscall"] == "nice":
            break
    logs.send_signal(signal.SIGINT)
    logs.communicate(timeout=LIMIT_S)
    assert logs.returncode == exits.INTERRUPTED
    assert b"nice" in shared.llmasos("logs", "-n", "1000", str(pid)).stdout


def test_the_daemons_log_can_be_followed(machine: Machine) -> None:
    assert machine.llmasos("daemon", "logs", check=False).returncode == exits.NOT_FOUND
    machine.llmasos("daemon", "start", "--mount", "false")
    logs = machine.begin("daemon", "logs", "-f", "--json")
    assert logs.stdout is not None
    assert "ready" in json.loads(logs.stdout.readline())["line"]
    machine.llmasos("daemon", "stop")
    assert "stopped" in json.loads(logs.stdout.readline())["line"]
    logs.send_signal(signal.SIGINT)
    logs.communicate(timeout=LIMIT_S)
    assert logs.returncode == exits.INTERRUPTED


# --- terminals --------------------------------------------------------------------------------
def on_a_terminal(machine: Machine, *words: str, **variables: str) -> str:
    """What a person at a terminal sees."""
    master, slave = pty.openpty()
    line = [sys.executable, "-m", "llmasos", *words]
    with subprocess.Popen(
        line, env={**machine.environment, **variables}, stdin=slave, stdout=slave, stderr=slave
    ) as child:
        os.close(slave)
        seen = b""
        while select.select([master], [], [], LIMIT_S)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            seen += data
        os.close(master)
        assert child.wait(LIMIT_S) == 0
    return seen.decode()


def test_escape_sequences_of_a_model_are_shown_and_not_obeyed(shared: Machine) -> None:
    line = ["run", "-m", "echo", "--temperature", "0", "a\x1b[31mb\rc\x9bd\ne\tf"]
    assert shared.llmasos(*line).stdout.decode() == "a\x1b[31mb\rc\x9bd\ne\tf\n"
    seen = on_a_terminal(shared, *line)
    assert "\x1b" not in seen
    assert "a␛[31mb␍c\ufffdd\r\ne\tf" in seen


def test_a_chat_at_a_terminal_survives_ctrl_c_and_tells_how_to_go_on(slow: Machine) -> None:
    master, slave = pty.openpty()
    line = [sys.executable, "-m", "llmasos", "chat", "-m", "echo", "--temperature", "0"]
    with subprocess.Popen(
        line, env={**slow.environment, "TERM": "dumb"}, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True,
    ) as child:  # fmt: skip
        os.close(slave)
        seen = expect(master, b"> ")
        os.write(master, LONG[:300].encode() + b"\n")
        expect(master, b"\r\nword")
        child.send_signal(signal.SIGINT)  # ends the answer
        expect(master, b"> ")
        # Python's input() shows its prompt before it waits, and loses a signal that comes between.
        until(lambda: is_asleep(child.pid), LIMIT_S)
        child.send_signal(signal.SIGINT)  # forgets a line
        expect(master, b"/quit")
        os.write(master, b"/stat\n")
        expect(master, b"  chat  word word")
        os.write(master, b"/quit\n")
        expect(master, b"keeps this conversation")
        assert child.wait(LIMIT_S) == 0
    os.close(master)
    assert b"pid 1" in seen


def is_asleep(pid: int) -> bool:
    """Whether the main thread of a process waits."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def expect(terminal: int, words: bytes) -> bytes:
    """Read until these words have been shown."""
    seen = b""
    while words not in seen:
        assert select.select([terminal], [], [], LIMIT_S)[0], seen
        seen += os.read(terminal, 65536)
    return seen


def test_colour_is_for_terminals_that_want_it(shared: Machine) -> None:
    assert b"\x1b" not in shared.llmasos("doctor").stdout
    assert "\x1b[32mok" in on_a_terminal(shared, "doctor", TERM="xterm", NO_COLOR="")
    assert "\x1b" not in on_a_terminal(shared, "doctor", NO_COLOR="1")


def test_a_reader_who_leaves_is_no_error(shared: Machine, pid: int) -> None:
    script = f"{sys.executable} -m llmasos logs --after 0 --json | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], env=shared.environment, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


def test_top_draws_again(shared: Machine, pid: int) -> None:
    top = shared.begin("top", "--interval", "0.1", "--json")
    assert top.stdout is not None
    samples = [json.loads(top.stdout.readline()) for _ in range(3)]
    top.send_signal(signal.SIGINT)
    top.communicate(timeout=LIMIT_S)
    assert top.returncode == 0
    assert pid in {one["pid"] for one in samples[-1]["processes"]}
    shown = on_a_terminal(shared, "top", "--once")
    assert "TITLE" in shown
    assert max(len(line) for line in shown.partition("DEVICE")[0].splitlines()) <= 80
