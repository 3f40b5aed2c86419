"""Logs are bounded, and what was written last is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.logfile import earlier, open_log
from llmasos.userland.cli import exits, main
from tests.conftest import Machine, documents

WRITER = """
import logging, os, sys
from pathlib import Path
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.logfile import LogHandler, open_log

limits.LOG_BYTES = 2_000
logging.basicConfig(handlers=[LogHandler(Path(sys.argv[1]))], format="%(message)s")
for number in range(1_000):
    logging.error("line %d", number)
    os.write(1 + number % 2, b"as libraries write\\n")
"""


def test_a_log_is_divided_while_it_is_written_and_no_recent_line_is_lost(tmp_path: Path) -> None:
    log = tmp_path / "log"
    descriptor = open_log(log)
    subprocess.run(
        [sys.executable, "-c", WRITER, log], stdout=descriptor, stderr=descriptor, check=True
    )
    os.close(descriptor)
    assert sorted(tmp_path.iterdir()) == [log, earlier(log)]
    assert 2_000 <= earlier(log).stat().st_size < 2_100
    assert log.stat().st_size < 2_100
    lines = (earlier(log).read_text() + log.read_text()).splitlines()
    assert lines.count("as libraries write") == (len(lines) + 1) // 2  # it wrote the first one, too
    numbers = [int(line.split()[1]) for line in lines if line.startswith("line")]
    assert numbers == list(range(1_000 - len(numbers), 1_000))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_full_log_is_the_earlier_one_of_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_BYTES", 5)
    log = tmp_path / "log"
    for text in (b"one", b"two", b"six"):
        descriptor = open_log(log)
        os.write(descriptor, text)
        os.close(descriptor)
    assert (earlier(log).read_text(), log.read_text()) == ("onetwo", "six")


def test_an_output_that_is_not_the_log_is_left_alone(
    tmp_path: Path,
) -> None:
    """Of a daemon that was started with a file of its own for its messages."""
    log, other = tmp_path / "log", tmp_path / "other"
    log.write_text("of another daemon")
    with other.open("w") as file:
        subprocess.run([sys.executable, "-c", WRITER, log], stdout=file, stderr=file, check=True)
    assert log.read_text() == "of another daemon"
    assert sorted(tmp_path.iterdir()) == [log, other]
    assert other.read_text().count("line") == 1_000


def test_a_daemon_without_outputs_goes_on(tmp_path: Path) -> None:
    program = f"{WRITER.partition('for number')[0]}logging.error('lost')\nPath(sys.argv[2]).touch()"
    line = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", program]
    subprocess.run([*line, tmp_path / "log", tmp_path / "done"], check=True)
    assert (tmp_path / "done").exists()


def test_the_log_is_read_across_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMASOS_STATE_DIR", str(tmp_path))
    log = tmp_path / "daemon.log"
    earlier(log).write_text("one\ntwo\n")
    log.write_text("three\nfour\n")
    for count, shown in ((3, "two three four"), (1, "four"), (9, "one two three four"), (0, "")):
        assert main(["daemon", "logs", "-n", str(count)]) == exits.OK
        assert capsys.readouterr().out.split() == shown.split()


def test_a_daemon_divides_its_log(machine: Machine) -> None:
    machine.limits(LOG_BYTES=50.0)
    machine.llmasos("daemon", "start", "--mount", "false")
    machine.llmasos("daemon", "stop")
    lines = [one["line"] for one in documents(machine.llmasos("daemon", "logs", "--json"))]
    assert earlier(machine.paths.log).exists()
    assert machine.paths.log.stat().st_size < 150
    assert "stopped" in lines[-1]
