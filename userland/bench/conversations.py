"""Reads a user's conversations from a file: one a line, in the format that `Talk.form` writes.

Everything that would stop the measurement later is checked here, where the line number is known.
Times without a zone are UTC, in which the kernel counts days.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from llmasos.kernel.abi import limits

from .talks import Question, Talk, Turn

Fields = Mapping[str, object]
_LAST = 10**11  # Unix seconds: the kernel accepts no later time


class Malformed(Exception):
    """A line of the file is not a valid conversation; the message has the line and the reason."""


def read(path: Path) -> list[Talk]:
    """The conversations of a file. Malformed; OSError when it cannot be read."""
    found: list[Talk] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(_talk(_object(json.loads(line.decode("utf-8")), "the line")))
            except (ValueError, RecursionError) as error:
                raise Malformed(f"{path}:{number}: not a conversation: {_words(error)}") from error
    if not found:
        raise Malformed(f"{path} contains no conversation")
    return found


def when(turn: Turn) -> float:
    """Unix seconds; 0: unknown."""
    if not turn.time:
        return 0.0
    time = datetime.fromisoformat(turn.time)
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()


def _words(error: Exception) -> str:
    match error:
        case RecursionError():
            return "JSON, but too deeply nested"
        case json.JSONDecodeError():  # its own message counts lines from this one on
            return f"not JSON: {error.msg} at character {error.pos + 1}"
        case UnicodeDecodeError():
            return f"not UTF-8: {error.reason} at byte {error.start + 1}"
        case _:
            return str(error)


def _talk(fields: Fields) -> Talk:
    turns = [_turn(one) for one in _objects(fields, "turns")]
    twice = [name for name, count in Counter(turn.id for turn in turns).items() if count > 1]
    if twice:
        raise ValueError(f"more than one turn has the id {twice[0]!r}")
    known = {turn.id for turn in turns}
    questions = [_question(one, known) for one in _objects(fields, "questions")]
    if not questions:
        raise ValueError("it has no questions")
    return Talk(_text(fields, "id"), "", turns, questions)


def _turn(fields: Fields) -> Turn:
    time = None if _field(fields, "time") is None else _text(fields, "time")
    turn = Turn(
        _text(fields, "id"), _text(fields, "author"), time, _text(fields, "session"),
        _text(fields, "text"),
    )  # fmt: skip
    if not 0 <= when(turn) <= _LAST:
        raise ValueError(f"time {turn.time} of turn {turn.id!r} is before 1970, or too late")
    _check_length(turn.text, limits.MESSAGE_CHARS, f"turn {turn.id!r}")
    return turn


def _question(fields: Fields, known: set[str]) -> Question:
    text, named = _text(fields, "text"), _list(fields, "evidence")
    _check_length(text, limits.QUESTION_CHARS, "a question")
    strange = [one for one in named if not isinstance(one, str) or one not in known]
    if strange or not named:
        raise ValueError(f"evidence {strange} of {text!r} is not the id of a turn")
    return Question(text, tuple(map(str, named)), _text(fields, "category"), ())


def _check_length(text: str, most: int, whose: str) -> None:
    if not 1 <= len(text) <= most:
        raise ValueError(f"the text of {whose} has {len(text)} characters, not 1 to {most:,}")


# --- JSON -----------------------------------------------------------------------------------------
def _field(fields: Fields, name: str) -> object:
    if name not in fields:
        raise ValueError(f"no field {name!r} in {_short(fields)}")
    return fields[name]


def _text(fields: Fields, name: str) -> str:
    """A text that can be encoded as UTF-8: JSON may contain lone surrogates."""
    value = _field(fields, name)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is not a text in {_short(fields)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name!r} is not Unicode in {_short(fields)}") from error
    return value


def _list(fields: Fields, name: str) -> Sequence[object]:
    value = _field(fields, name)
    if not isinstance(value, list):
        raise ValueError(f"{name!r} is not a list in {_short(fields)}")
    return cast("list[object]", value)


def _objects(fields: Fields, name: str) -> list[Fields]:
    return [_object(one, f"one of {name!r}") for one in _list(fields, name)]


def _object(value: object, what: str) -> Fields:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object: {_short(value)}")
    return cast("dict[str, object]", value)


def _short(value: object) -> str:
    """The beginning of the value, to find it in the file."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
