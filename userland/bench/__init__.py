"""`llmasos bench`: the benchmarks of the project.

A suite is a file with its bars and one function that runs all its measurements. Shared parts:
`figures` (values and results), `quiet` (load by other programs), `rig` (a daemon on temporary
directories), `texts`, `streams` and `answers` (many generations at once), `peers` and `bare` (the
compared programs). Suites install nothing.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.cli.arguments import Parser
from llmasos.userland.cli.exits import UsageError

from . import (
    boot,
    choices,
    conversations,
    engine,
    exact,
    fairness,
    fault,
    fork,
    gate,
    grammar,
    isolation,
    layout,
    lookup,
    loop,
    mailbox,
    memory,
    oneshot,
    page,
    paging,
    quality,
    recall,
    setup,
    soak,
    stall,
    startup,
    switch,
    syscall,
    throughput,
    tokenize,
    turn,
)
from .figures import ResultFile, Suite, table
from .quiet import quietly
from .rig import ENGINES, RigError, engines_used, machine, on_engine, terminable, versions

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        syscall.SUITE,
        oneshot.SUITE,
        startup.SUITE,
        setup.SUITE,
        throughput.SUITE,
        engine.SUITE,
        stall.SUITE,
        isolation.SUITE,
        fairness.SUITE,
        fork.SUITE,
        switch.SUITE,
        exact.SUITE,
        quality.SUITE,
        grammar.SUITE,
        lookup.SUITE,
        layout.SUITE,
        loop.SUITE,
        gate.SUITE,
        memory.SUITE,
        boot.SUITE,
        page.SUITE,
        mailbox.SUITE,
        fault.SUITE,
        paging.SUITE,
        recall.SUITE,
        tokenize.SUITE,
        turn.SUITE,
        choices.SUITE,
        soak.SUITE,
    )
}


def run(suite: Suite, *, tiny: bool) -> ResultFile:
    """Run one suite. A suite that measures times is repeated while other programs are busy."""
    with engines_used() as engines:
        attempts = quietly(lambda: suite.take(tiny), tries=3 if suite.timed and not tiny else 1)
    engine = next(iter(engines)) if len(engines) == 1 else ""
    document = ResultFile.of(suite, attempts, machine(), versions(), tiny=tiny)
    return replace(document, engine=engine)


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llmasos bench", description="Measure this machine.")
    parser.add_argument(
        "suite",
        nargs="*",
        help=f"default: all of {', '.join(SUITES)}. `recall FILE.jsonl` uses your conversations",
    )
    parser.add_argument("--json", action="store_true", help="one document a line, no table")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    either.add_argument("--tiny", action="store_true", help="a fast run without verdicts")
    parser.add_argument(
        "--engine", choices=ENGINES, default="", help="compute models on it; default: the machine's"
    )
    parser.add_argument(
        "--out", type=Path, help="also write DIR/SUITE[-ENGINE].json", metavar="DIR"
    )
    return parser


def main(args: Sequence[str] | None = None) -> int:
    options = parser().parse_args(args)
    with terminable(), on_engine(options.engine):
        return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    files = [Path(name) for name in options.suite if name.endswith(".jsonl")]
    if files:
        return _files(files, options)
    unknown = [name for name in options.suite if name not in SUITES]
    if unknown:
        raise UsageError(f"no suite {unknown[0]!r}", f"suites: {', '.join(SUITES)}")
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
    """Measure recall on the user's conversations instead of generated ones.

    All files are read first, so that an error in the last one is not reported after an hour.
    """
    try:
        by_file = {path: conversations.read(path) for path in files}
    except (conversations.Malformed, OSError) as error:
        raise UsageError(str(error)) from error
    for path, talks in by_file.items():
        try:
            found, text = recall.figures(talks)
        except (RigError, SyscallError, OSError) as error:
            raise _failure(str(path), error) from error
        print(json.dumps({"file": path.name, **found}) if options.json else text, flush=True)
    return 0


def _failure(name: str, error: Exception) -> SyscallError:
    """The error of a suite that could not be completed."""
    if isinstance(error, SyscallError):
        return SyscallError(error.errno, f"{name}: {error.message}", error.hint)
    return SyscallError(Errno.ECANCELED, f"{name}: {error}")


def show(document: ResultFile, options: argparse.Namespace) -> None:
    plain = asdict(document)
    print(json.dumps(plain) if options.json else table(document), flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / document.file_name
        path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
