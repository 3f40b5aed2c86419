"""`llmasos bench recall FILE.jsonl`: somebody's own conversations, long ones and broken ones."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llmasos.userland import bench
from llmasos.userland.bench import conversations, recall, talks
from llmasos.userland.bench.figures import Attempt, ResultFile, Take, table
from llmasos.userland.bench.talks import Turn
from llmasos.userland.cli.exits import UsageError

TURN = {"id": "t1", "author": "ann", "time": None, "session": "", "text": "The boat is red."}
QUESTION = {"text": "Which colour has the boat?", "evidence": ["t1"], "category": "single"}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def talk(*turns: object, **fields: object) -> str:
    """A line with a conversation, some of it otherwise."""
    return json.dumps({"id": "a", "turns": turns or [TURN], "questions": [QUESTION], **fields})


@pytest.fixture
def small_replies(cheap: None, tmp_path: Path) -> None:
    """A reply of the daemon holds 130 short pages at most."""
    with (tmp_path / "sitecustomize.py").open("a") as file:
        file.write("from llmasos.kernel.abi import limits\nlimits.READ_MEM_BYTES = 65_536\n")


@pytest.mark.usefixtures("small_replies")
def test_a_conversation_of_more_pages_than_a_reply_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [{**TURN, "id": f"x{at}", "text": f"Row {at}."} for at in range(250)]
    long = {"id": "long", "turns": [TURN, *more], "questions": [QUESTION, QUESTION]}
    path = written(tmp_path / "long.jsonl", long)
    assert bench.main(["recall", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["questions"] == 2
    assert told["tables"]["all"]["both"]["2k"] == 1
    assert told["tables"]["all"]["recency"]["2k"] == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at character"),
        ("", "not JSON: Expecting value"),
        ("[" * 100_000, "too deeply nested"),
        ("\udcff", "not UTF-8: invalid start byte at byte 1"),
        ("[1]", "the line is not an object: [1]"),
        ('{"id": "a", "questions": []}', "no field 'turns' in"),
        (talk(turns=["hello"]), "one of 'turns' is not an object"),
        (talk(turns=[{"id": "t1"}]), "no field 'time'"),
        (talk({**TURN, "text": None}), "'text' is not a text"),
        (talk({**TURN, "text": ""}), "the text of turn 't1' has 0 characters"),
        (talk({**TURN, "text": "\ud800"}), "'text' is not Unicode"),
        (talk({**TURN, "time": "soon"}), "soon"),
        (talk({**TURN, "time": "1950-01-01"}), "is before 1970"),
        (talk(TURN, TURN), "more than one turn has the id 't1'"),
        (talk(questions=[]), "it has no questions"),
        (talk(questions=[{**QUESTION, "text": ""}]), "the text of a question has 0 characters"),
        (talk(questions=[{**QUESTION, "evidence": "t1"}]), "'evidence' is not a list"),
        (talk(questions=[{**QUESTION, "evidence": []}]), "is not the id of a turn"),
        (talk(questions=[{**QUESTION, "evidence": ["t9"]}]), "evidence ['t9'] of"),
        (talk(questions=[{**QUESTION, "evidence": [["t1"]]}]), "evidence [['t1']] of"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_bytes(f"{talk()}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        bench.main(["recall", str(path)])
    assert f"{path}:2: not a conversation" in caught.value.message
    assert words in caught.value.message


def test_a_file_without_a_conversation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains no conversation"):
        bench.main(["recall", str(written(tmp_path / "none.jsonl"))])


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        bench.main(["recall", str(tmp_path / "none.jsonl")])


def test_what_the_made_conversations_are_written_as_is_read(tmp_path: Path) -> None:
    made = next(iter(talks.talks()))
    (again,) = conversations.read(written(tmp_path / "made.jsonl", made.form()))
    assert again.form() == made.form()


def test_a_time_without_a_zone_is_utc() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    for told in ("2026-03-01T12:00:00", "2026-03-01T14:00:00+02:00", "2026-03-01T12:00:00Z"):
        assert conversations.when(Turn("t", "ann", told, "", "x")) == moment


@pytest.mark.parametrize(
    ("words", "dense", "missed"),
    [
        (0.65, 0.55, ()),
        (0.80, 0.75, ()),
        (0.64, 0.60, ("recall.bm25_2k",)),
        (0.81, 0.60, ("recall.bm25_2k",)),
        (0.70, 0.54, ("recall.dense_2k",)),
        (0.70, 0.76, ("recall.dense_2k",)),
    ],
)
def test_questions_that_are_easier_or_harder_than_real_ones_fail_the_suite(
    words: float, dense: float, missed: tuple[str, ...]
) -> None:
    values = {bar.id: [bar.bar or 0.0] for bar in recall.BARS}
    values |= {"recall.bm25_2k": [words], "recall.dense_2k": [dense]}
    attempt = Attempt(Take(values), 0.0)
    document = ResultFile.of(recall.SUITE, [attempt], {}, {}, tiny=False)
    assert tuple(figure.id for figure in document.figures if not figure.good) == missed
    assert document.good is not bool(missed)
    told = [line for line in table(document).splitlines() if "MISSED" in line]
    assert len(told) == len(missed)
    assert all("questions are not realistic" in line for line in told)


def test_fusion_ranks_turns_however_many_pages_they_have() -> None:
    words = recall.Ranking([("a", 90), ("b", 10), ("a", 40)], 0.0)
    vectors = recall.Ranking([("b", 10), ("a", 130)], 0.0)
    assert recall.reciprocal(words, vectors).ranked == [("a", 130), ("b", 10)]
