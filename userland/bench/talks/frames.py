"""Patterns of facts, questions and reactions, read from the text files in this folder.

A file has sections, `== name ...`; a line of a section is `X: pattern`, or a bare one. Patterns
hold names in braces that are filled in later.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_FREE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Frame:
    """A kind of fact: the lines that prompt it, tell it, change it and ask for it.

    Lines, by letter: L a prompt to tell it, T the statement, X the same as a line of a tool's
    output, C the statement of a change, R and E additions by others and by the teller, F and G the
    question and statement of a detail. Questions: A for one, S for all, W for the time, M within a
    month, N for the newest, B for both before and after, Q for the detail.
    """

    name: str
    changes: bool  # a later value replaces the one before
    topic: str
    lines: Mapping[str, Sequence[str]]
    values: Sequence[str]
    details: Sequence[str]
    names: Sequence[str]  # what the teller calls it


@cache
def sections(name: str) -> Mapping[str, Sequence[str]]:
    """The lines of each section of a file."""
    found = dict[str, list[str]]()
    lines: list[str] = []
    for line in (_HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            lines = found.setdefault(line[3:], [])
        elif line:
            lines.append(line)
    return found


@cache
def frames(*names: str) -> Sequence[Frame]:
    """The frames of these files."""
    return [_frame(head, lines) for name in names for head, lines in sections(name).items()]


@cache
def listed(name: str) -> Sequence[str]:
    """A list of names."""
    return sections("names")[name][0].split("; ")


def _frame(head: str, lines: Sequence[str]) -> Frame:
    name, kind, topic = head.split()
    found = dict[str, list[str]]()
    for line in lines:
        letter, _, pattern = line.partition(": ")
        found.setdefault(letter, []).append(pattern)
    values = found.pop("v")[0].split("; ")
    details = found.pop("w", [""])[0].split("; ")
    names = found.pop("k")[0].split("; ")
    return Frame(name, kind == "state", topic, found, values, details, names)


def filled(pattern: str, names: Mapping[str, str]) -> str:
    """A pattern with its names filled in; a capital letter begins with one."""

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        if name in names:
            return names[name]
        value = names[name.lower()]
        return value[:1].upper() + value[1:]

    return _FREE.sub(fill, pattern)


def distant(text: str) -> str:
    """A statement in the first person, changed to the third."""
    text = re.sub(r"\b([Mm])y\b", lambda found: "The" if found[1] == "M" else "the", text)
    text = re.sub(r"\bme\b", "them", re.sub(r"\bI'd\b", "they'd", text))
    return text.replace("我", "")
