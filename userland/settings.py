"""The daemon's settings: read by the daemon, and shown by `llmasos config` without one.

    python -m llmasos.userland.settings [--json] [--SETTING VALUE ...]

Apart from the daemon's module, which loads a whole kernel.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from llmasos.kernel import config, paths
from llmasos.kernel.errors import Errno, SyscallError


class WrongUsage(SyscallError):
    """Options that make no sense."""


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing it."""

    def error(self, message: str) -> NoReturn:
        raise WrongUsage(Errno.EINVAL, message, "`llmasos config list` lists the settings")


def add_to(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting."""
    for name, field in config.Config.model_fields.items():
        alone: dict[str, Any] = {}
        if field.annotation is bool:  # the flag by itself says yes
            alone = {"nargs": "?", "const": "true"}
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=field.description,
            **alone,
        )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, help="relative names of files in flags and variables are here"
    )
    parser.add_argument("--json", action="store_true")


def load(
    where: paths.Paths, arguments: argparse.Namespace
) -> tuple[config.Config, list[config.Setting]]:
    """The settings that these flags, the environment and the file make. EINVAL."""
    flags = {k: v for k, v in vars(arguments).items() if k in config.Config.model_fields}
    return config.load(where, flags, arguments.directory)


def report(error: SyscallError, words: Sequence[str]) -> int:
    """Print an error to stderr, with --json as one object: the exit code."""
    text = f"llmasos daemon: {error}"
    if "--json" in words:
        told = {"errno": error.errno.name, "number": int(error.errno), "message": error.message,
                "hint": error.hint}  # fmt: skip
        text = json.dumps(told, sort_keys=True, ensure_ascii=False)
    print(text, file=sys.stderr)
    return 2 if isinstance(error, WrongUsage) else 1


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="llmasos config", description=__doc__)
    add_to(parser)
    try:
        _, listed = load(paths.find(), parser.parse_args(words))
    except SyscallError as error:
        return report(error, words)
    print(json.dumps([asdict(setting) for setting in listed], sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
