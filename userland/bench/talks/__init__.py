"""Generates long conversations from a seed, to measure recall without external data.

People talk over months, or agents work with tools, in English or Chinese. Facts are told once,
among small talk and similar statements; questions use other words. The difficulties are those of
real conversations; nothing favours a method.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from . import scenes
from .asked import Asker
from .facts import Fact, days, plan
from .frames import Frame, frames, listed, sections
from .scenes import SceneLine, Stage
from .talk import Question, Talk, Turn, tokens

__all__ = ["KINDS", "SEEDS", "Question", "Talk", "Turn", "idle", "talk", "talks", "tokens"]

KINDS = ("people-en", "work-en", "people-zh", "work-zh")
SEEDS = range(1000, 1024)  # of the reported figures; constants are chosen on other seeds
_TELLINGS = {"people-en": 112, "work-en": 86, "people-zh": 68, "work-zh": 62}
_TOKENS = 20_000
_SPEAKERS = {"en": (2, 3, 3, 4), "zh": (3, 3, 4)}
_FRAMES = 34  # kinds of facts in one conversation
_CHAT = 0.5  # scenes of small talk for each scene with a fact
_BESIDES = ((scenes.chat,), (scenes.planning, scenes.tool_call))  # among people; at work
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
    """The conversation of a kind and a seed; deterministic."""
    dice = random.Random(f"{kind} {seed}")
    stage = _stage(dice, kind)
    facts = plan(dice, _pairs(stage, kind), _TELLINGS[kind], by_topic=not stage.roles)
    begins = days(dice)
    turns = list[Turn]()
    for number, begin in enumerate(begins):
        facts_told = [fact for fact in facts if fact.session == number]
        least = _TOKENS * (number + 1) // len(begins) - _length(turns)
        lines = _lines(stage, facts_told, least)
        turns += _spoken(f"s{number + 1:02}", begin, lines, len(turns))
    asker = Asker(dice, stage.language, begins, people=not stage.roles)
    return Talk(f"{kind}-{seed}", stage.language, turns, asker.questions(facts))


def idle(language: str) -> Sequence[str]:
    """Requests that need no fact of a conversation."""
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
    """Pairs of a kind of fact and a subject, in random order."""
    all_of = frames(*_FILES[kind])
    chosen = stage.dice.sample(all_of, min(_FRAMES, len(all_of)))
    pairs = [
        (frame, subject)
        for frame in chosen
        for subject in stage.subjects("{c}" in frame.lines["A"][0])
    ]
    stage.dice.shuffle(pairs)
    return pairs


def _lines(stage: Stage, facts_told: Sequence[Fact], least: int) -> list[SceneLine]:
    """The lines of a session with these facts and small talk, of at least so many tokens."""
    lines = [*scenes.chat(stage)]
    for fact in facts_told:
        lines += scenes.fact_scene(stage, fact)
        if stage.often(_CHAT):
            lines += _besides(stage)
    while _length(lines) < least:
        lines += _besides(stage)
    if not stage.roles:
        lines.append(SceneLine(stage.dice.choice(stage.people), stage.phrase("closers")))
    return lines


def _besides(stage: Stage) -> Iterator[SceneLine]:
    """A scene without facts."""
    return stage.dice.choice(_BESIDES[bool(stage.roles)])(stage)


def _length(lines: Iterable[SceneLine | Turn]) -> int:
    return sum(tokens(f"{one.author}: {one.text}") for one in lines)


def _spoken(
    session: str, begin: datetime, lines: Sequence[SceneLine], turns: int
) -> Iterator[Turn]:
    """The turns of a session, a minute apart; `turns` came before."""
    for number, line in enumerate(lines):
        name = f"t{turns + number + 1:04}"
        if line.tells:
            line.tells.turn = name
        if line.details:
            line.details.detail_turn = name
        time = (begin + timedelta(minutes=number)).isoformat()
        yield Turn(name, line.author, time, session, line.text)
