"""Parses the arguments of a verb with argparse, as the table of verbs defines them."""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

from .exits import UsageError
from .verb import ProcessPages, Verb

# Prefix of a word after `--`, so that argparse does not take it for an option.
_POSITIONAL = "\0"
_INVALID = re.compile("invalid (.*) value: (.*)", re.DOTALL)  # argparse's message for a bad value


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        text = message.replace(_POSITIONAL, "").replace("\\x00", "")
        text = _INVALID.sub(r"\2 is not a valid \1", text)
        raise UsageError(text, f"`{self.prog} --help` shows the usage")


AUTOSTART_NOTE = (
    "This verb starts a private daemon if none is running; LLMASOS_AUTOSTART=0 disables that."
)


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb's arguments."""
    parser = Parser(
        prog=f"llmasos {verb.name}", description=verb.summary, allow_abbrev=False,
        epilog=AUTOSTART_NOTE if verb.starts else None,
    )  # fmt: skip
    names = {one.group for one in verb.options if one.group}
    groups = {name: parser.add_mutually_exclusive_group() for name in names}
    for option in verb.options:
        settings: dict[str, Any] = option.settings
        if not option.flags[0].startswith("-"):
            settings = {**settings, "type": _unmarked(settings.get("type", str))}
        groups.get(option.group, parser).add_argument(*option.flags, **settings)
    return parser


def _unmarked(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of a positional argument, which may have the prefix _POSITIONAL."""

    @wraps(kind)
    def convert(word: str) -> Any:
        return kind(word.removeprefix(_POSITIONAL))

    return convert


def _marked(words: Sequence[str]) -> list[str]:
    """The words, with _POSITIONAL before each one after `--`, which ends the options."""
    if "--" not in words:
        return list(words)
    end = words.index("--")
    return [*words[:end], *(_POSITIONAL + word for word in words[end + 1 :])]


def parse(verb: Verb, words: Sequence[str]) -> argparse.Namespace:
    """Parse the words. Raises UsageError for wrong usage, SystemExit after printing the help."""
    parser = parser_of(verb)
    if not verb.takes_settings:
        # Intermixed: options may follow positional arguments, as in `run Why --seed 1`.
        return _split_pages(parser.parse_intermixed_args(_marked(words)))
    arguments, settings = parser.parse_known_args(_marked(words))
    arguments.settings = [word.removeprefix(_POSITIONAL) for word in settings]
    return arguments


def _split_pages(arguments: argparse.Namespace) -> argparse.Namespace:
    """Split PID:PAGES: move the pages to the verb's argument for pages.

    It is `pages`, a list, of pin, evict and forget; `pages`, a range, of share; `page` of why,
    unmap and write; `what` of read. `page` may stay None: the verbs that need one refuse it.
    """
    target: object = getattr(arguments, "pid", None)
    if not isinstance(target, ProcessPages):
        return arguments
    arguments.pid = target.pid
    given = target.pages
    if isinstance(getattr(arguments, "pages", None), list):
        rest = [_range_of(target.pid, one) for one in arguments.pages]
        arguments.pages = [*([given] if given else []), *rest]
        if not arguments.pages and not getattr(arguments, "key", None):
            raise UsageError("no page is given", "as 3:12, or 3:12-40, or 3 12 40-42")
    elif hasattr(arguments, "pages"):
        arguments.pages = _exactly_one(arguments.pages or None, given)
    elif hasattr(arguments, "page"):
        only = _single(given)
        arguments.page = only if arguments.page is None else _exactly_one(arguments.page, only)
    elif given is not None:
        arguments.what = _exactly_one(arguments.what or None, str(_single(given)))
    return arguments


def _range_of(pid: int, argument: tuple[int, int] | ProcessPages) -> tuple[int, int]:
    """The range of one argument. UsageError if it names another process or no page."""
    if not isinstance(argument, ProcessPages):
        return argument
    if argument.pid != pid or argument.pages is None:
        raise UsageError(f"expected pages of process {pid}", "give pages of one process per call")
    return argument.pages


def _exactly_one(first: Any, second: Any) -> Any:
    """The value that is not None. UsageError if both or none are given."""
    if (first is None) is (second is None):
        message = "no page is given" if first is None else "pages are given twice"
        raise UsageError(message, "as 3:12, or 3 12")
    return second if first is None else first


def _single(given: tuple[int, int] | None) -> int | None:
    """The only page of a range. UsageError if there are several."""
    if given is not None and given[0] != given[1]:
        raise UsageError(f"{given[0]}-{given[1]}: expected one page", "as 3:12")
    return None if given is None else given[0]
