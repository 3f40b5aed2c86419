"""The `llmasos` command: a thin client of the kernel's socket.

Every call loads only this file and the table. The module of a verb is imported when the verb runs,
so the table names it as a string. Results go to stdout, everything else to stderr; the exit code
reports the outcome (see `exits`).
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits, streams
from .invocation import CURRENT
from .table import GROUPS, VERBS, group_help, help_text, unknown
from .verb import Verb


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the arguments name and return the exit code."""
    if argv is None:
        streams.restart_in_utf8()
    streams.prepare()
    words = list(sys.argv[1:] if argv is None else argv)
    words = CURRENT.begin(words)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except SyscallError as error:
        return _report(error)
    except BrokenPipeError:
        return _close_stdout()
    except OSError as error:
        return _report(_translated(error))
    except KeyboardInterrupt:
        if CURRENT.json:
            _report(SyscallError(Errno.EINTR, "interrupted"))
        else:
            print(file=sys.stderr)
        return exits.INTERRUPTED
    return code


def _dispatch(words: Sequence[str]) -> int:
    if CURRENT.missing:
        raise exits.UsageError(
            f"{CURRENT.missing} has no value", "as in --host box.example.com:7000"
        )
    if CURRENT.remote and not words:
        raise exits.UsageError("a verb is missing", "`llmasos --help` lists them")
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if words else sys.stderr)
        return exits.OK if words else exits.USAGE
    if words[0] == "--version":
        words = ["version"]
    name, rest = words[0], words[1:]
    if name in GROUPS and not _is_group_verb(name, rest):
        if not rest or rest[0] in ("-h", "--help"):
            print(group_help(name), file=sys.stdout if rest else sys.stderr)
            return exits.OK if rest else exits.USAGE
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in VERBS:
        raise exits.UsageError(*unknown(name))
    return _run(VERBS[name], rest)


def _is_group_verb(name: str, rest: Sequence[str]) -> bool:
    """Whether the name of a group is used as a verb: `mem 3`, `mem --map 3`, `devices`."""
    first = rest[0] if rest else ""
    option = first.startswith("-") and first not in ("-h", "--help")
    if name not in VERBS:
        return False
    complete = not rest and "metavar" not in VERBS[name].options[-1].settings
    return complete or option or first[:1].isdigit()


def _run(verb: Verb, words: Sequence[str]) -> int:
    CURRENT.verb, CURRENT.starts, CURRENT.local = verb.name, verb.starts, verb.local
    if CURRENT.remote and verb.local:
        raise exits.UsageError("this verb supports only the local machine", "omit --host")
    arguments: Any = words
    if not verb.rest:
        try:
            arguments = import_module(".arguments", __name__).parse(verb, words)
        except SystemExit as error:  # argparse has printed the help
            return int(error.code or 0)
    module, _, name = verb.function.partition(":")
    function: Any = getattr(import_module(module, __name__), name)
    return int(function(arguments))


def _report(error: SyscallError) -> int:
    print_error = import_module(".show", __name__).print_error
    print_error(error)
    return exits.code(error)


def _translated(error: OSError) -> SyscallError:
    """The error of a file or of the terminal as a SyscallError."""
    name = errno.errorcode.get(error.errno or 0, "")
    known = Errno[name] if name in Errno.__members__ else Errno.EIO
    return SyscallError(known, str(error), "check the file or directory in the message")


def _close_stdout() -> int:
    """The reader has closed the pipe, as `head` does: Python must not fail to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.OK
