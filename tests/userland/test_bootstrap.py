"""The set-up says what is missing before the wait, and how far the build is."""

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
