"""Values for the policy: its rules, changes, decisions and simulations."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from .. import limits
from .fields import Index, OptionalName, Seconds, Shape, Span


class Effect(StrEnum):
    ALLOW = "allow"
    ASK = "ask"  # a person must approve
    DENY = "deny"


_WORD = "[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
_APP = "[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}"  # with colons, as in names of models
SUBJECT = rf"(u|r):{_WORD}|app:{_APP}|pid:[1-9][0-9]{{0,15}}"
Subject = Annotated[str, Shape(SUBJECT, "u:NAME, r:NAME, app:NAME or pid:NUMBER in plain letters")]
Path = Annotated[str, Span(1, limits.OBJECT_CHARS)]
Row = Annotated[str, Span(1, limits.RULE_CHARS)]
Text = Annotated[str, Span(0, limits.POLICY_CHARS)]
FileName = Annotated[str, Span(0, 4096)]  # of a `text`, for messages; empty: of the user rules


@dataclass(frozen=True, slots=True)
class PolicyList:
    own: bool = False  # the user rules only
    after: Index = 0  # skip this many rules
    text: bool = False  # instead: the text of the file of user rules, verbatim


@dataclass(frozen=True, slots=True)
class RuleInfo:
    text: str  # "p, r:careful, spawn, /dev/image/*, allow"
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Rules:
    epoch: int  # number of changes since boot
    own: str  # the file of user rules
    rules: list[RuleInfo]
    more: int | None  # `after` of the next request; None: no more rules
    text: str  # "" unless requested


@dataclass(frozen=True, slots=True)
class PolicyEdit:
    """Change the user rules, atomically. Without any change: reload the file."""

    add: Annotated[list[Row], Span(0, 1000)] = field(default_factory=list[str])
    remove: Annotated[list[Row], Span(0, 1000)] = field(default_factory=list[str])
    text: Text | None = None  # instead: the whole file
    undo: bool = False  # restore the file before the last change
    dry: bool = False  # report the change without making it
    file: FileName = ""


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    epoch: int
    added: list[str]
    removed: list[str]
    mistakes: list[str]  # with file and line; if there are any, nothing was changed
    more: int = 0  # rows and mistakes that are not listed


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """Evaluate the rules for a hypothetical request, or for a refused call."""

    subjects: Annotated[list[Subject], Span(0, 16)] = field(default_factory=list[str])
    action: OptionalName = ""
    object: Annotated[str, Span(0, limits.OBJECT_CHARS)] = ""
    call: Index = 0  # instead: the number of a refusal


@dataclass(frozen=True, slots=True)
class RulingInfo:
    """The decision for one subject. A call is allowed only if each of its subjects is."""

    subject: str
    effect: Effect
    rule: RuleInfo | None  # None: no rule matches
    roles: list[RuleInfo]  # the rows through which the subject has the role of the rule


@dataclass(frozen=True, slots=True)
class RuleChange:
    """A row to add to the user rules, or one to remove from them."""

    add: bool  # False: remove
    rule: RuleInfo  # of a row to add: without file and line


@dataclass(frozen=True, slots=True)
class Verdict:
    effect: Effect
    action: str
    object: str
    rulings: list[RulingInfo]
    change: list[RuleChange]  # all together reverse the decision
    final: str  # why no change of the user rules reverses it; empty: `change` does


@dataclass(frozen=True, slots=True)
class PolicySimulate:
    """Evaluate recorded calls with other user rules."""

    text: Text
    since_s: Seconds = 7 * 24 * 3600.0
    file: FileName = ""


@dataclass(frozen=True, slots=True)
class Difference:
    subjects: list[str]
    action: str
    object: str
    calls: int
    before: Effect
    after: Effect
    rule: str  # that decides with the other rules


@dataclass(frozen=True, slots=True)
class Simulated:
    calls: int  # recorded calls that were evaluated again
    blocked: list[Difference]
    allowed: list[Difference]
    more: int = 0  # differences that are not listed


@dataclass(frozen=True, slots=True)
class PolicyLearn:
    """The minimal rules for the recorded calls of a process or an application."""

    pid: Index = 0
    app: OptionalName = ""
    since_s: Seconds = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Learned:
    calls: int
    rules: list[str]
