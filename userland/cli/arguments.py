"""A verb's arguments, read by argparse as the table says."""

import argparse
from collections.abc import Sequence

from .verb import Verb


def parser(verb: Verb) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"llmasos {verb.words}", description=verb.summary, allow_abbrev=False
    )
    words = {one.apart for one in verb.options if one.apart}
    apart = {word: parser.add_mutually_exclusive_group() for word in words}
    for option in verb.options:
        apart.get(option.apart, parser).add_argument(*option.flags, **option.settings)
    return parser


def read(verb: Verb, words: Sequence[str]) -> argparse.Namespace:
    """Raises SystemExit, after saying why, when the words make no sense."""
    reader = parser(verb)
    if not verb.extra:
        return reader.parse_intermixed_args(words)  # `run Why --seed 1 not` is fine
    arguments, extra = reader.parse_known_args(words)
    arguments.extra = extra
    return arguments
