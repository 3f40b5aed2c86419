"""The facts of a conversation, distributed over its sessions.

The same kind of fact is told about several subjects, and repeatedly about one subject: as another
fact of its kind, or as a change of the earlier one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from .frames import Frame

SESSIONS = 24
_FOCUS = 0.2  # share of the sessions that are about a topic or subject
_TIMES = ((1, 45), (2, 33), (3, 17), (4, 5))  # facts of one kind and subject; weight
_CHANGED = 0.6  # share of the facts that can change
_DETAILED = 0.45  # share of the facts that have a detail
_TIMED = 0.55  # share of the events

Card = TypeVar("Card")


class Deck(Generic[Card]):
    """Draws at random without repetition until all were drawn."""

    def __init__(self, dice: random.Random, cards: Sequence[Card]) -> None:
        self._dice, self._cards = dice, cards
        self._left: list[Card] = []

    def draw(self) -> Card:
        if not self._left:
            self._left = self._dice.sample(self._cards, len(self._cards))
        return self._left.pop()


@dataclass(slots=True)
class Fact:
    """A fact that is told once."""

    frame: Frame
    subject: str
    value: str
    session: int
    change: bool = False  # it replaces the earlier fact of this subject
    detail: str = ""
    ago: str = ""  # section of the phrases that say when it was
    turn: str = ""  # id of the turn that told it
    detail_turn: str = ""


def days(dice: random.Random) -> list[datetime]:
    """The start times of the sessions."""
    now = datetime(2024, 1, 1, 8, tzinfo=UTC) + timedelta(days=dice.randrange(300))
    found = list[datetime]()
    for _ in range(SESSIONS):
        now += timedelta(days=dice.choice((2, 3, 5, 7, 8, 10, 13)))
        found.append(now.replace(hour=dice.randrange(7, 22), minute=dice.randrange(60)))
    return found


def plan(
    dice: random.Random, pairs: Sequence[tuple[Frame, str]], most: int, by_topic: bool
) -> list[Fact]:
    """The facts for pairs of kind and subject, in the order of telling.

    Each session covers some topics, or some subjects.
    """
    focus = dict[str, Sequence[int]]()
    values = {frame.name: Deck(dice, frame.values) for frame, _ in pairs}
    details = {frame.name: Deck(dice, frame.details) for frame, _ in pairs}
    found = list[Fact]()
    for frame, subject in pairs:
        if len(found) >= most:
            break
        drawn = list[str]()
        topic = frame.topic if by_topic else subject
        for session in sorted(dice.sample(_sessions(dice, focus, topic), _times(dice, frame))):
            value = values[frame.name].draw()
            while value in drawn:
                value = values[frame.name].draw()
            change = frame.changes and bool(drawn)
            drawn.append(value)
            fact = Fact(frame, subject, value, session, change)
            if "F" in frame.lines and dice.random() < _DETAILED:
                fact.detail = details[frame.name].draw()
            if not frame.changes and dice.random() < _TIMED:
                fact.ago = dice.choice(("today", "yesterday", "earlier", "weekday", "week"))
            found.append(fact)
    dice.shuffle(found)
    return sorted(found, key=lambda fact: fact.session)


def _sessions(dice: random.Random, focus: dict[str, Sequence[int]], topic: str) -> Sequence[int]:
    """The sessions about a topic."""
    if topic not in focus:
        focus[topic] = dice.sample(range(SESSIONS), max(5, round(SESSIONS * _FOCUS)))
    return focus[topic]


def _times(dice: random.Random, frame: Frame) -> int:
    if frame.changes:
        return 2 if "C" in frame.lines and dice.random() < _CHANGED else 1
    return dice.choices([many for many, _ in _TIMES], [weight for _, weight in _TIMES])[0]
