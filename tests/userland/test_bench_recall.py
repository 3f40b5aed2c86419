"""`llmasos bench recall FILE.jsonl`: somebody's own conversations, long ones and broken ones."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llmasos.userland import bench
from llmasos.userland.bench import recall
from llmasos.userland.bench.talks import Turn

TURN = {"id": "t1", "author": "ann", "time": None, "session": "", "text": "The boat is red."}
QUESTION = {"text": "Which colour has the boat?", "evidence": ["t1"], "category": "single"}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_a_conversation_of_more_pages_than_a_reply_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [{**TURN, "id": f"x{at}", "text": f"Row {at}."} for at in range(1100)]
    talk = {"id": "long", "turns": [TURN, *more], "questions": [QUESTION]}
    path = written(tmp_path / "long.jsonl", talk)
    assert bench.main(["recall", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["questions"] == 1
    assert told["tables"]["all"]["both"]["2k"] == 1
    assert told["tables"]["all"]["recency"]["2k"] == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Expecting property name"),
        ('{"id": "a", "questions": []}', "turns"),
        (json.dumps({"id": "a", "turns": [TURN],
                     "questions": [{**QUESTION, "evidence": ["t9"]}]}), "is no turn"),
        (json.dumps({"id": "a", "turns": [{**TURN, "time": "soon"}], "questions": []}), "soon"),
        ("\udcff", "utf-8"),
    ],
    ids=["no JSON", "no turns", "evidence of nothing", "no time", "no UTF-8"],
)  # fmt: skip
def test_a_line_that_makes_no_sense_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    good = json.dumps({"id": "a", "turns": [TURN], "questions": [QUESTION]})
    path = tmp_path / "talks.jsonl"
    path.write_bytes(f"{good}\n{line}\n".encode(errors="surrogateescape"))
    assert bench.main(["recall", str(path)]) == 1
    told = capsys.readouterr().err
    assert f"{path}:2: not a conversation" in told
    assert words in told


def test_a_file_without_a_conversation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["recall", str(written(tmp_path / "none.jsonl"))]) == 1
    assert "holds no conversation" in capsys.readouterr().err


def test_a_time_without_a_zone_is_utc() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    for told in ("2026-03-01T12:00:00", "2026-03-01T14:00:00+02:00", "2026-03-01T12:00:00Z"):
        assert recall.when(Turn("t", "ann", told, "", "x")) == moment


@pytest.mark.parametrize("way", recall.HARD)
def test_questions_that_are_easier_or_harder_than_real_ones_fail_the_suite(way: str) -> None:
    low, high = recall.HARD[way]
    name = {"words": "recall.bm25_2k", "dense": "recall.dense_2k"}[way]
    bar = next(bar for bar in recall.BARS if bar.id == name)
    assert recall.as_hard(way, high) == high
    assert recall.as_hard(way, high + 0.01) == 0.0
    assert (bar.better, bar.bar) == ("higher", low)
