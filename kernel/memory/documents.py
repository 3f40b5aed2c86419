"""Reads the texts of a file or a folder.

Listing and reading are two steps, so that the policy can be evaluated for each file between them.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..abi import limits
from ..abi.errors import Errno, SyscallError, TooBig
from ..storage.filesystem import Access, Opener
from ..yield_point import YieldPoint


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text and name."""

    name: str  # relative to the mapped path
    text: str
    time: float  # Unix seconds: when it was last changed


@dataclass(slots=True)
class Listing:
    """The files at a path."""

    path: Path
    files: list[Path]
    is_folder: bool  # False: one file
    skipped: list[str] = field(default_factory=list[str])  # file names with the reason
    omitted: Counter[str] = field(default_factory=Counter[str])  # number of links, hidden files

    def skip(self, file: Path, why: str) -> None:
        name = printable(str(file.relative_to(self.path)))
        self.skipped.append(f"{name}: {printable(why).removeprefix(f'{printable(str(file))} ')}")


def printable(name: str) -> str:
    """A file name as valid UTF-8: other bytes are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_files(access: Access, path: Path) -> Listing:
    """List the files at a path. ENOENT, EACCES, E2BIG. Blocks."""
    return access.run(lambda opener: _list_files(opener, path))


def _list_files(opener: Opener, path: Path) -> Listing:
    folder = opener.folder(path)
    if folder is None:
        return Listing(path, [path], is_folder=False)
    found = Listing(path, [], is_folder=True)
    try:
        for inside, folders, names, here in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
            _add_folder(opener, found, path / inside, (folders, names, here))
            if len(found.files) > limits.FOLDER_FILES:
                message = f"{path} has more than {limits.FOLDER_FILES} files"
                raise TooBig(message, "map one of its folders")
    finally:
        os.close(folder)
    return found


def _add_folder(
    opener: Opener, found: Listing, folder: Path, inside: tuple[list[str], list[str], int]
) -> None:
    """Add the files of a folder to the listing, and keep the folders to walk next."""
    folders, names, here = inside
    seen = sorted(name for name in (*folders, *names) if not name.startswith("."))
    found.omitted["hidden"] += len(folders) + len(names) - len(seen)
    folders.clear()
    for name in seen:
        try:
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
        except OSError:  # deleted meanwhile
            continue
        if stat.S_ISLNK(status.st_mode):
            found.omitted["links"] += 1
        elif opener.is_private(status):
            found.skip(folder / name, "belongs to LLMasOS or to the system")
        elif stat.S_ISDIR(status.st_mode):
            folders.append(name)
        else:
            found.files.append(folder / name)


async def permitted(found: Listing, why_not: Callable[[Path], str]) -> None:
    """Remove from a folder what the caller may not map. A single file was checked before."""
    if not found.is_folder:
        return
    yield_point, kept = YieldPoint(), list[Path]()
    for file in found.files:
        why = why_not(file)
        if why:
            found.skip(file, why)
        else:
            kept.append(file)
        await yield_point()
    found.files = kept


def read(access: Access, found: Listing) -> tuple[list[Document], list[str]]:
    """Read the texts; also returns the skipped files of a folder with reasons. Blocks.

    ENOENT, EACCES, E2BIG; EINVAL: not a text, or a link.
    """
    return access.run(lambda opener: _read(opener, found))


def _read(opener: Opener, found: Listing) -> tuple[list[Document], list[str]]:
    if not found.is_folder:
        return [_document(opener, found.path, found.path.name)], []
    documents: list[Document] = []
    size = 0
    for file in found.files:
        try:
            documents.append(_document(opener, file, printable(str(file.relative_to(found.path)))))
        except SyscallError as error:
            found.skip(file, error.message)
            continue
        size += len(documents[-1].text)
        if len(documents) > limits.DOCUMENTS or size > limits.FOLDER_CHARS:
            most = f"{limits.DOCUMENTS} texts or {limits.FOLDER_CHARS} characters"
            raise TooBig(f"{found.path} has more than {most}", "map one of its folders")
    skipped = [*_counted(found.omitted), *sorted(found.skipped)]
    if not documents:
        raise SyscallError(
            Errno.EINVAL, f"there is no text in {found.path}", "; ".join(skipped[:5])
        )
    more = len(skipped) - limits.SKIPPED
    return documents, [*skipped[: limits.SKIPPED], *([f"{more} more"] if more > 0 else [])]


def _counted(left: Counter[str]) -> Sequence[str]:
    links, hidden = left["links"], left["hidden"]
    counts = [f"{links} link{'s' * (links != 1)}"] if links else []
    return [*counts, *([f"{hidden} hidden"] if hidden else [])]


def _document(opener: Opener, path: Path, name: str) -> Document:
    descriptor, status = opener.file(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limits.DOCUMENT_BYTES:
            message = f"{path} has {status.st_size} bytes, {limits.DOCUMENT_BYTES} are allowed"
            raise TooBig(message, "split the file")
        data = file.read(limits.DOCUMENT_BYTES + 1)
    if len(data) > limits.DOCUMENT_BYTES:
        message = f"{path} has grown to more than {limits.DOCUMENT_BYTES} bytes"
        raise TooBig(message, "split the file")
    if b"\0" in data:
        raise SyscallError(Errno.EINVAL, f"{path} is not a text file: it has a zero byte")
    try:
        # Not utf-8-sig: Python imports that codec at its first use; this thread may lack access.
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        message = f"{path} is not valid UTF-8 at byte {error.start}"
        raise SyscallError(Errno.EINVAL, message, "convert it to UTF-8") from error
    if not text.strip():
        raise SyscallError(Errno.EINVAL, f"{path} is empty")
    return Document(name, text, status.st_mtime)
