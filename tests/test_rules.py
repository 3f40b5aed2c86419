"""Rules of the project: one syscall table, current documents, limits of files and imports."""

import ast
import csv
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmasos
from llmasos import AsyncLLMasOS
from llmasos.kernel.abi.table import COMMON_ERRNOS, TABLE
from llmasos.kernel.access.decisions import Policy
from llmasos.userland.bench.rig import daemon
from tests import docs
from tests.loaded import modules_after

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernel", "drivers", "userland")
FILE_LINES = 450  # a hint that a file has two subjects
README_LINES = 180
CHANGELOG_LINES = 70  # of the unreleased version
HEAVY_LIBRARIES = {
    "casbin", "chromadb", "httpx", "keyring", "llama_cpp", "llguidance", "mcp", "numpy",
    "pydantic", "sqlite3", "starlette", "textual",
}  # fmt: skip


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads(text("pyproject.toml"))["project"]
    return found


# --- the syscall table -------------------------------------------------------------------------
def test_every_syscall_is_a_method_of_the_sdk() -> None:
    methods = {name for name in dir(AsyncLLMasOS) if not name.startswith("_")}
    assert set(TABLE) - {"hello"} <= methods  # connecting sends hello


def test_the_documents_name_the_errors_of_every_call() -> None:
    page = " ".join(text("docs/syscalls.md").split())
    *most, last = (errno.name for errno in COMMON_ERRNOS)
    assert f"Any call may also end with {', '.join(most)} or {last}." in page


def test_the_shipped_rules_name_each_syscall_and_nothing_else() -> None:
    rules = [
        [word.strip() for word in row]
        for path in (ROOT / "policies").glob("*.csv")
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines())
        if row and not row[0].startswith("#")
    ]
    named = {rule[2] for rule in rules if rule[0] == "p"}
    assert named <= {*TABLE, "*"}
    of_owners = set(TABLE) - named  # allowed by the `*` rule only
    others = {"user_list", "policy_list", "policy_check"}
    changing = {name for name in TABLE if name.startswith(("user_", "key_", "policy_"))}
    assert of_owners == changing - others


def test_a_user_without_rules_is_denied_everything(tmp_path: Path) -> None:
    """P-06: default deny; the refusal says what is missing and how to change it."""
    policy = Policy(TABLE, "alice", tmp_path / "policy.csv")
    for row in TABLE.values():
        path = re.sub("{.*?}", "1", row.object.replace("{source}", "/proc/1/mem"))
        decision = policy.check(("u:mallory",), row.name, path)
        assert not decision.allowed
        refusal = policy.refusal(("u:mallory",), row.name, path, 12)
        what = "connect as 1" if row.name == "hello" else row.name
        assert f"may not {what}" in refusal.message
        assert "no rule allows it" in refusal.message
        assert "`llmasos policy explain 12`" in refusal.hint


@pytest.mark.parametrize("page", docs.PAGES)
def test_the_generated_tables_are_current(page: str) -> None:
    assert docs.current(page) == text(page), "run: make docs"


def pages() -> Iterator[Path]:
    yield from (Path("README.md"), Path("CHANGELOG.md"))
    for folder in (*PACKAGES, "docs", "benchmarks"):
        yield from (page.relative_to(ROOT) for page in sorted((ROOT / folder).rglob("*.md")))


@pytest.mark.parametrize("page", [*pages()], ids=str)
def test_links_between_pages_resolve(page: Path) -> None:
    here = ROOT / page
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", text(str(page))):
        there = here.parent / target if target else here
        assert there.exists(), target
        headings = re.findall(r"(?m)^#+ (.*)$", there.read_text(encoding="utf-8"))
        slugs = {
            f"#{re.sub(r'[^a-z0-9 -]', '', one.lower()).replace(' ', '-')}" for one in headings
        }
        assert not anchor or anchor in slugs, anchor


