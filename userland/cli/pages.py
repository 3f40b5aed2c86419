"""`llmasos mem`: pages written, pinned, evicted, mapped and given away."""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

from llmasos.kernel import limits
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland.line import Line

from . import exits
from .door import connect, is_far
from .mem import count, named
from .show import complain, document, failure, note
from .stdin import WHOLE, said
from .talk import clean
from .verb import pages

_AT_ONCE = 1000  # pages of one call
_NAMED = 3  # files of one reason
_VARYING = (  # what a reason says of one file alone, and in general
    (re.compile(r" at byte \d+$"), ""),
    (re.compile(r"^has \d+ bytes, (\d+) are allowed$"), r"has more than \1 bytes"),
    (re.compile(r"^there is no file .* that you may read$"), "may not be read by you"),
)


def numbered(first: int, last: int) -> str:
    """Pages as the other verbs take them."""
    return f"{first}-{last}" if last > first else str(first)


# --- write ------------------------------------------------------------------------------------
def write(arguments: Namespace) -> int:
    text = said(arguments.text, limits.MESSAGE_CHARS, WHOLE)
    if not text:
        raise exits.Usage("there is no text", "give it as words, or pipe it in")
    request = v.WriteMem(
        arguments.pid, text, arguments.page, clean(arguments.key or "", "the key"),
        clean(arguments.speaker, "the speaker"), labels=arguments.labels,
    )  # fmt: skip
    with connect() as line:
        written = line.call("write_mem", request, v.Written)
    if arguments.json:
        document({"pid": arguments.pid, "pages": written.pages})
    else:
        for first, last in _runs(written.pages):
            print(numbered(first, last))
    return exits.OK


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of neighbours."""
    first: int | None = None
    last = 0
    for number in numbers:
        if first is not None and number != last + 1:
            yield first, last
            first = None
        first, last = number if first is None else first, number
    if first is not None:
        yield first, last


# --- in the window, or not --------------------------------------------------------------------
def pin(arguments: Namespace) -> int:
    pinned = not arguments.off

    def act(line: Line, first: int, many: int) -> object:
        return line.call("pin", v.Pin(arguments.pid, first, many, pinned), v.Nothing)

    return _each(arguments, act, {"pinned": pinned})


def evict(arguments: Namespace) -> int:
    def act(line: Line, first: int, many: int) -> object:
        return line.call("evict", v.Evict(arguments.pid, first, many), v.Nothing)

    return _each(arguments, act, {})


def _each(
    arguments: Namespace, act: Callable[[Line, int, int], object], more: dict[str, object]
) -> int:
    """Every range gets its turn; the exit code is the first failure's."""
    done: list[str] = []
    failed: dict[str, SyscallError] = {}
    with connect() as line:
        for first, last in arguments.pages:
            try:
                for at, many in _parts(first, last):
                    act(line, at, many)
                done.append(numbered(first, last))
            except SyscallError as error:
                failed[numbered(first, last)] = error
                complain(error)
    if arguments.json:
        wrong = [{"pages": name, **failure(error)} for name, error in failed.items()]
        document({"pid": arguments.pid, "pages": done, "failed": wrong, **more})
    return next((exits.code(error) for error in failed.values()), exits.OK)


def _parts(first: int, last: int) -> Iterator[tuple[int, int]]:
    """A range as calls take it: first and count."""
    for at in range(first, last + 1, _AT_ONCE):
        yield at, min(_AT_ONCE, last + 1 - at)


# --- mapped -----------------------------------------------------------------------------------
def map_(arguments: Namespace) -> int:
    source: str = arguments.source
    process = re.fullmatch(r"[0-9]+(:[0-9]+(-[0-9]+)?)?", source) is not None
    if process and ":" in source:
        source, _, some = source.partition(":")
        if arguments.pages:
            raise exits.Usage("pages are named twice", "as 3:12-40, or with --pages 12-40")
        arguments.pages = _range(some)
    if arguments.pages and not process:
        raise exits.Usage("--pages are of a process", "leave them out: a document is mapped whole")
    first, last = arguments.pages or (0, -1)
    request = v.Mmap(
        arguments.pid, f"/proc/{source}/mem" if process else f"/files{_found(source)}",
        first, last + 1 - first, not arguments.read_only,
    )  # fmt: skip
    with connect() as line:
        mapped = line.call("mmap", request, v.Mapped)
    if arguments.json:
        document({"pid": arguments.pid, **_fields(mapped)})
        return exits.OK
    _show(mapped)
    _tell_skipped(mapped.skipped, arguments)
    return exits.OK


