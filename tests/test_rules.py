"""The project holds itself: one table, one map, one host for each library, and no file too long."""

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
from llmasos.kernel.abi import COMMON_ERRNOS, TABLE
from llmasos.kernel.policy import Policy
from llmasos.kernel.syscalls import HANDLERS
from llmasos.userland.bench.rig import daemon
from tests import readme

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernel", "drivers", "userland")
FILE_LINES = 400
GUESTS = {
    "casbin", "chromadb", "httpx", "keyring", "llama_cpp", "llguidance", "mcp", "numpy",
    "pydantic", "sqlite3", "starlette", "textual",
}  # fmt: skip


def sources(*rooms: str) -> Iterator[Path]:
    for room in rooms:
        yield from sorted((ROOT / room).rglob("*.py"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads(text("pyproject.toml"))["project"]
    return found


# --- one table --------------------------------------------------------------------------------
def test_every_syscall_is_a_method_of_the_sdk() -> None:
    methods = {name for name in dir(AsyncLLMasOS) if not name.startswith("_")}
    assert set(TABLE) - {"hello"} <= methods  # hello is said by connecting


def test_every_syscall_has_a_handler_in_the_order_of_the_table() -> None:
    assert list(HANDLERS) == [name for name in TABLE if name != "hello"]  # hello is the trap's own


def test_the_readme_names_the_errors_of_every_call() -> None:
    said = " ".join(text("README.md").split())
    *most, last = (errno.name for errno in COMMON_ERRNOS)
    assert f"Any call may also end with {', '.join(most)} or {last}." in said


def test_the_shipped_rules_name_each_syscall_and_nothing_else() -> None:
    rules = [
        [word.strip() for word in row]
        for path in (ROOT / "policies").glob("*.csv")
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines())
        if row and not row[0].startswith("#")
    ]
    named = {rule[2] for rule in rules if rule[0] == "p"}
    assert named <= {*TABLE, "*"}
    of_owners = set(TABLE) - named  # who may everything
    others = {"user_list", "policy_list", "policy_check"}
    changing = {name for name in TABLE if name.startswith(("user_", "key_", "policy_"))}
    assert of_owners == changing - others


def test_who_no_rule_names_may_do_nothing(tmp_path: Path) -> None:
    """P-06: default deny; the refusal says what is missing and how to change it."""
    policy = Policy(TABLE, "alice", tmp_path / "policy.csv")
    for row in TABLE.values():
        path = re.sub("{.*?}", "1", row.object.replace("{source}", "/proc/1/mem"))
        decision = policy.check(("u:mallory",), row.name, path)
        assert not decision.allowed
        refusal = policy.refusal(("u:mallory",), row.name, path, 12)
        what = "come as 1" if row.name == "hello" else row.name
        assert f"may not {what}" in refusal.message
        assert "no rule allows it" in refusal.message
        assert "`llmasos policy explain 12`" in refusal.hint


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_generated_tables_are_current(page: str) -> None:
    assert readme.current(page) == text(page), "run: make readme"


def pages() -> Iterator[Path]:
    yield Path("README.md")
    for room in (*ROOMS, "benchmarks"):
        yield from (page.relative_to(ROOT) for page in sorted((ROOT / room).rglob("*.md")))


@pytest.mark.parametrize("page", [*pages()], ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    here = ROOT / page
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", text(str(page))):
        there = here.parent / target if target else here
        assert there.exists(), target
        headings = re.findall(r"(?m)^#+ (.*)$", there.read_text(encoding="utf-8"))
        slugs = {
            f"#{re.sub(r'[^a-z0-9 -]', '', one.lower()).replace(' ', '-')}" for one in headings
        }
        assert not anchor or anchor in slugs, anchor


def promises(path: Path) -> set[str]:
    """Those that a file of tests, or one of its tests, is about by its docstring."""
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


def test_every_promise_in_the_readme_has_a_test_that_names_it() -> None:
    promised = set(re.findall(r"\| (P-\d\d)", text("README.md")))
    named = {
        word
        for path in sources("tests")
        if path.name.startswith("test_")
        for word in promises(path)
    }
    assert promised
    assert promised <= named


def test_the_readme_says_the_two_commands() -> None:
    """P-01: one command runs an agent, one passes the tests."""
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    assert {"run", "test"} <= targets
    assert "make run" in text("README.md")
    assert "make test" in text("README.md")


# --- the house --------------------------------------------------------------------------------
@pytest.mark.parametrize("path", [*sources(*ROOMS)], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_outgrows_its_room(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", [*sources(*ROOMS)], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_answers(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said
    assert len(said.splitlines()) <= 16


@pytest.mark.parametrize("room", [*ROOMS, "policies"])
def test_the_import_name_is_made_of_links(room: str) -> None:
    link = ROOT / "src" / "llmasos" / room
    assert link.is_symlink(), "the checkout lost its links: git config core.symlinks true"
    assert os.readlink(link) == f"../../{room}"


def test_no_room_is_importable_at_the_top_level(tmp_path: Path) -> None:
    code = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, sys.argv[1:])))"
    subprocess.run([sys.executable, "-c", code, *ROOMS, "policies"], cwd=tmp_path, check=True)


def test_every_limit_is_used() -> None:
    tree = ast.parse(text("kernel/limits.py"))
    limits = {
        name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and name.id.isupper()
    }
    used = {
        node.attr
        for path in sources(*ROOMS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert limits - used == set()


# --- guests -----------------------------------------------------------------------------------
def modules_after(code: str, env: dict[str, str], cwd: Path) -> set[str]:
    """The top-level names that a fresh Python has loaded after the code."""
    show = "\nimport sys; print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    line = [sys.executable, "-c", code + show]
    done = subprocess.run(line, env=env, cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_importing_llmasos_loads_no_guest(tmp_path: Path) -> None:
    code = "import llmasos; llmasos.LLMasOS; llmasos.SyscallError"
    assert modules_after(code, dict(os.environ), tmp_path) & GUESTS == set()


def test_ps_loads_no_guest(tmp_path: Path) -> None:
    code = "from llmasos.userland.cli import main\nassert main(['ps']) == 0"
    with daemon(mount=False) as rig:
        loaded = modules_after(code, dict(rig.environment), tmp_path)
    assert loaded & GUESTS == set()


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
    """Each requirement's requirements too, as far as this machine has them."""
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
    rooms = (*ROOMS, "policies", "tests", "benchmarks", ".ci")
    files = [p for room in rooms for p in (ROOT / room).rglob("*") if p.is_file()]
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
    ".conf", ".csv", ".json", ".md", ".py", ".toml", ".txt", ".typed",
))  # fmt: skip
NAMED = frozenset((".ci/run", ".gitignore", "LICENSE", "Makefile"))
DATABASES = "tests/kernel/data/"  # stores of earlier versions, for the tests of migrations
FILE_BYTES = 512 * 1024


def _refused(path: str, content: bytes) -> str:
    """Why a file does not belong into the repository; "" if it does."""
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
def test_a_file_that_is_no_source_is_refused(path: str, content: bytes) -> None:
    assert _refused(path, content).startswith(path)
