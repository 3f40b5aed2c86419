"""Each suite measures something real in its tiny form; figures are judged as their bars say."""

import json
import math
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland import bench
from llmasos.userland.bench import SUITES, choices, engine, fairness, fault, quiet, run, throughput
from llmasos.userland.bench.answers import TimedAnswer, crowded, longest_gap_s, step_s
from llmasos.userland.bench.figures import (
    Attempt,
    Bar,
    Figure,
    MissingFigure,
    ResultFile,
    Suite,
    Take,
    table,
)
from llmasos.userland.bench.peers import (
    HOST,
    LLAMA,
    Absent,
    PeerServer,
    llama_server,
    pipeline,
)
from llmasos.userland.bench.rig import (
    MODEL,
    RigError,
    daemon,
    engine_of,
    engines_used,
    image,
    mounted,
    on_engine,
    tuned,
)
from llmasos.userland.bench.texts import Chat
from llmasos.userland.cli.exits import UsageError

BARS = (
    Bar("x.fast", "how fast", "a second", "higher", 100),
    Bar("x.slow", "how slow", "ms", "lower", 5),
)


LONG = ("choices", "engine", "exact", "layout", "paging", "throughput")


def document(take: Take, *more: Attempt) -> ResultFile:
    suite = Suite("x", BARS, lambda _tiny: take)
    return ResultFile.of(suite, [Attempt(take, 0.01), *more], {"cores": 2}, {}, tiny=False)


# The tiny form of `choices` runs two dozen loops: its short form here is one pair of them. Those of
# LONG compute much, by what other suites and the tests of drivers use, too.
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in SUITES],
)
def test_each_suite_measures_every_figure_in_its_tiny_form(name: str) -> None:
    """P-12: every number is made again with one command. P-02: the whole path is compared."""
    measured = run(SUITES[name], tiny=True)
    absent = [gap.peer for gap in measured.missing if gap.install == "make peers"]
    assert len(absent) == len(measured.missing), measured.missing  # other gaps are failures
    for figure in measured.figures:
        assert figure.id.partition(".")[0] == name
        assert figure.value is not None or absent
        assert figure.value is None or math.isfinite(figure.value)


@pytest.mark.usefixtures("cheap")
def test_a_choice_is_measured_against_the_other_way() -> None:
    with tuned() as (_, client):
        found = image(client)
        loops = choices.Loops(found.tuned or found.path, 2, 3)
        row = choices.ROWS[0]
        chosen, other = (loops.rate(way, row.of) for way in (row.chosen, row.other))
    assert min(chosen, other) > 0


def test_a_figure_without_a_bar_is_told_and_never_missed() -> None:
    suite = Suite("x", (Bar("x.worth", "how much", "x", "higher"),), lambda _tiny: Take({}))
    said = ResultFile.of(suite, [Attempt(Take({"x.worth": [0.7]}), 0.0)], {}, {}, tiny=False)
    assert said.good
    assert "0.7" in table(said)
    assert "MISSED" not in table(said)


def test_the_settings_of_each_side_are_printed() -> None:
    take = Take({"x.fast": [101], "x.slow": [1]}, settings={"peer": {"slots": 16, "cache": True}})
    assert "  peer: slots 16, cache True" in table(document(take)).splitlines()


# --- what is computed from what was seen ----------------------------------------------------------
def heard(*times: float, begun: float = 0.0) -> TimedAnswer:
    answer = TimedAnswer(
        begun, [(at, 1) for at in times], times[-1], "text", len(times), 5, whole=True
    )
    return answer


def test_a_crowd_is_timed_from_its_first_call_to_its_last_answer() -> None:
    seen = crowded([heard(1, 2, 3, begun=0.5), heard(2, 3, 4.5)], 3, 5)
    assert seen.rate == 6 / 4.5
    assert seen.ttft_p50_s == 1.25


def test_a_single_call_is_a_crowd_of_its_own() -> None:
    seen = crowded([heard(1, 2, 3, begun=0.5)], 3, 5)
    assert (seen.rate, seen.ttft_p95_s) == (3 / 2.5, 0.5)


