"""Questions about a generated conversation, each with the turns that answer it.

A question uses other words than the fact, and names the subject.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from .facts import Fact
from .frames import distant, filled, sections
from .talk import Question

SINGLE, MULTI, TEMPORAL, UPDATE = "single", "multi", "temporal", "update"
_MOST = 4  # turns of evidence for one question
_MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
_CHINESE_MONTHS = ["一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二"]


@dataclass(frozen=True, slots=True)
class Asker:
    """Makes questions about facts."""

    dice: random.Random
    language: str
    days: Sequence[datetime]  # of the sessions
    people: bool  # the subject of a fact is its speaker

    def questions(self, facts: Sequence[Fact]) -> list[Question]:
        """All questions, in random order."""
        groups = defaultdict[tuple[str, str], list[Fact]](list)
        for fact in facts:
            groups[fact.frame.name, fact.subject].append(fact)
        found = [one for group in groups.values() for one in self._group(group)]
        found += self._compared(list(groups.values()))
        found += self._profiles(facts)
        self.dice.shuffle(found)
        return found

    def _group(self, facts: list[Fact]) -> Iterator[Question]:
        if facts[0].frame.changes:
            yield from self._state(facts)
        else:
            yield from self._events(facts)
        for fact in facts:
            if fact.detail and "Q" in fact.frame.lines:
                text = self._text(fact, "Q")
                yield Question(text, (fact.detail_turn,), SINGLE, (fact.detail,))

    def _state(self, facts: list[Fact]) -> Iterator[Question]:
        if len(facts) == 1:
            yield self._about(facts, "A", SINGLE)
            return
        yield self._about(facts[-1:], "N", UPDATE)
        if self.dice.random() < 0.6:
            yield self._about(facts, "B", UPDATE)

    def _events(self, facts: list[Fact]) -> Iterator[Question]:
        if len(facts) == 1:
            yield self._about(facts, "A", SINGLE)
        elif "S" in facts[0].frame.lines:
            yield self._about(facts, "S", MULTI)
        timed = [fact for fact in facts if fact.ago and "W" in fact.frame.lines]
        if timed and self.dice.random() < 0.45:
            yield self._about([self.dice.choice(timed)], "W", TEMPORAL)
        if len(facts) > 1 and "M" in facts[0].frame.lines:
            lone = [fact for fact in facts if self._alone(fact, facts)]
            if lone and self.dice.random() < 0.6:
                yield self._about([self.dice.choice(lone)], "M", TEMPORAL)

    def _compared(self, groups: Sequence[list[Fact]]) -> Iterator[Question]:
        """Questions about the same kind of fact of two subjects."""
        lone = defaultdict[str, list[Fact]](list)
        for group in groups:
            if len(group) == 1:
                lone[group[0].frame.name].append(group[0])
        for facts in lone.values():
            if len(facts) > 1 and self.dice.random() < 0.5:
                first, other = self.dice.sample(facts, 2)
                also = self.dice.choice(sections(f"small_{self.language}")["also"])
                text = self._text(first, "A")
                if first.subject in text:
                    text += ("" if self.language == "zh" else " ") + also.replace(
                        "{O}", other.subject
                    )
                    yield _asked(text, [first, other], MULTI)

    def _profiles(self, facts: Sequence[Fact]) -> Iterator[Question]:
        """Questions about several kinds of facts of one topic and subject."""
        small = sections(f"small_{self.language}")
        groups = defaultdict[tuple[str, str], list[Fact]](list)
        for fact in facts:
            if fact.frame.topic in ("hobby", "trouble", "culture", "sport"):
                groups[fact.frame.topic, fact.subject].append(fact)
        for (topic, subject), group in groups.items():
            several = len({fact.frame.name for fact in group}) > 1
            if several and len(group) <= _MOST and self.people:
                text = filled(self.dice.choice(small[topic]), {"P": subject})
                yield _asked(text, group, MULTI)

    def _about(self, facts: list[Fact], letter: str, category: str) -> Question:
        return _asked(self._text(facts[-1], letter), facts, category)

    def _text(self, fact: Fact, letter: str) -> str:
        names = {
            **dict.fromkeys("Pec", fact.subject),
            "v": distant(fact.value),
            "month": self._month(self.days[fact.session]),
        }
        return filled(self.dice.choice(fact.frame.lines[letter]), names)

    def _month(self, day: datetime) -> str:
        if self.language == "zh":
            month = _CHINESE_MONTHS[day.month - 1]
            return self.dice.choice((f"{month}月", f"{day.month}月", f"{day.year}年{day.month}月"))
        month = _MONTHS[day.month - 1]
        return self.dice.choice((month, f"{month} {day.year}"))

    def _alone(self, fact: Fact, facts: Sequence[Fact]) -> bool:
        """Whether it is the only fact of its month, in any year."""
        month = self.days[fact.session].month
        return sum(self.days[one.session].month == month for one in facts) == 1


def _asked(text: str, facts: Sequence[Fact], category: str) -> Question:
    evidence = tuple(fact.turn for fact in facts)
    return Question(text, evidence, category, tuple(fact.value for fact in facts))
