"""The rules: who may do what, why, and what a change would do."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from .. import limits
from .words import Index, OptionalName, Seconds, Shape, Span


class Effect(StrEnum):
    ALLOW = "allow"
    ASK = "ask"  # a person has to be asked
    DENY = "deny"


_WORD = "[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
_APP = "[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}"  # by default the name of its model
SUBJECT = rf"(u|r):{_WORD}|app:{_APP}|pid:[1-9][0-9]{{0,15}}"
Subject = Annotated[str, Shape(SUBJECT, "u:NAME, r:NAME, app:NAME or pid:NUMBER in plain letters")]
Path = Annotated[str, Span(1, limits.OBJECT_CHARS)]
Row = Annotated[str, Span(1, limits.RULE_CHARS)]
Text = Annotated[str, Span(0, limits.POLICY_CHARS)]


@dataclass(frozen=True, slots=True)
class PolicyList:
    own: bool = False  # the owner's own rules only
    after: Index = 0  # so many were listed before
    text: bool = False  # instead: the text of the owner's file, as it is on disk


@dataclass(frozen=True, slots=True)
class RuleInfo:
    text: str  # "p, r:careful, spawn, /dev/image/*, allow"
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Rules:
    epoch: int  # how often they changed since boot
    own: str  # the file of the owner's own rules
    rules: list[RuleInfo]
    more: int | None  # ask again with this as `after`; None: that was all
    text: str  # "" unless asked for


@dataclass(frozen=True, slots=True)
class PolicyEdit:
    """Change the owner's own rules; all of it or nothing. Nothing asked: read the file again."""

    add: Annotated[list[Row], Span(0, 1000)] = field(default_factory=list[str])
    remove: Annotated[list[Row], Span(0, 1000)] = field(default_factory=list[str])
    text: Text | None = None  # the whole file, instead
    undo: bool = False  # back to the file before the last change
    dry: bool = False  # only say what would be


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    epoch: int
    added: list[str]
    removed: list[str]
    mistakes: list[str]  # with file and line; any: nothing was changed
    more: int = 0  # rows and mistakes that are not told


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """What the rules say of a request that nobody makes, or of a refused call."""

    subjects: Annotated[list[Subject], Span(0, 16)] = field(default_factory=list[str])
    action: OptionalName = ""
    object: Annotated[str, Span(0, limits.OBJECT_CHARS)] = ""
    call: Index = 0  # instead: the number that a refusal told


@dataclass(frozen=True, slots=True)
class RulingInfo:
    """What the rules say of one subject; a call needs the consent of each of its subjects."""

    subject: str
    effect: Effect
    rule: RuleInfo | None  # None: no rule matches
    roles: list[RuleInfo]  # the rows that lead from the subject to the rule


@dataclass(frozen=True, slots=True)
class Verdict:
    effect: Effect
    action: str
    object: str
    rulings: list[RulingInfo]
    change: list[str]  # what to add or remove to get the other answer


@dataclass(frozen=True, slots=True)
class PolicySimulate:
    """Recorded calls under other own rules."""

    text: Text
    since_s: Seconds = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Difference:
    subjects: list[str]
    action: str
    object: str
    calls: int
    before: Effect
    after: Effect
    rule: str  # that decides then


@dataclass(frozen=True, slots=True)
class Simulated:
    calls: int  # recorded calls that were judged again
    blocked: list[Difference]
    allowed: list[Difference]
    more: int = 0  # differences that are not told


@dataclass(frozen=True, slots=True)
class PolicyLearn:
    """The least rules that the recorded calls of a process or an app needed."""

    pid: Index = 0
    app: OptionalName = ""
    since_s: Seconds = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Learned:
    calls: int
    rules: list[str]
