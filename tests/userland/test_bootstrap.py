"""The set-up says what is missing before the wait, and how far the build is."""

import fcntl
import os
from pathlib import Path

import pytest

from llmasos.userland import bootstrap


def test_a_missing_compiler_is_said_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P-01: the only prerequisite is named before anything is built."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.Missing, match=r"no C\+\+ compiler.*\n  \S+"):
        bootstrap.check_compiler()


def test_a_compiler_that_cannot_compile_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(bootstrap.Missing, match="false cannot compile"):
        bootstrap.check_compiler()


def test_an_old_python_is_refused() -> None:
    with pytest.raises(bootstrap.Missing, match=r"Python 3\.9\.2 is too old"):
        bootstrap.check_python((3, 9, 2))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  [12/140] /usr/bin/c++ -o x.o", (12, 140)),
        ("  [ 42%] Building CXX object", (42, 100)),
        ("  Building wheel for llama-cpp-python", None),
        ("  note: [3/4] is in the middle", None),
    ],
)
def test_progress_is_read_from_ninja_and_make(line: str, expected: tuple[int, int] | None) -> None:
    assert bootstrap.progress(line) == expected


def test_without_a_terminal_every_tenth_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    meter = bootstrap.Meter("llama.cpp")
    for done in range(1, 141):
        meter.see(f"  [{done}/140] c++")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert "140 of 140 files" in lines[-1]


def test_the_stamp_changes_with_the_constraints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = bootstrap.wanted_stamp()
    other = tmp_path / "constraints.txt"
    other.write_text("pip==1\n", encoding="utf-8")
    monkeypatch.setattr(bootstrap, "CONSTRAINTS", other)
    assert bootstrap.wanted_stamp() != before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512f avx512_vnni", True), ("fpu avx2 avx_vnni", False), ("avx512_vnni_x", False)],
)
def test_openvino_is_installed_where_the_processor_has_its_instructions(
    flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n", encoding="utf-8")
    monkeypatch.setattr(bootstrap, "CPU_INFO", info)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert bootstrap.has_openvino() is expected


def test_openvino_is_not_installed_where_no_processor_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bootstrap, "CPU_INFO", tmp_path / "none")
    assert not bootstrap.has_openvino()


def test_a_set_up_waits_for_another_and_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "PROGRESS", tmp_path / "progress.log")
    bootstrap.PROGRESS.write_text("  llama.cpp: compiled 34 of 340 files\n", encoding="utf-8")
    other, own = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        fcntl.flock(other, fcntl.LOCK_EX)

        # The other set-up ends while this one waits.
        def end_other(_seconds: float) -> None:
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr("time.sleep", end_other)
        bootstrap.lock(own)
        assert not bootstrap.is_free(other)
    finally:
        os.close(other)
        os.close(own)
    assert "compiled 34 of 340 files" in capsys.readouterr().out


def test_a_complete_set_up_starts_nothing_in_the_background(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "ready")
    bootstrap.STAMP.write_text(bootstrap.wanted_stamp(), encoding="utf-8")
    assert bootstrap.is_done(bootstrap.STAMP)
    bootstrap.start_background()
    assert capsys.readouterr().out == ""
    bootstrap.STAMP.write_text("of another version", encoding="utf-8")
    assert not bootstrap.is_done(bootstrap.STAMP)