def _tell_skipped(skipped: Sequence[str], arguments: Namespace) -> None:
    """What was left out of a folder, by reason; with --verbose each file."""
    lines = list(skipped if arguments.verbose else _reasons(skipped))
    for line in lines:
        note(f"skipped {line}")
    if len(lines) < len(skipped):
        note("with -v each of them is named")


def _reasons(skipped: Sequence[str]) -> Iterator[str]:
    """The files with the same reason together; links and hidden files are counted already."""
    files: dict[str, list[str]] = {}
    for one in skipped:
        name, colon, why = one.partition(": ")
        for varying, general in _VARYING:
            why = varying.sub(general, why)
        files.setdefault(f"{colon}{why}", []).append(name)
    for why, names in files.items():
        if not why or len(names) == 1:
            yield from (f"{name}{why}" for name in names)
        else:
            some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            yield f"{len(names)} files ({some}){why}"


def _range(text: str) -> tuple[int, int]:
    try:
        return pages(text)
    except ValueError:
        raise exits.Usage(f"{text} is no PAGE or FIRST-LAST", "as in 3:12-40") from None


def _found(path: str) -> str:
    """A path without links, as the kernel wants it. ENOENT; EINVAL: it names no folder.

    One of another machine is taken as it is named.
    """
    if is_far():
        if not path.startswith(os.sep):
            words = f"{path} is relative, and the kernel is on another machine"
            raise SyscallError(Errno.EINVAL, words, "name it from / on")
        return os.path.normpath(path)
    try:
        os.stat(clean(path, "the path"))
    except (OSError, ValueError) as error:
        words = f"{path}: {error.strerror if isinstance(error, OSError) else error}"
        hint = "give the path of a file or a folder, or a pid"
        raise SyscallError(Errno.ENOENT, words, hint) from error
    found = os.path.realpath(path)
    if found == os.sep:
        words = f"{path} is the root of all files"
        raise SyscallError(Errno.EINVAL, words, "name a file, or a folder in it")
    return found


def _fields(mapped: v.Mapped) -> dict[str, object]:
    return {"first": mapped.first, "count": mapped.count, "source": mapped.source,
            "skipped": mapped.skipped}  # fmt: skip


def _show(mapped: v.Mapped) -> None:
    print(numbered(mapped.first, mapped.first + mapped.count - 1))
    note(f"{count(mapped.count, 'page')} from page {mapped.first} on: {mapped.source}")


def unmap(arguments: Namespace) -> int:
    page = named(arguments)
    with connect() as line:
        line.call("munmap", v.Munmap(arguments.pid, page), v.Nothing)
    if arguments.json:
        document({"pid": arguments.pid, "page": page})
    return exits.OK


def share(arguments: Namespace) -> int:
    with connect() as line:
        given = _shared(line, arguments)
    if arguments.json:
        document({"pid": arguments.pid, "to": arguments.to, "mapped": given})
        return exits.OK
    for mapped in given:
        _show(mapped)
    return exits.OK


def _shared(line: Line, arguments: Namespace) -> list[v.Mapped]:
    """As `mem map` does, this ends where the pages end. ENOENT: there are none."""
    given: list[v.Mapped] = []
    for first, many in _parts(*arguments.pages):
        try:
            request = v.Share(arguments.pid, arguments.to, first, many)
            given.append(line.call("share", request, v.Mapped))
        except SyscallError as error:
            if not given or error.errno is not Errno.ENOENT:
                raise
            break
    return given
