"""`llmasos bench`: how the project measures itself.

A suite is a file here with its bars and one function that takes a whole pass of measurements. What
they share stands beside them: `figures` (what a figure is), `quiet` (how much of the machine others
took), `rig` (a daemon of its own on temporary directories), `texts`, `streams` and `answers` (many
generations at once), `peers` and `bare` (what we are compared with). Suites install nothing.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland.cli.arguments import Parser
from llmasos.userland.cli.exits import Usage

from . import (
    choices,
    conversations,
    exact,
    fairness,
    fault,
    fork,
    gate,
    grammar,
    isolation,
    layout,
    loop,
    mailbox,
    memory,
    page,
    paging,
    recall,
    soak,
    stall,
    startup,
    syscall,
    throughput,
    tokenize,
)
from .figures import Document, Suite, table
from .quiet import quietly
from .rig import RigError, machine, versions

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        syscall.SUITE,
        startup.SUITE,
        throughput.SUITE,
        stall.SUITE,
        isolation.SUITE,
        fairness.SUITE,
        fork.SUITE,
        exact.SUITE,
        grammar.SUITE,
        layout.SUITE,
        loop.SUITE,
        gate.SUITE,
        memory.SUITE,
        page.SUITE,
        mailbox.SUITE,
        fault.SUITE,
        paging.SUITE,
        recall.SUITE,
        tokenize.SUITE,
        choices.SUITE,
        soak.SUITE,
    )
}


def run(suite: Suite, *, tiny: bool) -> Document:
    """One suite; one that measures times is repeated while other programs are busy."""
    attempts = quietly(lambda: suite.take(tiny), tries=3 if suite.timed and not tiny else 1)
    return Document.of(suite, attempts, machine(), versions(), tiny=tiny)


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llmasos bench", description="Measure this machine.")
    parser.add_argument(
        "suite",
        nargs="*",
        help=f"of: {', '.join(SUITES)}; none: all. `recall FILE.jsonl` asks conversations of yours",
    )
    parser.add_argument("--json", action="store_true", help="one document a line, no table")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    either.add_argument("--tiny", action="store_true", help="a fast pass that is not judged")
    parser.add_argument("--out", type=Path, help="also write DIR/SUITE.json", metavar="DIR")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    options = parser().parse_args(args)
    files = [Path(name) for name in options.suite if name.endswith(".jsonl")]
    if files:
        return _files(files, options)
    unknown = [name for name in options.suite if name not in SUITES]
    if unknown:
        raise Usage(f"there is no suite {unknown[0]!r}", f"there are: {', '.join(SUITES)}")
    good = True
    for name in options.suite or SUITES:
        try:
            document = run(SUITES[name], tiny=options.tiny)
        except (RigError, SyscallError) as error:
            raise _failure(name, error) from error
        show(document, options)
        good = good and document.good
    return 0 if good or not options.check else 1


def _files(files: Sequence[Path], options: argparse.Namespace) -> int:
    """Conversations that somebody has, instead of those that are made here.

    All files are read before one is asked: a mistake in the last is not told after an hour.
    """
    try:
        held = {path: conversations.read(path) for path in files}
    except (conversations.Malformed, OSError) as error:
        raise Usage(str(error)) from error
    for path, some in held.items():
        try:
            found, text = recall.figures(some)
        except (RigError, SyscallError, OSError) as error:
            raise _failure(str(path), error) from error
        print(json.dumps({"file": path.name, **found}) if options.json else text, flush=True)
    return 0


def _failure(name: str, error: Exception) -> SyscallError:
    """A measurement that did not come to its end."""
    if isinstance(error, SyscallError):
        return SyscallError(error.errno, f"{name}: {error.message}", error.hint)
    return SyscallError(Errno.ECANCELED, f"{name}: {error}")


def show(document: Document, options: argparse.Namespace) -> None:
    plain = asdict(document)
    print(json.dumps(plain) if options.json else table(document), flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{document.name}.json"
        path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
