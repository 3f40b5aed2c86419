"""A Chroma process that does not read: a search goes on without it, and only a request ends it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.drivers.recall import chroma_process
from llmasos.drivers.recall.chroma_process import ChromaProcess, ProcessLost
from llmasos.drivers.recall.chroma_store import CLOSE
from llmasos.kernel.abi import limits

LARGE = b"x" * 4_000_000  # more than a socket holds


class Beats:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def beats() -> Beats:
    return Beats()


@pytest.fixture
def chroma(beats: Beats) -> Iterator[ChromaProcess]:
    process = ChromaProcess(beats)
    process.ask(CLOSE, "/nowhere")
    yield process
    process.end()


def pid_of() -> int:
    """The only child that runs Chroma."""
    [found] = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _is_ours(folder)
    ]
    return found


def _is_ours(folder: Path) -> bool:
    try:
        command = (folder / "cmdline").read_bytes().split(b"\0")
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"llmasos.drivers.recall.chroma" in command and parent == os.getpid()


def test_searches_do_not_end_a_process_that_got_no_processor(chroma: ChromaProcess) -> None:
    pid = pid_of()
    os.kill(pid, signal.SIGSTOP)
    assert chroma.ask_if_idle(CLOSE, "/nowhere", LARGE) is None  # a part of it is not sent
    for _ in range(3):
        assert chroma.ask_if_idle(CLOSE, "/nowhere") is None  # the first one is not answered yet
    os.kill(pid, signal.SIGCONT)
    assert chroma.ask(CLOSE, "/nowhere") == []
    assert pid_of() == pid


def test_a_search_is_asked_again_when_the_late_answer_has_come(chroma: ChromaProcess) -> None:
    pid = pid_of()
    os.kill(pid, signal.SIGSTOP)
    assert chroma.ask_if_idle(CLOSE, "/nowhere") is None
    os.kill(pid, signal.SIGCONT)
    while chroma.ask_if_idle(CLOSE, "/nowhere") is None:
        assert not chroma.has_exited()
    assert pid_of() == pid


def test_a_request_that_cannot_be_sent_beats_and_ends_the_process(
    chroma: ChromaProcess, beats: Beats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma_process, "_HEARTBEAT_S", 0.05)
    monkeypatch.setattr(chroma_process, "_GRACE_S", 0.1)
    monkeypatch.setattr(limits, "CHROMA_HANG_S", 0.5)
    os.kill(pid_of(), signal.SIGSTOP)
    before = beats.count
    with pytest.raises(ProcessLost, match=r"did not answer a request within 0\.5 s"):
        chroma.ask(CLOSE, "/nowhere", LARGE)
    assert beats.count > before + 1
