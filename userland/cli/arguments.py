"""A verb's arguments, read by argparse as the table says."""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

from .exits import Usage
from .verb import Place, Verb

# Before a word that stands after `--`: argparse takes it for no option, wherever options may be.
_PLAIN = "\0"
_INVALID = re.compile("invalid (.*) value: (.*)", re.DOTALL)  # what argparse says of a value


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing it."""

    def error(self, message: str) -> NoReturn:
        plain = message.replace(_PLAIN, "").replace("\\x00", "")
        plain = _INVALID.sub(r"\2 is no \1", plain)
        raise Usage(plain, f"`{self.prog} --help` shows what it takes")


STARTS = "It starts a private daemon when none answers; LLMASOS_AUTOSTART=0 forbids that."


def parser(verb: Verb) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"llmasos {verb.words}", description=verb.summary, allow_abbrev=False,
        epilog=STARTS if verb.starts else None,
    )  # fmt: skip
    words = {one.apart for one in verb.options if one.apart}
    apart = {word: parser.add_mutually_exclusive_group() for word in words}
    for option in verb.options:
        settings: dict[str, Any] = option.settings
        if not option.flags[0].startswith("-"):
            settings = {**settings, "type": _unmarked(settings.get("type", str))}
        apart.get(option.apart, parser).add_argument(*option.flags, **settings)
    return parser


def _unmarked(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A positional argument's type, of a word that may be marked as plain."""

    @wraps(kind)
    def read(word: str) -> Any:
        return kind(word.removeprefix(_PLAIN))

    return read


def _marked(words: Sequence[str]) -> list[str]:
    """`--` ends the options: what follows it is taken as it is."""
    if "--" not in words:
        return list(words)
    end = words.index("--")
    return [*words[:end], *(_PLAIN + word for word in words[end + 1 :])]


def read(verb: Verb, words: Sequence[str]) -> argparse.Namespace:
    """Raises Usage when the words make no sense, SystemExit after printing the help."""
    reader = parser(verb)
    if not verb.extra:
        return _placed(reader.parse_intermixed_args(_marked(words)))  # `run Why --seed 1` is fine
    arguments, extra = reader.parse_known_args(_marked(words))
    arguments.extra = [word.removeprefix(_PLAIN) for word in extra]
    return arguments


def _placed(arguments: argparse.Namespace) -> argparse.Namespace:
    """PID:PAGES taken apart: the pages go where the others are that were named."""
    where: object = getattr(arguments, "pid", None)
    if not isinstance(where, Place):
        return arguments
    arguments.pid = where.pid
    given = where.pages
    if isinstance(getattr(arguments, "pages", None), list):
        rest = [_of(where.pid, one) for one in arguments.pages]
        arguments.pages = [*([given] if given else []), *rest]
        if not arguments.pages and not getattr(arguments, "key", None):
            raise Usage("which pages are meant is missing", "as 3:12, or 3:12-40, or 3 12 40-42")
    elif hasattr(arguments, "pages"):
        arguments.pages = _one(arguments.pages or None, given)
    elif hasattr(arguments, "page"):
        only = _single(given)
        arguments.page = only if arguments.page is None else _one(arguments.page, only)
    elif given is not None:  # of `mem read`
        arguments.what = _one(arguments.what or None, str(_single(given)))
    return arguments


def _of(pid: int, one: tuple[int, int] | Place) -> tuple[int, int]:
    if not isinstance(one, Place):
        return one
    if one.pid != pid or one.pages is None:
        raise Usage(f"pages of process {pid} are wanted", "one process at a time")
    return one.pages


def _one(named: Any, given: Any) -> Any:
    """What was named once, in either place."""
    if (named is None) is (given is None):
        words = "which page is meant is missing" if named is None else "pages are named twice"
        raise Usage(words, "as 3:12, or 3 12")
    return given if named is None else named


def _single(given: tuple[int, int] | None) -> int | None:
    if given is not None and given[0] != given[1]:
        raise Usage(f"{given[0]}-{given[1]}: one page is wanted", "as 3:12")
    return None if given is None else given[0]