@pytest.mark.parametrize("page", [*pages()], ids=str)
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = "|".join((*PACKAGES, "docs", "tests", "policies", "benchmarks"))
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text(str(page)))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_map_names_every_file() -> None:
    page = text("docs/layout.md")
    folders = dict(re.findall(r"(?ms)^### (\S+)/$(.*?)(?=^### |\Z)", page))
    for path in sources(*PACKAGES, "policies"):
        section = folders[str(path.parent.relative_to(ROOT))]
        assert path.name == "__init__.py" or f"| `{path.name}` |" in section, path


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= README_LINES
    unreleased = re.split(r"(?m)^## ", text("CHANGELOG.md"))[1]
    assert len(unreleased.splitlines()) <= CHANGELOG_LINES


def promises(path: Path) -> set[str]:
    """The ids of guarantees in the docstrings of a test file and its tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    ]  # fmt: skip
    return {
        word
        for node in (tree, *tests)
        for word in re.findall(r"P-\d\d", ast.get_docstring(node) or "")
    }


def test_every_guarantee_has_a_test_that_names_it() -> None:
    promised = set(re.findall(r"\| (P-\d\d)", text("docs/promises.md")))
    named = {
        word
        for path in sources("tests")
        if path.name.startswith("test_")
        for word in promises(path)
    }
    assert promised
    assert promised <= named


def test_the_readme_names_the_two_commands() -> None:
    """P-01: one command runs an agent, one passes the tests."""
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    assert {"run", "test"} <= targets
    assert "make run" in text("README.md")
    assert "make test" in text("README.md")


# --- files and packages ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path", [*sources(*PACKAGES)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize(
    "path", [*sources(*PACKAGES)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_file_has_a_short_docstring(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert len(docstring.splitlines()) <= 16


def test_a_class_name_means_one_thing() -> None:
    """The SDK's Process is a handle of the kernel's; every other name has one class."""
    places: dict[str, set[str]] = {}
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert set(twice) == {"Process"}, twice


PRIVATE_WORDS = {
    "ear", "visitor", "house", "breath", "breathe", "voice", "voices", "likeness", "misfit",
    "burial", "buried", "errand", "hung",
}  # fmt: skip


@pytest.mark.parametrize(
    "path", [*sources(*PACKAGES)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_language_is_that_of_the_field(path: Path) -> None:
    """Words that only this project used: connection handler, peer, yield, rule and so on are the
    field's. Words inside identifiers count, too."""
    parts = re.findall(r"[A-Za-z][a-z]*", path.read_text(encoding="utf-8"))
    assert PRIVATE_WORDS.isdisjoint(word.lower() for word in parts)


@pytest.mark.parametrize("folder", [*PACKAGES, "policies"])
def test_the_import_name_is_made_of_links(folder: str) -> None:
    link = ROOT / "src" / "llmasos" / folder
    assert link.is_symlink(), "the checkout lost its links: git config core.symlinks true"
    assert os.readlink(link) == f"../../{folder}"


def test_no_package_is_importable_at_the_top_level(tmp_path: Path) -> None:
    code = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, sys.argv[1:])))"
    subprocess.run([sys.executable, "-c", code, *PACKAGES, "policies"], cwd=tmp_path, check=True)


def test_every_limit_is_used() -> None:
    tree = ast.parse(text("kernel/abi/limits.py"))
    limits = {
        name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and name.id.isupper()
    }
    used = {
        node.attr
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert limits - used == set()


# --- heavy libraries ---------------------------------------------------------------------------
def test_importing_llmasos_loads_no_heavy_library(tmp_path: Path) -> None:
    code = "import llmasos; llmasos.LLMasOS; llmasos.SyscallError"
    assert modules_after(code, folder=tmp_path) & HEAVY_LIBRARIES == set()


def test_ps_loads_no_heavy_library(tmp_path: Path) -> None:
    code = "from llmasos.userland.cli import main\nassert main(['ps']) == 0"
    with daemon(mount=False) as rig:
        loaded = modules_after(code, rig.environment, tmp_path)
    assert loaded & HEAVY_LIBRARIES == set()


def test_casbin_comes_from_pycasbin_alone() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("casbin")  # a stale fork that installs the same folder


# --- set-up -----------------------------------------------------------------------------------
def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in text("constraints.txt").splitlines())


