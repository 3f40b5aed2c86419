"""Long conversations to measure recall with, made from a seed: no licence, no network, no data.

People talk over months, and agents work with tools, in English and in Chinese. Facts are told once,
amid small talk and much that sounds alike; questions use other words. What makes a conversation
hard here is what does so in life; nothing is made to suit a method.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from . import scenes
from .asked import Asker
from .facts import Fact, days, plan
from .frames import Frame, frames, listed, sections
from .scenes import Line, Stage
from .talk import Question, Talk, Turn, tokens

__all__ = ["KINDS", "SEEDS", "Question", "Talk", "Turn", "idle", "talk", "talks", "tokens"]

KINDS = ("people-en", "work-en", "people-zh", "work-zh")
SEEDS = range(1000, 1024)  # what is reported; constants are chosen on others
_TELLINGS = {"people-en": 112, "work-en": 86, "people-zh": 68, "work-zh": 62}
_TOKENS = 20_000
_SPEAKERS = {"en": (2, 3, 3, 4), "zh": (3, 3, 4)}
_FRAMES = 34  # kinds of things in one conversation
_CHAT = 0.5  # scenes about nothing, for each about something
_BESIDES = ((scenes.chat,), (scenes.planning, scenes.looking))  # among people; at work
_ROLES = ("planner", "coder", "reviewer", "tester", "ops", "analyst")
_FILES = {
    "people-en": ("people_en_1", "people_en_2", "people_en_3"),
    "work-en": ("work_en_1", "work_en_2"),
    "people-zh": ("people_zh_1", "people_zh_2"),
    "work-zh": ("work_zh",),
}


def talks(seeds: Iterable[int] = SEEDS) -> Iterator[Talk]:
    """A conversation for each seed, of each kind in turn."""
    return (talk(KINDS[seed % len(KINDS)], seed) for seed in seeds)


def talk(kind: str, seed: int) -> Talk:
    """The conversation of a kind and a seed, always the same."""
    dice = random.Random(f"{kind} {seed}")
    stage = _stage(dice, kind)
    facts = plan(dice, _pairs(stage, kind), _TELLINGS[kind], by_topic=not stage.roles)
    begins = days(dice)
    turns = list[Turn]()
    for number, begin in enumerate(begins):
        told = [fact for fact in facts if fact.session == number]
        least = _TOKENS * (number + 1) // len(begins) - _length(turns)
        lines = _lines(stage, told, least)
        turns += _spoken(f"s{number + 1:02}", begin, lines, len(turns))
    asker = Asker(dice, stage.language, begins, people=not stage.roles)
    return Talk(f"{kind}-{seed}", stage.language, turns, asker.questions(facts))


def idle(language: str) -> Sequence[str]:
    """Requests that need nothing from any conversation."""
    return sections(f"idle_{language}")["idle"]


def _stage(dice: random.Random, kind: str) -> Stage:
    work, language = kind.startswith("work"), kind[-2:]
    people = dice.sample(
        listed(f"people_{language}"), 2 if work else dice.choice(_SPEAKERS[language])
    )
    if not work:
        return Stage(dice, language, people)
    customers = listed("customer_zh" if language == "zh" else "customer")
    return Stage(
        dice,
        language,
        people,
        {"lead": people[0], **{role: role for role in _ROLES}},
        dice.sample(listed("entity"), 8),
        dice.sample(customers, 3),
    )


def _pairs(stage: Stage, kind: str) -> list[tuple[Frame, str]]:
    """What may be told of whom or what, in any order."""
    all_of = frames(*_FILES[kind])
    chosen = stage.dice.sample(all_of, min(_FRAMES, len(all_of)))
    pairs = [
        (frame, subject)
        for frame in chosen
        for subject in stage.subjects("{c}" in frame.lines["A"][0])
    ]
    stage.dice.shuffle(pairs)
    return pairs


def _lines(stage: Stage, told: Sequence[Fact], least: int) -> list[Line]:
    """A session: what is told, and what is said besides, of so many tokens at least."""
    lines = [*scenes.chat(stage)]
    for fact in told:
        lines += scenes.told(stage, fact)
        if stage.often(_CHAT):
            lines += _besides(stage)
    while _length(lines) < least:
        lines += _besides(stage)
    if not stage.roles:
        lines.append(Line(stage.dice.choice(stage.people), stage.phrase("closers")))
    return lines


def _besides(stage: Stage) -> Iterator[Line]:
    """Something that tells nothing."""
    return stage.dice.choice(_BESIDES[bool(stage.roles)])(stage)


def _length(lines: Iterable[Line | Turn]) -> int:
    return sum(tokens(f"{one.author}: {one.text}") for one in lines)


def _spoken(session: str, begin: datetime, lines: Sequence[Line], turns: int) -> Iterator[Turn]:
    """The turns of a session, a minute apart, after so many others."""
    for number, line in enumerate(lines):
        name = f"t{turns + number + 1:04}"
        if line.tells:
            line.tells.turn = name
        if line.details:
            line.details.detail_turn = name
        time = (begin + timedelta(minutes=number)).isoformat()
        yield Turn(name, line.author, time, session, line.text)
