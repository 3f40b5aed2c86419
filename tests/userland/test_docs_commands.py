"""The commands in the documents parse, and the files that they read exist.

They are not run here; `python benchmarks/story.py` runs those of docs/story.md.
"""

import re
import shlex
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from llmasos.userland.cli import arguments
from llmasos.userland.cli.table import GROUPS, VERBS

ROOT = Path(__file__).resolve().parent.parent.parent
STORY = ROOT / "benchmarks" / "story"
PAGES = [
    page
    for pattern in (
        "README.md",
        "docs/*.md",
        "kernel/**/*.md",
        "drivers/**/*.md",
        "userland/**/*.md",
    )
    for page in ROOT.glob(pattern)
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted(PAGES))
HOW = re.search(r'\$ HOW="([^"]*)"', TEXT)
ENDS = frozenset(("|", "<", "<<<", "#", "&&", ">", ";"))


def lines() -> Iterator[str]:
    """The shell commands of the documents: what follows a `$` in their code blocks."""
    for block in re.findall(r"(?ms)^```\n(.*?)^```", TEXT):
        yield from re.findall(r"(?m)^\$ (.*)$", block)


def commands() -> Iterator[list[str]]:
    """The words of each call of llmasos, with what the shell would put in place of variables."""
    assert HOW is not None
    for line in lines():
        plain = line.replace("$HOW", HOW[1]).replace("$PID", "1")
        for inner in re.findall(r"\$\(([^()]*)\)", plain):
            yield from _calls(inner)
        yield from _calls(re.sub(r"\$\([^()]*\)", "1", plain))


def _calls(text: str) -> Iterator[list[str]]:
    words: list[str] | None = None
    for word in shlex.split(text, comments=True):
        if word in ENDS:
            if words:
                yield words
            words = None
        elif word == "llmasos":
            words = []
        elif words is not None:
            words.append(word)
    if words:
        yield words


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_a_command_of_a_document_parses(words: list[str]) -> None:
    name, rest = words[0], words[1:]
    if name in GROUPS and rest and not rest[0][0].isdigit() and not rest[0].startswith("-"):
        name, rest = f"{name} {rest[0]}", rest[1:]
    arguments.parse(VERBS[name], rest)


def test_every_file_that_a_command_reads_exists() -> None:
    read = re.findall(r"(?m)^\$ .*?(?:< |map \S+ |--schema )([\w.]+)", TEXT)
    named = {name for name in read if (STORY / name).suffix} - {"README.md"}
    assert {"hundred.txt", "lighthouse.md"} <= named
    assert [name for name in named if not (STORY / name).exists()] == []


def test_the_files_of_the_story_are_those_that_its_program_writes() -> None:
    story = _story()
    assert (STORY / "hundred.txt").read_text(encoding="utf-8") == story.hundred()
    assert (STORY / "lighthouse.md").read_text(encoding="utf-8") == story.lighthouse()


def _story() -> ModuleType:
    spec = util.spec_from_file_location("story", ROOT / "benchmarks" / "story.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
