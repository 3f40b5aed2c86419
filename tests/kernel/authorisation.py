"""Who may do what on a fresh machine, as a table that a person can read: authorisation.txt.

`make readme` writes it, or `python tests/kernel/authorisation.py`; test_authorisation.py asserts
that it is current. A change of the shipped rules shows in it cell by cell.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmasos.kernel.abi import TABLE
from llmasos.kernel.policy import Policy
from llmasos.kernel.values import Effect, Profile, UserRole

FILE = Path(__file__).with_name("authorisation.txt")
MARKS = {Effect.ALLOW: "+", Effect.ASK: "?", Effect.DENY: "-"}
SAMPLES = {
    "pid": "7",
    "model": "smollm2",
    "image": "smollm2",
    "device": "image/smollm2",
    "user": "bob",
    "id": "k4xq",
}
ABROAD = ("/kernel", "/proc/7", "/tool/shell", "/dev/../kernel")  # of other calls, or none at all
PAIRS = (
    (UserRole.OWNER, Profile.CAREFUL),
    (UserRole.OWNER, Profile.OPERATOR),
    (UserRole.OPERATOR, Profile.OPERATOR),
    (UserRole.USER, Profile.OPERATOR),
    (UserRole.USER, Profile.OPEN),
    (UserRole.GUEST, Profile.CAREFUL),
)
Subjects = tuple[str, ...]
Words = Sequence[str]
HEAD = """\
# Who may do what on a fresh machine:   + allowed   ? a person is asked   - refused   . never asked
#
# people: what a role of a user allows at all. profiles: what a profile leaves of that. as: both, a
# user above, the profile that it came with below. At hello the user alone is asked.
# own owner, opr operator, usr user, gst guest, car careful, rdr reader, wsp workspace, opn open
#
# /proc/own and /journal/own are of the caller's application: what it started, and those below.
#
# Written by `make readme`.
"""
SHORT = {
    "owner": "own", "operator": "opr", "user": "usr", "guest": "gst", "careful": "car",
    "reader": "rdr", "workspace": "wsp", "open": "opn",
}  # fmt: skip


def fresh() -> Policy:
    """A machine with a user of each role, named like the role."""
    policy = Policy(TABLE, "owner", FILE.with_name("no-such-policy.csv"))
    policy.members((role.value, role.value) for role in UserRole)
    policy.load()
    return policy


PEOPLE: list[Subjects] = [(f"u:{role}",) for role in UserRole]
PROFILES: list[Subjects] = [(f"r:{profile}",) for profile in Profile]
AS: list[Subjects] = [(f"u:{role}", f"r:{profile}") for role, profile in PAIRS]


def objects(action: str) -> list[str]:
    """The call's own objects."""
    if action == "hello":
        return [f"/kernel/profile/{profile}" for profile in Profile]
    if action == "mmap":
        return ["/proc/own/7/mem", "/proc/7/mem", "/files/home/alice/notes.md"]
    row = TABLE[action]
    paths = [re.sub("{(.*?)}", lambda field: _sample(action, field[1]), row.object)]
    if action == "spawn":  # below a process
        paths.append("/proc/7")
    own = [row.own] if row.own else []
    own += [path.replace("/proc/", "/proc/own/") for path in paths if path.startswith("/proc/")]
    return [*own, *paths]


def _sample(action: str, field: str) -> str:
    return SAMPLES.get(field) or ("bob" if action.startswith("user_") else "smollm2")


def abroad(action: str) -> list[str]:
    return [path for path in ABROAD if path not in objects(action)]


def mark(policy: Policy, subjects: Subjects, action: str, object_: str) -> str:
    if action == "hello":
        if subjects[0].startswith("r:"):
            return "."
        subjects = subjects[:1]
    return MARKS[policy.check(subjects, action, object_).effect]


def table(title: str, of: Callable[[str], list[str]]) -> Iterator[str]:
    policy = fresh()
    yield _line("", title, ["people"], ["profiles"], ["as"])
    above = [_short(subjects[0]) for subjects in AS]
    yield _line("", "", [], [], above)
    below = [[_short(subjects[-1]) for subjects in group] for group in (PEOPLE, PROFILES, AS)]
    yield _line("", "", *below)
    for action in TABLE:
        for number, path in enumerate(of(action)):
            marks = [
                [mark(policy, subjects, action, path) for subjects in group]
                for group in (PEOPLE, PROFILES, AS)
            ]
            yield _line("" if number else action, path, *marks)
    yield ""


def _short(subject: str) -> str:
    return SHORT[subject.partition(":")[2]]


def _line(call: str, path: str, people: Words, profiles: Words, both: Words) -> str:
    groups = ((people, len(PEOPLE)), (profiles, len(PROFILES)), (both, len(AS)))
    cells = (" ".join(f"{word:3}" for word in words).ljust(4 * size) for words, size in groups)
    return f"{call:16}{path:26}{'| '.join(cells)}".rstrip()


def text() -> str:
    own = table("the call's own object", objects)
    others = table("other objects", abroad)
    return "\n".join([HEAD, *own, *others])


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    sys.exit(0)
