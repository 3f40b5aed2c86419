"""The `llmasos` command: a thin client of the kernel's socket.

This file and `table` are all that every call loads; what a verb needs is imported when it is its
turn, which is why its module is named in the table and not imported here. What is wanted goes to
stdout, everything else to stderr, and the exit code says what happened (see `exits`).
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from llmasos.kernel.errors import Errno, SyscallError

from . import exits, streams
from .invocation import CURRENT
from .table import GROUPS, VERBS, group_help, help_text, unknown
from .verb import Verb


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    if argv is None:
        streams.restart_in_utf8()
    streams.prepare()
    words = list(sys.argv[1:] if argv is None else argv)
    words = CURRENT.begin(words)
    try:
        code = _act(words)
        sys.stdout.flush()
    except SyscallError as error:
        return _complain(error)
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        return _complain(_of_the_system(error))
    except KeyboardInterrupt:
        if CURRENT.json:
            _complain(SyscallError(Errno.EINTR, "interrupted"))
        else:
            print(file=sys.stderr)
        return exits.INTERRUPTED
    return code


def _act(words: Sequence[str]) -> int:
    if CURRENT.missing:
        raise exits.Usage(f"{CURRENT.missing} has no value", "as in --host box.example.com:7000")
    if CURRENT.remote and not words:
        raise exits.Usage("a verb is missing", "`llmasos --help` lists them")
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if words else sys.stderr)
        return exits.OK if words else exits.USAGE
    if words[0] == "--version":
        words = ["version"]
    name, rest = words[0], words[1:]
    if name in GROUPS and not _alone(name, rest):
        if not rest or rest[0] in ("-h", "--help"):
            print(group_help(name), file=sys.stdout if rest else sys.stderr)
            return exits.OK if rest else exits.USAGE
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in VERBS:
        raise exits.Usage(*unknown(name))
    return _run(VERBS[name], rest)


def _alone(name: str, rest: Sequence[str]) -> bool:
    """Whether a group's name is meant as a verb of its own: `mem 3`, `mem --map 3`, `devices`."""
    first = rest[0] if rest else ""
    option = first.startswith("-") and first not in ("-h", "--help")
    if name not in VERBS:
        return False
    complete = not rest and "metavar" not in VERBS[name].options[-1].settings
    return complete or option or first[:1].isdigit()


def _run(verb: Verb, words: Sequence[str]) -> int:
    CURRENT.verb, CURRENT.starts, CURRENT.local = verb.words, verb.starts, verb.local
    if CURRENT.remote and verb.local:
        raise exits.Usage("this is about the machine that it runs on", "leave --host out")
    arguments: Any = words
    if not verb.rest:
        try:
            arguments = import_module(".arguments", __name__).read(verb, words)
        except SystemExit as leave:  # argparse has printed the help
            return int(leave.code or 0)
    module, _, function = verb.home.partition(":")
    act: Any = getattr(import_module(module, __name__), function)
    return int(act(arguments))


def _complain(error: SyscallError) -> int:
    say = import_module(".show", __name__).complain
    say(error)
    return exits.code(error)


def _of_the_system(error: OSError) -> SyscallError:
    """What a file or the terminal answered, in our words."""
    name = errno.errorcode.get(error.errno or 0, "")
    known = Errno[name] if name in Errno.__members__ else Errno.EIO
    return SyscallError(known, str(error), "look at the file or directory that is named")


def _unread() -> int:
    """Whoever read our output has left, as `head` does. Python must not flush into the void."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.OK
