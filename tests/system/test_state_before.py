"""A state directory that an earlier version made is read: processes, pages, mail, users, marks.

`state_before/` has its databases as SQL, made by the commit before owners were opened on demand: a
process with a system prompt, a page under a key and one turn; its fork with a pinned page, a page
of its own, a message and niceness 5; a user. `+` stands for `/` in the names.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from llmasos.kernel.abi import values as v
from llmasos.kernel.access.identity import user
from llmasos.kernel.memory.schema import SCHEMA
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine

DUMPS = Path(__file__).parent / "state_before"
PARENT, CHILD = 1, 2


def connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for name, function in SCHEMA.functions.items():
        connection.create_function(name, 1, function, deterministic=True)
    connection.execute("PRAGMA writable_schema=ON")
    return connection


def statements(text: str) -> Iterator[str]:
    part = ""
    for line in text.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""


def restore(dump: Path, path: Path, owner: str) -> None:
    """Make a database from its dump. The tables of a virtual table must have their rows first."""
    text = dump.read_text().replace("'root',0,'owner'", f"'{owner}',{os.geteuid()},'owner'")
    text = text.replace("'root'", f"'{owner}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    skipped = ("BEGIN", "COMMIT", "PRAGMA writable")
    rows = [one for one in statements(text) if not one.strip().startswith(skipped)]
    virtual = [one for one in rows if one.startswith("INSERT INTO sqlite_master")]
    for some in ([one for one in rows if one not in virtual], virtual):
        with closing(connected(path)) as database:
            for one in some:
                database.execute(one)


def test_a_state_of_the_version_before_is_read(machine: Machine) -> None:
    owner = user(os.geteuid())
    for dump in DUMPS.glob("*.sql"):
        name = dump.stem.replace("+", "/").replace("owners/root", f"owners/{owner}")
        restore(dump, machine.paths.state / name, owner)
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket, profile=v.Profile.OWNER) as line:
        assert line.call("stat", v.Nothing(), v.Stat).damages == []
        listed = {one.pid: one for one in line.call("ps", v.Ps(), v.Processes).processes}
        assert set(listed) == {PARENT, CHILD}
        assert (listed[CHILD].nice, listed[CHILD].parent) == (5, PARENT)
        assert listed[PARENT].title == "The ship is called Aurora."
        pages = line.call("read_mem", v.ReadMem(CHILD), v.Pages).pages
        assert [one.text for one in pages[:3]] == [
            "You keep notes.", "The vault opens at seven.", "The ship is called Aurora.",
        ]  # fmt: skip
        assert pages[-1].text == "Only the child knows this."
        assert [one.number for one in pages if one.pinned] == [1]
        assert (pages[1].key, list(pages[1].labels)) == ("vault", ["secret"])
        found = line.call("search_mem", v.SearchMem(PARENT, "vault", way="words"), v.Hits)
        assert [hit.page.number for hit in found.hits][:1] == [1]
        mail = line.call("recv", v.Recv(CHILD, 5.0), v.Mail)
        assert (mail.body, mail.sender) == ("a letter", PARENT)
        users = line.call("user_list", v.Nothing(), v.Users).users
        assert "bob" in {one.name for one in users}
        checked = line.call("fsck", v.Fsck(), v.Checked)
        assert [one for one in checked.faults if "Chroma" not in one] == []
        asked = v.Generate(PARENT, [v.Message(v.Role.USER, "and now?")])
        for _ in line.stream("generate", asked, v.Delta, v.Generated):
            pass
        new = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        assert new > CHILD
    machine.stop()
