"""Texts that are read from files: which ones a folder has, and what is in them.

Looking and reading are two steps, so that the policy is asked about each file between them.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import limits
from ..breath import Breath
from ..errors import Errno, SyscallError, TooBig
from ..filesystem import Access, Opener


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text, and how it is called."""

    name: str  # relative to what is mapped
    text: str
    time: float  # Unix seconds: when it was last changed


@dataclass(slots=True)
class Listing:
    """What is at a path."""

    path: Path
    files: list[Path]
    whole: bool  # a folder is mapped; False: one file
    skipped: list[str] = field(default_factory=list[str])  # with the reason
    left: Counter[str] = field(default_factory=Counter[str])  # links and hidden files

    def skip(self, file: Path, why: str) -> None:
        name = plain(str(file.relative_to(self.path)))
        self.skipped.append(f"{name}: {plain(why).removeprefix(f'{plain(str(file))} ')}")


def plain(name: str) -> str:
    """A file's name may be no UTF-8; what is told and stored has to be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def look(access: Access, path: Path) -> Listing:
    """The files at a path. ENOENT, EACCES, E2BIG. Blocks."""
    return access.run(lambda opener: _look(opener, path))


def _look(opener: Opener, path: Path) -> Listing:
    folder = opener.folder(path)
    if folder is None:
        return Listing(path, [path], whole=False)
    found = Listing(path, [], whole=True)
    try:
        for inside, folders, names, here in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
            _sort(opener, found, path / inside, (folders, names, here))
            if len(found.files) > limits.FOLDER_FILES:
                words = f"{path} has more than {limits.FOLDER_FILES} files"
                raise TooBig(words, "map a folder in it")
    finally:
        os.close(folder)
    return found


def _sort(
    opener: Opener, found: Listing, folder: Path, inside: tuple[list[str], list[str], int]
) -> None:
    """Take the files of a folder, and the folders that are to be looked at next."""
    folders, names, here = inside
    seen = sorted(name for name in (*folders, *names) if not name.startswith("."))
    found.left["hidden"] += len(folders) + len(names) - len(seen)
    folders.clear()
    for name in seen:
        try:
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
        except OSError:  # it is gone
            continue
        if stat.S_ISLNK(status.st_mode):
            found.left["links"] += 1
        elif opener.is_private(status):
            found.skip(folder / name, "belongs to LLMasOS or to the system")
        elif stat.S_ISDIR(status.st_mode):
            folders.append(name)
        else:
            found.files.append(folder / name)


async def permitted(found: Listing, why_not: Callable[[Path], str]) -> None:
    """Leave out of a folder what a caller may not map. One file alone was asked about before."""
    if not found.whole:
        return
    breath, kept = Breath(), list[Path]()
    for file in found.files:
        why = why_not(file)
        if why:
            found.skip(file, why)
        else:
            kept.append(file)
        await breath()
    found.files = kept


def read(access: Access, found: Listing) -> tuple[list[Document], list[str]]:
    """The texts, and what is none of a folder, with the reason. Blocks.

    ENOENT, EACCES, EINVAL for what is no text or a link, E2BIG.
    """
    return access.run(lambda opener: _read(opener, found))


def _read(opener: Opener, found: Listing) -> tuple[list[Document], list[str]]:
    if not found.whole:
        return [_document(opener, found.path, found.path.name)], []
    documents: list[Document] = []
    size = 0
    for file in found.files:
        try:
            documents.append(_document(opener, file, plain(str(file.relative_to(found.path)))))
        except SyscallError as error:
            found.skip(file, error.message)
            continue
        size += len(documents[-1].text)
        if len(documents) > limits.DOCUMENTS or size > limits.FOLDER_CHARS:
            most = f"{limits.DOCUMENTS} texts or {limits.FOLDER_CHARS} characters"
            raise TooBig(f"{found.path} has more than {most}", "map a folder in it")
    skipped = [*_counted(found.left), *sorted(found.skipped)]
    if not documents:
        raise SyscallError(
            Errno.EINVAL, f"there is no text in {found.path}", "; ".join(skipped[:5])
        )
    more = len(skipped) - limits.SKIPPED
    return documents, [*skipped[: limits.SKIPPED], *([f"{more} more"] if more > 0 else [])]


def _counted(left: Counter[str]) -> Sequence[str]:
    links, hidden = left["links"], left["hidden"]
    told = [f"{links} link{'s' * (links != 1)}"] if links else []
    return [*told, *([f"{hidden} hidden"] if hidden else [])]


def _document(opener: Opener, path: Path, name: str) -> Document:
    descriptor, status = opener.file(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limits.DOCUMENT_BYTES:
            words = f"{path} has {status.st_size} bytes, {limits.DOCUMENT_BYTES} are allowed"
            raise TooBig(words, "split it")
        data = file.read(limits.DOCUMENT_BYTES + 1)
    if len(data) > limits.DOCUMENT_BYTES:
        raise TooBig(f"{path} has grown over {limits.DOCUMENT_BYTES} bytes", "split it")
    if b"\0" in data:
        raise SyscallError(Errno.EINVAL, f"{path} is no text: it holds a zero byte")
    try:
        # Python loads utf-8-sig from a file at its first use, which this thread may not be able to.
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        words = f"{path} is not valid UTF-8 at byte {error.start}"
        raise SyscallError(Errno.EINVAL, words, "convert it to UTF-8") from error
    if not text.strip():
        raise SyscallError(Errno.EINVAL, f"{path} is empty")
    return Document(name, text, status.st_mtime)
