"""Reads the texts of a file or a folder.

Listing and reading are two steps, so that the policy can be evaluated for each file between them.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..abi import limits
from ..abi.errors import Errno, SyscallError, TooBig
from ..abi.values import SkippedFile
from ..storage.filesystem import Access, Opener
from ..yield_point import YieldPoint

_EXAMPLES = 5  # skipped files in a hint
_TOO_LONG = f"has more than {limits.DOCUMENT_BYTES} bytes"


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
    skipped: list[SkippedFile] = field(default_factory=list[SkippedFile])
    links: int = 0
    hidden: int = 0  # files and folders

    def skip(self, file: Path, why: str, detail: str = "") -> None:
        name = printable(str(file.relative_to(self.path)))
        self.skipped.append(SkippedFile(name, printable(why), detail))


class _UnsuitableFile(SyscallError):
    """The content of a file cannot be mapped."""

    def __init__(
        self, errno: Errno, path: Path, why: str, detail: str = "", hint: str = ""
    ) -> None:
        super().__init__(errno, f"{path} {why}{detail}", hint)
        self.why, self.detail = why, detail


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
    found.hidden += len(folders) + len(names) - len(seen)
    folders.clear()
    for name in seen:
        try:
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
        except OSError:  # deleted meanwhile
            continue
        if stat.S_ISLNK(status.st_mode):
            found.links += 1
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


def read(access: Access, found: Listing) -> list[Document]:
    """Read the texts; other files of a folder are added to the skipped ones. Blocks.

    ENOENT, EACCES, E2BIG; EINVAL: not a text, or a link.
    """
    return access.run(lambda opener: _read(opener, found))


def _read(opener: Opener, found: Listing) -> list[Document]:
    if not found.is_folder:
        return [_document(opener, found.path, found.path.name)]
    documents: list[Document] = []
    size = 0
    for file in found.files:
        try:
            documents.append(_document(opener, file, printable(str(file.relative_to(found.path)))))
        except _UnsuitableFile as error:
            found.skip(file, error.why, error.detail)
            continue
        except SyscallError as error:
            found.skip(file, error.message.removeprefix(f"{file} "))
            continue
        size += len(documents[-1].text)
        if len(documents) > limits.DOCUMENTS or size > limits.FOLDER_CHARS:
            most = f"{limits.DOCUMENTS} texts or {limits.FOLDER_CHARS} characters"
            raise TooBig(f"{found.path} has more than {most}", "map one of its folders")
    found.skipped.sort(key=lambda one: one.name)
    if not documents:
        hint = f"links: {found.links}; hidden: {found.hidden}" + "".join(
            f"; {one.name}: {one.why}{one.detail}" for one in found.skipped[:_EXAMPLES]
        )
        raise SyscallError(Errno.EINVAL, f"there is no text in {found.path}", hint)
    return documents


def _document(opener: Opener, path: Path, name: str) -> Document:
    descriptor, status = opener.file(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limits.DOCUMENT_BYTES:
            raise _UnsuitableFile(
                Errno.E2BIG, path, _TOO_LONG, f": {status.st_size}", "split the file"
            )
        data = file.read(limits.DOCUMENT_BYTES + 1)
    if len(data) > limits.DOCUMENT_BYTES:  # it has grown
        raise _UnsuitableFile(Errno.E2BIG, path, _TOO_LONG, hint="split the file")
    if b"\0" in data:
        raise _UnsuitableFile(Errno.EINVAL, path, "is not a text file: it has a zero byte")
    try:
        # Not utf-8-sig: Python imports that codec at its first use; this thread may lack access.
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _UnsuitableFile(
            Errno.EINVAL, path, "is not valid UTF-8", f" at byte {error.start}",
            "convert it to UTF-8",
        ) from error  # fmt: skip
    if not text.strip():
        raise _UnsuitableFile(Errno.EINVAL, path, "is empty")
    return Document(name, text, status.st_mtime)