def test_constraints_are_names_and_versions_only() -> None:
    line = r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.+]*"
    assert all(re.fullmatch(line, one) for one in text("constraints.txt").splitlines())


def test_constraints_cover_everything_that_is_installed_for_the_project() -> None:
    """Transitive requirements too, as far as they are installed."""
    todo = {canonical(re.split(r"[^\w.-]", one)[0]) for one in _requirements()}
    seen = set[str]()
    while todo - seen:
        name = (todo - seen).pop()
        seen.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        todo |= {canonical(re.split(r"[^\w.-]", one)[0]) for one in needs if ";" not in one}
    assert seen - set(pins()) == set()


def _requirements() -> list[str]:
    found = tomllib.loads(text("pyproject.toml"))["project"]
    extras: list[str] = [one for extra in found["optional-dependencies"].values() for one in extra]
    return [*found["dependencies"], *extras]


def test_the_version_is_the_same_everywhere() -> None:
    version = llmasos.__version__
    assert project()["version"] == version
    assert f"## [{version}]" in text("CHANGELOG.md")


def test_no_file_holds_an_address_of_a_registry_or_a_path_of_one_machine() -> None:
    hosts = ["py" + "pi.org", "python" + "hosted.org", "registry.npm" + "js", "deb." + "debian.org"]
    places = ["/wo" + "rk/", "/ro" + "ot/"]
    folders = (*PACKAGES, "policies", "docs", "tests", "benchmarks", ".ci")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    files += [p for p in ROOT.iterdir() if p.is_file() and not p.is_symlink() and p.name != ".git"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in files
        if "__pycache__" not in path.parts and not path.name.startswith(".coverage")
        for word in (*hosts, *places)
        if word.encode() in path.read_bytes()
    ]
    assert found == []


# --- only source ------------------------------------------------------------------------------
SUFFIXES = frozenset((
    ".conf", ".csv", ".json", ".md", ".py", ".sql", ".toml", ".txt", ".typed",
))  # fmt: skip
NAMED = frozenset((".ci/run", ".gitignore", "LICENSE", "Makefile"))
DATABASES = "tests/kernel/data/"  # stores of earlier versions, for the tests of migrations
FILE_BYTES = 512 * 1024


def _refused(path: str, content: bytes) -> str:
    """Why a file must not be in the repository; "" if it may."""
    if path.startswith(DATABASES) and path.endswith(".db"):
        return ""
    if path not in NAMED and Path(path).suffix not in SUFFIXES:
        return f"{path}: {Path(path).suffix or 'no suffix'} is not a kind of source"
    if len(content) > FILE_BYTES:
        return f"{path}: {len(content)} bytes, {FILE_BYTES} are allowed"
    try:
        content.decode()
    except UnicodeDecodeError:
        return f"{path}: not UTF-8 text"
    return f"{path}: holds NUL bytes" if b"\0" in content else ""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_only_source_text_and_small_data_are_in_the_repository() -> None:
    """An archive of a third-party tool was committed to the root once."""
    line = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(line, cwd=ROOT, capture_output=True, check=True).stdout
    paths = [path for path in listed.decode().split("\0") if path]
    found = [
        _refused(path, (ROOT / path).read_bytes())
        for path in paths
        if (ROOT / path).is_file() and not (ROOT / path).is_symlink()
    ]
    assert paths
    assert [reason for reason in found if reason] == []


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("tool-2.0.tar.gz", b"\x1f\x8b"),
        ("kernel/native.so", b"\x7fELF"),
        ("tests/data/words.txt", b"\xff\xfe"),
        ("tests/data/rows.json", b"[" + b"1," * FILE_BYTES + b"1]"),
        ("tests/data/nul.txt", b"a\0b"),
        ("core", b"text"),
    ],
)
def test_a_file_that_is_not_source_is_refused(path: str, content: bytes) -> None:
    assert _refused(path, content).startswith(path)
