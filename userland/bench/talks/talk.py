"""What a conversation is made of, and the form in which the recall benchmark reads it.

Also how long a text is before a tokenizer has seen it, as the embedded model counts these texts: it
takes two tokens for most Chinese characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

_WIDE, _NARROW = 1.95, 3.3  # tokens a Chinese character, letters a token


@dataclass(frozen=True, slots=True)
class Turn:
    """What one author said at once, or what a tool answered."""

    id: str
    author: str
    time: str | None  # ISO 8601; without a zone it is UTC
    session: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about a conversation."""

    text: str
    evidence: tuple[str, ...]  # ids of the turns that answer it, all of them needed
    category: str
    answers: tuple[str, ...]  # what stands in each of these


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation and what is asked about it."""

    id: str
    language: str
    turns: Sequence[Turn]
    questions: Sequence[Question]

    def form(self) -> dict[str, object]:
        """One line of a benchmark's file."""
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
    """About how many tokens a text has."""
    wide = sum(one >= "\u2e80" for one in text)
    return ceil(_WIDE * wide + (len(text) - wide) / _NARROW)
