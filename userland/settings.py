"""The daemon's settings: used by the daemon, and by `llmasos config`, which needs no daemon.

    python -m llmasos.userland.settings [--json] [--SETTING VALUE ...]

A module of its own, because the daemon's module imports the whole kernel.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from llmasos.kernel import config
from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import Errno, SyscallError


class WrongUsage(SyscallError):
    """Invalid command-line options."""


class SettingsParser(argparse.ArgumentParser):
    """Raises WrongUsage instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        raise WrongUsage(Errno.EINVAL, message, "`llmasos config list` lists the settings")


def add_to(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting."""
    for name, field in config.Config.model_fields.items():
        optional: dict[str, Any] = {}
        if field.annotation is bool:  # --NAME without a value means true
            optional = {"nargs": "?", "const": "true"}
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=field.description,
            **optional,
        )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, help="base of relative file names in flags and variables"
    )
    parser.add_argument("--json", action="store_true")


def load(
    where: paths.Paths, arguments: argparse.Namespace
) -> tuple[config.Config, list[config.Setting]]:
    """The settings from the flags, the environment and the configuration file. EINVAL."""
    flags = {k: v for k, v in vars(arguments).items() if k in config.Config.model_fields}
    return config.load(where, flags, arguments.directory)


def report(error: SyscallError, argv: Sequence[str]) -> int:
    """Print an error to stderr, with --json as one JSON object. Returns the exit code."""
    text = f"llmasos daemon: {error}"
    if "--json" in argv:
        fields = {"errno": error.errno.name, "number": int(error.errno), "message": error.message,
                "hint": error.hint}  # fmt: skip
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    print(text, file=sys.stderr)
    return 2 if isinstance(error, WrongUsage) else 1


def main(argv: Sequence[str]) -> int:
    parser = SettingsParser(prog="llmasos config", description=__doc__)
    add_to(parser)
    try:
        _, listed = load(paths.find(), parser.parse_args(argv))
    except SyscallError as error:
        return report(error, argv)
    print(json.dumps([asdict(setting) for setting in listed], sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
