"""Folders that are mapped: their limits, and the files in them that no caller may open."""

from pathlib import Path

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.memory import documents
from llmasos.kernel.storage.filesystem import Access


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "private").mkdir(parents=True)
    for name in ("a", "b", "c", "private/key"):
        (folder / name).write_text(f"text of {name}")
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(SyscallError) as caught:
        documents.read(Access(), documents.list_files(Access(), folder))
    assert caught.value.errno is Errno.E2BIG
    return caught.value.message


def test_a_folder_has_a_limited_number_of_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FOLDER_FILES", 4)
    assert len(documents.list_files(Access(), folder).files) == 4
    monkeypatch.setattr(limits, "FOLDER_FILES", 3)
    assert refused(folder) == f"{folder} has more than 3 files"


@pytest.mark.parametrize(("limit", "least"), [("DOCUMENTS", 4), ("FOLDER_CHARS", 0)])
def test_the_texts_of_a_folder_are_limited(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, least: int
) -> None:
    sizes = [len(path.read_text()) for path in folder.rglob("*") if path.is_file()]
    least = sum(sizes) if limit == "FOLDER_CHARS" else least
    monkeypatch.setattr(limits, limit, least)
    found = documents.list_files(Access(), folder)
    assert len(documents.read(Access(), found)) == 4
    monkeypatch.setattr(limits, limit, least - 1)
    assert f"{folder} has more than" in refused(folder)


def test_a_private_folder_inside_is_skipped_with_the_reason(folder: Path) -> None:
    found = documents.list_files(Access((folder / "private",)), folder)
    assert sorted(path.name for path in found.files) == ["a", "b", "c"]
    assert [(one.name, one.why) for one in found.skipped] == [
        ("private", "belongs to LLMasOS or to the system")
    ]
