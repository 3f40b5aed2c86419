"""The lines of a conversation: one scene for each fact, and small talk.

People ask each other, answer with pronouns, and react with words of the topic. At work the question
goes to an agent, and often a tool answers it in the middle of a long output.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .facts import Deck, Fact
from .frames import filled, sections
from .outputs import output

_UNASKED = 0.12  # told without being asked
# Shares of lines that name the subject.
_NAMED_ASKING, _NAMED_TELLING, _NAMED_REACTING = 0.6, 0.92, 0.35
_NAMED_AGAIN, _NAMED_DETAIL, _NAMED_ENDING = 0.35, 0.55, 0.7
_REACTED, _ADDED = 0.75, 0.45
_BY_TOOL = 0.55  # share of the facts that a tool can report
_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_WEEKDAYS = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "zh": ("周一", "周二", "周三", "周四", "周五", "周六", "周日"),
}


@dataclass(slots=True)
class SceneLine:
    """One turn and the fact that it tells."""

    author: str
    text: str
    tells: Fact | None = None
    details: Fact | None = None


@dataclass(slots=True)
class Stage:
    """The speakers, the language, and the phrases used so far."""

    dice: random.Random
    language: str
    people: Sequence[str]
    roles: Mapping[str, str] = field(default_factory=dict[str, str])  # agents, by their task
    things: Sequence[str] = ()  # subjects of the work
    customers: Sequence[str] = ()
    decks: dict[str, Deck[str]] = field(default_factory=dict[str, Deck[str]])

    def subjects(self, customers: bool) -> Sequence[str]:
        """The possible subjects of a fact."""
        if not self.roles:
            return self.people
        return self.customers if customers else self.things

    def often(self, share: float) -> bool:
        return self.dice.random() < share

    def one(self, name: str, lines: Sequence[str]) -> str:
        """One of these lines, without repetition; with its alternatives chosen."""
        if name not in self.decks:
            self.decks[name] = Deck(self.dice, lines)
        line = self.decks[name].draw()
        return _CHOICE.sub(lambda found: self.dice.choice(found[1].split("|")), line)

    def phrase(self, name: str, share: float = 1.0) -> str:
        """A phrase of the small talk, with probability `share`; at work its variant for work."""
        if not self.often(share):
            return ""
        small = sections(f"small_{self.language}")
        name = f"work_{name}" if self.roles and f"work_{name}" in small else name
        return self.one(name, small[name])

    def join(self, *parts: str) -> str:
        return ("" if self.language == "zh" else " ").join(part for part in parts if part)

    def asking(self, text: str, whom: str) -> str:
        greeting = filled(self.phrase("greets", 0.45), {"P": whom})
        return self.join(self.phrase("asides", 0.08), greeting, text)

    def telling(self, text: str, ago: str = "") -> str:
        return self.join(self.phrase("openings", 0.35), text, ago, self.phrase("tails", 0.65))

    def reacting(self, text: str, whom: str) -> str:
        reply = filled(self.phrase("replies", 0.6), {"P": whom})
        return self.join(reply, text, self.phrase("asides", 0.08))


def fact_scene(stage: Stage, fact: Fact) -> Iterator[SceneLine]:
    """The scene of a fact: a question, the fact, and reactions."""
    teller = _teller(stage, fact)
    asker = stage.dice.choice([one for one in _askers(stage) if one != teller])
    pick = _Pick(stage, fact, teller)
    if fact.change or not stage.often(_UNASKED):
        named = pick.named("wants") if stage.often(_NAMED_ASKING) else ""
        lead = pick("L") if not named or stage.often(0.5) else ""
        yield SceneLine(asker, stage.asking(stage.join(named, lead), teller))
    if "X" in fact.frame.lines and not fact.change and stage.often(_BY_TOOL):
        yield from _by_tool(stage, fact, pick, teller)
    else:
        named = pick.named("about") if stage.often(_NAMED_TELLING) else ""
        more = pick("E") if stage.often(_ADDED) else ""
        again = pick.named("again") if stage.often(_NAMED_AGAIN) else ""
        text = stage.join(named, pick("C" if fact.change else "T"), more, again)
        yield SceneLine(teller, stage.telling(text, pick.ago()), tells=fact)
    yield from _after(stage, fact, pick, asker, teller)


def chat(stage: Stage) -> Iterator[SceneLine]:
    """Small talk that no question is about."""
    speakers = stage.dice.sample(stage.people, 2)
    for number, text in enumerate(stage.phrase("chat").split(" | ")):
        yield SceneLine(speakers[number % 2], stage.join(text, stage.phrase("asides", 0.3)))


def planning(stage: Stage) -> Iterator[SceneLine]:
    """An agent names many subjects without a fact."""
    pattern = stage.phrase("plans")
    while "{todo}" in pattern:
        names = {"e": stage.dice.choice(stage.things), "c": stage.dice.choice(stage.customers)}
        pattern = pattern.replace("{todo}", filled(stage.phrase("todo"), names), 1)
    yield SceneLine(stage.roles["planner"], pattern)


def tool_call(stage: Stage) -> Iterator[SceneLine]:
    """A tool call without a relevant line."""
    tool = stage.dice.choice(("shell", "grep", "read_file", "run_tests", "sql_query", "http_get"))
    yield SceneLine(stage.dice.choice(list(stage.roles.values())), stage.phrase("starts"))
    yield SceneLine(tool, output(stage.dice, tool, "", stage.things))


def _teller(stage: Stage, fact: Fact) -> str:
    return stage.roles[fact.frame.topic] if stage.roles else fact.subject


def _askers(stage: Stage) -> Sequence[str]:
    return (*stage.people, stage.roles["planner"]) if stage.roles else stage.people


def _by_tool(stage: Stage, fact: Fact, pick: "_Pick", teller: str) -> Iterator[SceneLine]:
    tool, _, line = pick("X").partition(" | ")
    yield SceneLine(teller, f"{stage.phrase('starts')} `{tool} {fact.subject}`")
    yield SceneLine(tool, output(stage.dice, tool, line, stage.things), tells=fact)
    named = pick.named("about") if stage.often(_NAMED_ENDING) else ""
    yield SceneLine(teller, stage.join(named, stage.phrase("ends"), pick.ago()))


def _after(stage: Stage, fact: Fact, pick: "_Pick", asker: str, teller: str) -> Iterator[SceneLine]:
    """Reactions of others, and additions by the teller."""
    reaction = pick("R") if stage.often(_REACTED) else ""
    if reaction and stage.often(_NAMED_REACTING):
        reaction = stage.join(pick.named("praises"), reaction)
    if fact.detail:
        yield SceneLine(asker, stage.join(stage.reacting(reaction, teller), pick("F")))
        named = stage.phrase("about", _NAMED_DETAIL).format(k=fact.value, K=_capital(fact.value))
        yield SceneLine(teller, stage.telling(stage.join(named, pick("G"))), details=fact)
    elif reaction:
        yield SceneLine(asker, stage.reacting(reaction, teller))
    more = pick("E") if stage.often(_ADDED) else ""
    if more:
        yield SceneLine(teller, stage.telling(more))


class _Pick:
    """Picks lines of a fact's frame and fills in the names."""

    def __init__(self, stage: Stage, fact: Fact, teller: str) -> None:
        self._stage, self._fact = stage, fact
        self._names = {"P": teller, "e": fact.subject, **stage.roles}
        if stage.roles:
            known = fact.subject in stage.customers
            self._names["c"] = fact.subject if known else stage.dice.choice(stage.customers)
        self._names |= {"v": fact.value, "w": fact.detail}

    def __call__(self, letter: str) -> str:
        """A line of this section; empty: there is none."""
        frame = self._fact.frame
        if letter not in frame.lines:
            return ""
        return filled(self._stage.one(f"{frame.name} {letter}", frame.lines[letter]), self._names)

    def named(self, section: str) -> str:
        """A phrase that names the subject, from the point of view of the speaker."""
        name = filled(self._stage.dice.choice(self._fact.frame.names), self._names)
        if section in ("wants", "praises"):
            name = _other(name)
        return filled(self._stage.phrase(section), {"k": name})

    def ago(self) -> str:
        if not self._fact.ago:
            return ""
        day = self._stage.dice.choice(_WEEKDAYS[self._stage.language])
        return filled(self._stage.phrase(self._fact.ago), {"weekday": day})


def _other(name: str) -> str:
    """A name in the first person, changed to the second."""
    name = re.sub(r"\bmy\b", "your", name).replace("I am", "you are").replace("I was", "you were")
    return re.sub(r"\bI\b", "you", name).replace("我", "你")


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
