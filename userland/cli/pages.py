"""`llmasos mem`: writes, pins, evicts, maps and shares pages."""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from . import exits
from .connection import connect, is_remote
from .generation import clean
from .mem import count, page_number
from .show import error_fields, note, print_error, print_json
from .stdin import WHOLE, text_argument
from .verb import pages

_BATCH = 1000  # pages of one call
_EXAMPLES = 3  # file names printed per reason


def numbered(first: int, last: int) -> str:
    """A range in the form that other verbs accept."""
    return f"{first}-{last}" if last > first else str(first)


# --- write ------------------------------------------------------------------------------------
def write(arguments: Namespace) -> int:
    text = text_argument(arguments.text, limits.MESSAGE_CHARS, WHOLE)
    if not text:
        raise exits.UsageError("no text given", "give it as arguments, or pipe it in")
    request = v.WriteMem(
        arguments.pid, text, arguments.page, clean(arguments.key or "", "the key"),
        clean(arguments.speaker, "the speaker"), labels=arguments.labels,
    )  # fmt: skip
    with connect() as client:
        written = client.call("write_mem", request, v.Written)
    if arguments.json:
        print_json({"pid": arguments.pid, "pages": written.pages})
    else:
        for first, last in _runs(written.pages):
            print(numbered(first, last))
    return exits.OK


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last number of each run of consecutive numbers."""
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

    def act(client: BlockingClient, first: int, many: int) -> object:
        return client.call("pin", v.Pin(arguments.pid, first, many, pinned), v.Nothing)

    return _each(arguments, act, {"pinned": pinned})


def evict(arguments: Namespace) -> int:
    def act(client: BlockingClient, first: int, many: int) -> object:
        return client.call("evict", v.Evict(arguments.pid, first, many), v.Nothing)

    return _each(arguments, act, {})


def _each(
    arguments: Namespace, act: Callable[[BlockingClient, int, int], object], more: dict[str, object]
) -> int:
    """Handle every range, even after a failure; the exit code is that of the first failure."""
    done: list[str] = []
    failed: dict[str, SyscallError] = {}
    with connect() as client:
        for first, last in arguments.pages:
            try:
                for at, many in _parts(first, last):
                    act(client, at, many)
                done.append(numbered(first, last))
            except SyscallError as error:
                failed[numbered(first, last)] = error
                print_error(error)
    if arguments.json:
        failures = [{"pages": name, **error_fields(error)} for name, error in failed.items()]
        print_json({"pid": arguments.pid, "pages": done, "failed": failures, **more})
    return next((exits.code(error) for error in failed.values()), exits.OK)


def _parts(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Split a range into the batches of single calls: first and count."""
    for at in range(first, last + 1, _BATCH):
        yield at, min(_BATCH, last + 1 - at)


# --- mapped -----------------------------------------------------------------------------------
def map_(arguments: Namespace) -> int:
    source: str = arguments.source
    process = re.fullmatch(r"[0-9]+(:[0-9]+(-[0-9]+)?)?", source) is not None
    if process and ":" in source:
        source, _, some = source.partition(":")
        if arguments.pages:
            raise exits.UsageError("pages are named twice", "as 3:12-40, or with --pages 12-40")
        arguments.pages = _range(some)
    if arguments.pages and not process:
        raise exits.UsageError(
            "--pages needs a process as source", "omit --pages: a document is mapped whole"
        )
    first, last = arguments.pages or (0, -1)
    request = v.Mmap(
        arguments.pid, f"/proc/{source}/mem" if process else f"/files{_resolved(source)}",
        first, last + 1 - first, not arguments.read_only,
    )  # fmt: skip
    with connect() as client:
        mapped = client.call("mmap", request, v.Mapped)
    if arguments.json:
        print_json({"pid": arguments.pid, **_fields(mapped)})
        return exits.OK
    _print_mapped(mapped)
    _print_skipped(mapped, verbose=arguments.verbose)
    return exits.OK


