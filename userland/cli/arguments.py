"""A verb's arguments, read by argparse as the table says."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from .exits import Usage
from .verb import Verb


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing it."""

    def error(self, message: str) -> NoReturn:
        raise Usage(message, f"`{self.prog} --help` shows what it takes")


STARTS = "It starts a private daemon when none answers; LLMASOS_AUTOSTART=0 forbids that."


def parser(verb: Verb) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"llmasos {verb.words}", description=verb.summary, allow_abbrev=False,
        epilog=STARTS if verb.starts else None,
    )  # fmt: skip
    words = {one.apart for one in verb.options if one.apart}
    apart = {word: parser.add_mutually_exclusive_group() for word in words}
    for option in verb.options:
        apart.get(option.apart, parser).add_argument(*option.flags, **option.settings)
    return parser


def read(verb: Verb, words: Sequence[str]) -> argparse.Namespace:
    """Raises Usage when the words make no sense, SystemExit after printing the help."""
    reader = parser(verb)
    if not verb.extra:
        return reader.parse_intermixed_args(words)  # `run Why --seed 1 not` is fine
    arguments, extra = reader.parse_known_args(words)
    arguments.extra = extra
    return arguments