def test_a_figure_of_two_rivals_is_the_lower_one_of_each_repeat() -> None:
    assert throughput.lowest([[1.0, 0.9], [0.8, 1.1]]) == [0.8, 0.9]
    assert throughput.lowest([]) == []


@pytest.mark.usefixtures("cheap")
def test_suites_mount_models_on_the_engine_of_the_command() -> None:
    with engines_used() as used, on_engine("llama"), tuned() as (_, client):
        assert not used
        with mounted(client, slots=1) as device:
            assert engine_of(device) == "llama"
    assert used == {"llama"}


@pytest.mark.usefixtures("cheap")
def test_a_daemon_that_mounts_models_itself_has_the_engine_of_the_command() -> None:
    with engines_used() as used, on_engine("llama"), daemon() as rig, rig.client() as client:
        client.call("tokenize", v.Tokenize(MODEL, "ready"), v.Tokens)
        [device] = client.call("devices", v.Nothing(), v.Devices).devices
        assert engine_of(device) == "llama"
    assert used == {"llama"}


@pytest.mark.parametrize(("engine", "file"), [("", "x.json"), ("openvino", "x-openvino.json")])
def test_results_of_each_engine_have_a_file_of_their_own(engine: str, file: str) -> None:
    suite = Suite("x", BARS, lambda _tiny: Take({}))
    found = ResultFile.of(suite, [Attempt(Take({}), 0.0)], {}, {}, tiny=False)
    found = replace(found, engine=engine)
    assert (found.engine, found.file_name) == (engine, file)
    assert (f"x on {engine}" in table(found)) == bool(engine)


def test_an_unknown_engine_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="engine"):
        bench.main(["stall", "--engine", "other"])


def test_an_error_of_an_installed_engine_is_not_an_absent_peer() -> None:
    with pytest.raises(SyscallError, match="slots"), engine.side("llama", slots=10**6):
        pass


def test_a_page_that_could_not_be_written_fails_the_measurement() -> None:
    with daemon(mount=False) as rig, pytest.raises(SyscallError, match="no process 7"):
        fault.write_all(rig, 7, ["a page"])


def test_a_pipeline_that_is_not_installed_is_absent(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="openvino-genai"), pipeline(str(tmp_path / "none.gguf")):
        pass


def test_a_crowd_that_made_other_tokens_than_asked_is_no_measurement() -> None:
    for new, prompt in ((4, 5), (3, 6)):
        with pytest.raises(RigError, match="5 prompt tokens and 3 new ones"):
            crowded([heard(1, 2, 3), heard(2, 3, 4)], new, prompt)
    cut = heard(1, 2, 3)
    cut.whole = False
    with pytest.raises(RigError):
        crowded([cut, heard(2, 3, 4)], 3, 5)


def test_the_longest_gap_is_that_of_any_stream_and_may_still_be_open() -> None:
    streams = [heard(1, 2, 9, 10), heard(1, 5, 6, 7)]
    assert longest_gap_s(streams, since=2.5, until=9.5) == 7
    assert longest_gap_s([heard(1, 5, 6, 7)], since=5.5, until=9) == 2


def test_a_step_is_timed_while_all_speak() -> None:
    assert step_s([heard(1, 2, 3, 4, 5, 6), heard(3, 4, 5)]) == 1


def test_shares_are_judged_against_their_promise() -> None:
    """P-03: a process gets its weighted share."""
    exact = [(0, [125, 125]), (1, [100, 100])]
    assert fairness.error(exact) == pytest.approx(0)
    assert fairness.error([(0, [100, 100]), (0, [90, 110])]) == pytest.approx(0)
    assert fairness.error([(0, [120, 120]), (0, [80, 80])]) == pytest.approx(0.2)
    assert fairness.jain([5, 5, 5]) == 1
    assert fairness.jain([3, 0, 0]) == pytest.approx(1 / 3)