def _print_skipped(mapped: v.Mapped, *, verbose: bool) -> None:
    """Print what is not mapped of a folder, grouped by reason; with --verbose each file."""
    if mapped.links:
        note(f"skipped {count(mapped.links, 'link')}")
    if mapped.hidden:
        note(f"skipped {mapped.hidden} hidden")
    by_why: dict[str, list[v.SkippedFile]] = {}
    for one in mapped.skipped:
        by_why.setdefault(f"{one.name} {one.why}" if verbose else one.why, []).append(one)
    for group in by_why.values():
        note(f"skipped {_group(group)}")
    if mapped.more:
        note(f"skipped {mapped.more} more")
    if len(by_why) < len(mapped.skipped):
        note("-v lists every file")


def _group(files: Sequence[v.SkippedFile]) -> str:
    """The files with the same reason; `detail` is of one file."""
    first, names = files[0], [one.name for one in files]
    if len(names) == 1:
        return f"{first.name}: {first.why}{first.detail}"
    some = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
    return f"{len(names)} files ({some}): {first.why}"


def _range(text: str) -> tuple[int, int]:
    try:
        return pages(text)
    except ValueError:
        raise exits.UsageError(f"{text} is not PAGE or FIRST-LAST", "as in 3:12-40") from None


def _resolved(path: str) -> str:
    """An absolute path with symbolic links resolved. Raises ENOENT, EINVAL for the root directory.

    A path for a kernel on another machine is not resolved here.
    """
    if is_remote():
        if not path.startswith(os.sep):
            message = f"{path} is relative, but the kernel is on another machine"
            raise SyscallError(Errno.EINVAL, message, "give an absolute path")
        return os.path.normpath(path)
    try:
        os.stat(clean(path, "the path"))
    except (OSError, ValueError) as error:
        message = f"{path}: {error.strerror if isinstance(error, OSError) else error}"
        hint = "give the path of a file or a folder, or a pid"
        raise SyscallError(Errno.ENOENT, message, hint) from error
    found = os.path.realpath(path)
    if found == os.sep:
        message = f"{path} is the root directory"
        raise SyscallError(Errno.EINVAL, message, "give a file or a folder below it")
    return found


def _fields(mapped: v.Mapped) -> dict[str, object]:
    return {
        "first": mapped.first, "count": mapped.count, "source": mapped.source,
        "skipped": mapped.skipped, "more": mapped.more, "links": mapped.links,
        "hidden": mapped.hidden,
    }  # fmt: skip


def _print_mapped(mapped: v.Mapped) -> None:
    print(numbered(mapped.first, mapped.first + mapped.count - 1))
    note(f"mapped {count(mapped.count, 'page')} from page {mapped.first}: {mapped.source}")


def unmap(arguments: Namespace) -> int:
    page = page_number(arguments)
    with connect() as client:
        client.call("munmap", v.Munmap(arguments.pid, page), v.Nothing)
    if arguments.json:
        print_json({"pid": arguments.pid, "page": page})
    return exits.OK


def share(arguments: Namespace) -> int:
    with connect() as client:
        shared = _share_batches(client, arguments)
    if arguments.json:
        print_json({"pid": arguments.pid, "to": arguments.to, "mapped": shared})
        return exits.OK
    for mapped in shared:
        _print_mapped(mapped)
    return exits.OK


def _share_batches(client: BlockingClient, arguments: Namespace) -> list[v.Mapped]:
    """Share in batches up to the last existing page. Raises ENOENT if the range has no page."""
    shared: list[v.Mapped] = []
    for first, many in _parts(*arguments.pages):
        try:
            request = v.Share(arguments.pid, arguments.to, first, many)
            shared.append(client.call("share", request, v.Mapped))
        except SyscallError as error:
            if not shared or error.errno is not Errno.ENOENT:
                raise
            break
    return shared
