"""Each suite measures something real in its tiny form; figures are judged as their bars say."""

import json
import time
from itertools import count
from pathlib import Path

import pytest

from llmasos.userland import bench
from llmasos.userland.bench import SUITES, quiet, run
from llmasos.userland.bench.figures import (
    Attempt,
    Bar,
    Document,
    Figure,
    Missing,
    Suite,
    Take,
    table,
)

BARS = (
    Bar("x.fast", "how fast", "a second", "higher", 100),
    Bar("x.slow", "how slow", "ms", "lower", 5),
)


def document(take: Take, *more: Attempt) -> Document:
    suite = Suite("x", BARS, lambda _tiny: take)
    return Document.of(suite, [Attempt(take, 0.01), *more], {"cores": 2}, {}, tiny=False)


@pytest.mark.parametrize("name", SUITES)
def test_each_suite_measures_every_figure_in_its_tiny_form(name: str) -> None:
    """P-12: every number is made again with one command. P-02: the whole path is compared."""
    measured = run(SUITES[name], tiny=True)
    assert not measured.missing
    for figure in measured.figures:
        assert figure.id.partition(".")[0] == name
        assert figure.value is not None
        assert figure.value > 0


def test_a_figure_is_the_median_of_its_repeats() -> None:
    fast, slow = document(Take({"x.fast": [90, 300, 110], "x.slow": [4.5]})).figures
    assert (fast.value, fast.good) == (110, True)
    assert (slow.value, slow.good) == (4.5, True)


def test_a_missed_bar_and_a_missing_figure_are_not_good() -> None:
    assert not document(Take({"x.fast": [99], "x.slow": [1]})).good
    assert not document(Take({"x.fast": [101]})).good
    assert not Figure("x", "", None, "", "lower", 1).good


def test_a_missing_peer_is_reported_with_its_command_and_fails_the_check() -> None:
    said = document(Take({"x.fast": [101], "x.slow": [1]}, {}, [Missing("peer", "get peer")]))
    assert not said.good
    assert "install it by: get peer" in table(said)


def test_the_quietest_attempt_counts_and_says_that_it_was_noisy() -> None:
    loud = Take({"x.fast": [1], "x.slow": [1]})
    calm = Take({"x.fast": [200], "x.slow": [1]})
    suite = Suite("x", BARS, lambda _tiny: calm)
    said = Document.of(suite, [Attempt(loud, 0.4), Attempt(calm, 0.2)], {}, {}, tiny=False)
    assert said.figures[0].value == 200
    assert said.noisy
    assert "NOISY" in table(said)


def test_a_noisy_take_is_repeated_three_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(0, 1000)
    monkeypatch.setattr(quiet, "now", lambda: quiet.Clock(total := next(ticks), total // 2, 0))
    assert len(quiet.quietly(lambda: Take({}), 3)) == 3


def test_a_quiet_take_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "now", lambda: quiet.Clock(1000, 500, 500))
    assert len(quiet.quietly(lambda: Take({}), 3)) == 1


def test_our_own_work_is_not_foreign() -> None:
    before = quiet.now()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = quiet.now()
    assert before is not None
    assert after is not None
    assert after.own - before.own >= 20  # of about 30 ticks
    assert after.busy - before.busy >= after.own - before.own - 2


def test_an_unknown_suite_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["nothing"]) == 2
    assert "syscall, startup" in capsys.readouterr().err


def test_json_and_files_hold_the_whole_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite = Suite("x", BARS, lambda _tiny: Take({"x.fast": [99.0], "x.slow": [1.0]}))
    monkeypatch.setitem(SUITES, "x", suite)
    assert bench.main(["x", "--json", "--tiny", "--out", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert {"name", "date", "machine", "versions", "model", "figures", "raw"} <= said.keys()
    assert said["figures"][0] == {
        "id": "x.fast", "what": "how fast", "value": 99.0, "unit": "a second",
        "better": "higher", "bar": 100,
    }  # fmt: skip
    assert said["raw"][0]["take"]["values"]["x.fast"] == [99.0]
    assert bench.main(["x", "--tiny", "--check"]) == 1