def test_every_figure_of_a_suite_has_its_own_name() -> None:
    names = [bar.id for suite in SUITES.values() for bar in suite.bars]
    assert len(names) == len(set(names))
    assert set(SUITES) == {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 503 Busy\r\n\r\n", "503"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "ended without"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: ", "Incomplete"),
    ],
)
def test_an_answer_that_was_refused_or_cut_is_no_measurement(reply: bytes, said: str) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RigError, match=said):
            PeerServer(LLAMA, port, {}).together([Chat("be brief", "hello")], 1)
        thread.join()


def test_a_peer_that_does_not_start_is_absent_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="server"), llama_server(str(tmp_path), 1, 256):
        pass


def test_a_figure_is_the_median_of_its_repeats() -> None:
    fast, slow = document(Take({"x.fast": [90, 300, 110], "x.slow": [4.5]})).figures
    assert (fast.value, fast.good) == (110, True)
    assert (slow.value, slow.good) == (4.5, True)


def test_a_missed_bar_and_a_missing_figure_are_not_good() -> None:
    assert not document(Take({"x.fast": [99], "x.slow": [1]})).good
    assert not document(Take({"x.fast": [101]})).good
    assert not Figure("x", "", None, "", "lower", 1).good


def test_a_missing_peer_is_reported_with_its_command_and_fails_the_check() -> None:
    said = document(Take({"x.fast": [101], "x.slow": [1]}, {}, [MissingFigure("peer", "get peer")]))
    assert not said.good
    assert "install it by: get peer" in table(said)


def test_the_quietest_attempt_counts_and_says_that_it_was_noisy() -> None:
    loud = Take({"x.fast": [1], "x.slow": [1]})
    calm = Take({"x.fast": [200], "x.slow": [1]})
    suite = Suite("x", BARS, lambda _tiny: calm)
    said = ResultFile.of(suite, [Attempt(loud, 0.4), Attempt(calm, 0.2)], {}, {}, tiny=False)
    assert said.figures[0].value == 200
    assert said.noisy
    assert "NOISY" in table(said)


def test_counts_are_not_noisy() -> None:
    suite = Suite("x", BARS, lambda _tiny: Take({}), timed=False)
    said = ResultFile.of(suite, [Attempt(suite.take(False), 0.4)], {}, {}, tiny=False)
    assert not said.noisy
    assert "NOISY" not in table(said)


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


def test_what_orphans_of_ours_compute_is_not_foreign() -> None:
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    orphan = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {burn!r}])"

    def take() -> Take:
        before = quiet.now()
        subprocess.run([sys.executable, "-c", orphan], check=True)
        ticks, end = 0, time.monotonic() + 20
        while ticks < 50 and time.monotonic() < end:
            time.sleep(0.2)  # without work of our own
            after = quiet.now()
            assert before is not None
            assert after is not None
            ticks = after.own - before.own
        return Take({"ticks": [ticks]})

    assert quiet.quietly(take, 1)[0].take.values["ticks"][0] >= 50


def test_an_unknown_suite_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="nothing") as caught:
        bench.main(["nothing"])
    assert all(name in caught.value.hint for name in SUITES)


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
        "better": "higher", "bar": 100, "most": None,
    }  # fmt: skip
    assert said["raw"][0]["take"]["values"]["x.fast"] == [99.0]
    assert bench.main(["x", "--check"]) == 1
    with pytest.raises(UsageError, match="--check"):
        bench.main(["x", "--tiny", "--check"])


def test_a_tiny_pass_judges_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = Suite("x", BARS, lambda _tiny: Take({"x.fast": [99.0], "x.slow": [1.0]}))
    monkeypatch.setitem(SUITES, "x", suite)
    assert bench.main(["x", "--tiny"]) == 0
    tiny = capsys.readouterr().out
    assert bench.main(["x"]) == 0
    whole = capsys.readouterr().out
    assert ("MISSED" in whole, "NOISY" in tiny) == (True, False)
    assert not any(word in tiny for word in (" ok", "MISSED", ">=", "<="))
