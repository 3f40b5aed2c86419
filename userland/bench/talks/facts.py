"""What there is to tell in a conversation: facts, spread over its sessions.

The same kind of thing is told of several subjects, and of one subject again and again: either as
one more of its kind, or as a change of what was said before.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from .frames import Frame

SESSIONS = 24
_FOCUS = 0.2  # of the sessions: in which a topic, or a thing at work, is talked about
_TIMES = ((1, 45), (2, 33), (3, 17), (4, 5))  # of one kind and subject; weight
_CHANGED = 0.6  # of the things that can change
_DETAILED = 0.45  # of the things that have a detail
_TIMED = 0.55  # of the things that happened

Card = TypeVar("Card")


class Deck(Generic[Card]):
    """Draws at random, and again only when all were drawn."""

    def __init__(self, dice: random.Random, cards: Sequence[Card]) -> None:
        self._dice, self._cards = dice, cards
        self._left: list[Card] = []

    def draw(self) -> Card:
        if not self._left:
            self._left = self._dice.sample(self._cards, len(self._cards))
        return self._left.pop()


@dataclass(slots=True)
class Fact:
    """One thing that is told once."""

    frame: Frame
    subject: str
    value: str
    session: int
    change: bool = False  # of what was told of this subject before
    detail: str = ""
    ago: str = ""  # section of the phrases that say when it was
    turn: str = ""  # id of the turn that told it
    detail_turn: str = ""


def days(dice: random.Random) -> list[datetime]:
    """When the sessions begin."""
    now = datetime(2024, 1, 1, 8, tzinfo=UTC) + timedelta(days=dice.randrange(300))
    found = list[datetime]()
    for _ in range(SESSIONS):
        now += timedelta(days=dice.choice((2, 3, 5, 7, 8, 10, 13)))
        found.append(now.replace(hour=dice.randrange(7, 22), minute=dice.randrange(60)))
    return found


def plan(
    dice: random.Random, pairs: Sequence[tuple[Frame, str]], most: int, by_topic: bool
) -> list[Fact]:
    """Facts for kinds of things and whom or what they are about, in the order of telling.

    A session is about some topics, or about some subjects.
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
    """Those that are about it."""
    if topic not in focus:
        focus[topic] = dice.sample(range(SESSIONS), max(5, round(SESSIONS * _FOCUS)))
    return focus[topic]


def _times(dice: random.Random, frame: Frame) -> int:
    if frame.changes:
        return 2 if "C" in frame.lines and dice.random() < _CHANGED else 1
    return dice.choices([many for many, _ in _TIMES], [weight for _, weight in _TIMES])[0]
