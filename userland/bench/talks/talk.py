"""The parts of a conversation and the file format of the recall benchmark.

Also an estimate of the tokens of a text for the embedded model, which uses two tokens for most
Chinese characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

_WIDE, _NARROW = 1.95, 3.3  # tokens a Chinese character, letters a token


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of an author, or the output of a tool."""

    id: str
    author: str
    time: str | None  # ISO 8601; without a zone it is UTC
    session: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a conversation."""

    text: str
    evidence: tuple[str, ...]  # ids of the turns that answer it, all of them needed
    category: str
    answers: tuple[str, ...]  # the answer in each of these turns


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation and its questions."""

    id: str
    language: str
    turns: Sequence[Turn]
    questions: Sequence[Question]

    def form(self) -> dict[str, object]:
        """The object for one line of a benchmark file."""
        return {
            "id": self.id,
            "turns": [
                {"id": t.id, "author": t.author, "time": t.time, "session": t.session,
                 "text": t.text}
                for t in self.turns
            ],
            "questions": [
                {"text": q.text, "evidence": [*q.evidence], "category": q.category}
                for q in self.questions
            ],
        }  # fmt: skip


def tokens(text: str) -> int:
    """The estimated number of tokens of a text."""
    wide = sum(one >= "\u2e80" for one in text)
    return ceil(_WIDE * wide + (len(text) - wide) / _NARROW)
