"""Rows of rules: what is read, and what is refused with its file and line before it can mislead."""

import random
from collections import deque
from pathlib import Path

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.access.rules import (
    ROLE_DEPTH,
    Mistake,
    Roles,
    Rule,
    canonical,
    matching,
    parse,
    under,
)
from tests.kernel.gate import CAREFUL, NO_A, NO_B, A, B, chain, policy

# To some programs, or to nobody, an end of a line; or nothing at all; or a turn of the direction.
HIDDEN = (
    "\0\b\v\f\x1b\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad\u061c\u200b\u200d\u200e\u2028\u2029\u202e\u2066"
    "\u3000\ue000\ufeff\U000e0041\r"
)


def mistakes(text: str) -> list[Mistake]:
    found: list[Mistake] = []
    deque(parse(text, "policy.csv", TABLE, found), maxlen=0)
    return found


# --- mistakes ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("p, r:careful, spawn, /dev/image/*, Deny", "effect 'Deny': want allow, ask or deny"),
        ("p, r:careful, spawn, /dev/image/*, DENY", "effect"),
        ("p, r:careful, spawn, /dev/image/*, ASK", "effect"),
        ("p, r:careful, spawn, /dev/image/*, denied", "effect"),
        ("p, r:careful, spawn, /dev/image/*, ", "effect"),
        ('p, r:careful, spawn, /dev/image/*, "deny"', "effect"),
        ("p, r:careful, spawn, /dev/image/*", "'p' with 3 fields: want"),
        ("p, r:careful, spawn, /dev/image/*, deny, deny", "'p' with 5 fields: want"),
        ("p, r:careful, spawn, /dev/image/*, deny,", "want"),
        ("p", "want"),
        ("p2, r:careful, spawn, /dev/image/*, deny", "want"),
        ("P, r:careful, spawn, /dev/image/*, deny", "want"),
        ("g2, r:careful, r:other", "want"),
        ("nonsense", "want"),
        (",,,,", "want"),
        ("p; r:careful; spawn; /dev/image/*; deny", "want"),
        ("p, r:careful, spwan, /dev/image/*, deny", "no syscall 'spwan'"),
        ("p, r:careful, Spawn, /dev/image/*, deny", "no syscall"),
        ("p, r:careful, spawn*, /dev/image/*, deny", "no syscall"),
        ("p, r:careful, spawn|kill, /dev/image/*, deny", "no syscall"),
        ("p, r:careful, , /dev/image/*, deny", "no syscall"),
        ("p, careful, spawn, /dev/image/*, deny", "subject 'careful': want u:NAME"),
        ("p, *, spawn, /dev/image/*, deny", "subject"),
        ("p, r:*, spawn, /dev/image/*, deny", "subject"),
        ("p, r:, spawn, /dev/image/*, deny", "subject"),
        ("p, R:careful, spawn, /dev/image/*, deny", "subject"),
        ("p, r:care ful, spawn, /dev/image/*, deny", "subject"),
        ("p, r:.careful, spawn, /dev/image/*, deny", "subject"),
        (f"p, r:{'x' * 65}, spawn, /dev/image/*, deny", "subject"),
        ("p, pid:007, spawn, /dev/image/*, deny", "subject"),
        ("p, pid:0, spawn, /dev/image/*, deny", "subject"),
        ("p, pid:x, spawn, /dev/image/*, deny", "subject"),
        ("p, x:careful, spawn, /dev/image/*, deny", "subject"),
        ("p, r:carefül, spawn, /dev/image/*, deny", "subject"),
        ("p, u:\u0430lice, spawn, /dev/image/*, deny", "subject"),  # a Cyrillic a
        ("p, r:careful, spawn, /dev/*/big, deny", "object '/dev/\\*/big': want .* no other \\*"),
        ("p, r:careful, spawn, /dev/image*, deny", "object"),
        ("p, r:careful, spawn, /dev/**, deny", "object"),
        ("p, r:careful, spawn, /dev/image/[ab], deny", "object"),
        ("p, r:careful, spawn, /dev/image/?, deny", "object"),
        ("p, r:careful, spawn, dev/image, deny", "object"),
        ("p, r:careful, spawn, /dev//image, deny", "object"),
        ("p, r:careful, spawn, /dev/../image, deny", "object"),
        ("p, r:careful, spawn, /dev/./image/*, deny", "object"),
        ("p, r:careful, spawn, /dev/image/, deny", "object"),
        ("p, r:careful, spawn, /dev/image/a b, deny", "object"),
        ("p, r:careful, spawn, /, deny", "object"),
        ("p, r:careful, spawn, *, deny", "object"),
        ("p, r:careful, spawn, , deny", "object"),
        ("p, r:careful, spawn, /dev/ïmage, deny", "object"),
        ("g, u:alice, operator", "role 'operator': want r:NAME"),
        ("g, u:alice, u:bob", "role"),  # else she would be bob
        ("g, u:alice, app:tool", "role"),
        ("g, u:alice, r:*", "role"),
        ("g, u:alice, r:x y", "role"),
        ("g, u:alice u:bob, r:x", "subject"),
        ("g, operator, r:owner", "subject"),  # a user who is named like a role
        ("g, u:alice", "'g' with 1 fields: want"),
        ("g, u:alice, r:x, r:y", "want"),
        ("g, r:a, r:b\ng, r:b, r:a", "contains itself"),
        ("g, r:a, r:a", "the role r:a contains itself"),
        ("g, r:a, r:b\ng, r:b, r:c\ng, r:c, r:d\ng, r:d, r:b", "the role r:b contains itself"),
        ("g, r:careful, r:operator", "contains itself"),  # with a shipped rule; either may be named
    ],
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(SyscallError, match=rf"(policy|operator).csv:\d+: .*{why}") as caught:
        policy(tmp_path, "# my rules\n" + line)
    assert caught.value.errno is Errno.EINVAL
    assert "llmasos policy lint" in caught.value.hint
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("line", ["", "  ", "# p, r:careful, nothing", "\t#", "\r"])
def test_the_line_that_is_told_is_the_line_of_an_editor(line: str) -> None:
    told = mistakes(f"{line}\np, r:x, ps, /proc, allow\r\n\nnonsense\n{line}\nmore\n")
    assert [str(one).split(":")[:2] for one in told] == [["policy.csv", "4"], ["policy.csv", "6"]]


@pytest.mark.parametrize("char", HIDDEN, ids=ascii)
def test_what_a_person_would_not_see_is_a_mistake_in_comments_too(char: str) -> None:
    rows = (
        f"# good rules{char}p, r:careful, *, /*, allow", f"p, r:x{char}y, ps, /proc, allow",
        f"{char}p, r:x, ps, /proc, allow", f"p, r:x, ps, /proc, deny # why{char}not",
        f"p, r:x, ps,{char}/proc, allow", f"{char} # nothing",
    )  # fmt: skip
    for row in rows:
        (mistake,) = mistakes(f"\n{row}\n# the end\n")
        assert (mistake.file, mistake.line) == ("policy.csv", 2)
        assert mistake.why == f"the character {char!a} is not printable"


def test_a_comment_that_other_programs_would_break_in_two_is_refused() -> None:
    breaks = [char for char in HIDDEN if len(f"a{char}b".splitlines()) == 2]
    assert {"\v", "\x85", "\u2028", "\r"} <= set(breaks)
    for char in breaks:
        text = f"# harmless{char}p, r:careful, shutdown, /kernel, allow\n"
        assert not mistakes("\n".join(text.splitlines()))  # who splits like that loads a right
        assert mistakes(text)


def test_a_refused_file_says_how_many_mistakes_there_are(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match=r"policy.csv:1: .* \(and 2 more\)"):
        policy(tmp_path, "a\nb\nc\n")


@pytest.mark.anyio
async def test_mistakes_are_told_row_by_row_and_change_nothing(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    told = await gate.mistakes("a\np, r:x, ps, /proc, allow\n\ng, r:y, r:y\n")
    assert [one.line for one in told] == [1, 4]
    [named] = await gate.mistakes("a", "/etc/new.csv")
    assert str(named).startswith("/etc/new.csv:1: 'a' with 0 fields")
    assert await gate.mistakes(NO_A) == []
    assert gate.epoch == 1


# --- what is read -----------------------------------------------------------------------------
def test_a_file_in_a_persons_style_is_read(tmp_path: Path) -> None:
    gate = policy(tmp_path, "\r\n\t# Größe\r\n  p,r:careful ,\tspawn,/dev/image/a,deny # why\r\n\n")
    assert gate.check(CAREFUL, "spawn", A).rule == f"policy.csv:3: {NO_A.strip()}"
    assert gate.check(CAREFUL, "spawn", B).allowed


@pytest.mark.parametrize(
    "row",
    [
        "p, u:a, *, /*, allow", "p, r:A.b_c+d-9, ps, /proc/*, ask",
        "p, app:x, ps, /a.b/c:d+e, deny",
        "p, pid:1, kill, /proc/1/mem, deny", "g, pid:7, r:x", "g, app:x, r:y", "g, u:a, r:b",
        "g, r:a, r:b", f"p, u:{'x' * 64}, ps, /..., deny",
    ],
)  # fmt: skip
def test_every_kind_of_row_is_read(row: str) -> None:
    assert mistakes(row) == []


def test_rows_may_stand_twice(tmp_path: Path) -> None:
    gate = policy(tmp_path, "g, u:bob, r:guest\np, r:guest, stat, /kernel, allow\n" * 2)
    assert gate.check(("u:bob",), "stat", "/kernel").allowed


# --- roles of roles ---------------------------------------------------------------------------
@pytest.mark.parametrize("turn", [1, -1])
def test_roles_may_be_nested_eight_deep_and_no_deeper(tmp_path: Path, turn: int) -> None:
    deny = f"p, r:l{ROLE_DEPTH}, ps, /proc, deny"
    gate = policy(tmp_path, "\n".join([*chain(ROLE_DEPTH)[::turn], deny]))
    assert gate.check(("r:l0",), "ps", "/proc").rule.endswith(deny)
    with pytest.raises(SyscallError, match=r"policy.csv:\d+: roles are nested deeper than 8\n"):
        policy(tmp_path, "\n".join(chain(ROLE_DEPTH + 1)[::turn]))


def test_the_longest_way_counts(tmp_path: Path) -> None:
    shortcut = f"g, r:l0, r:l{ROLE_DEPTH}"
    policy(tmp_path, "\n".join([shortcut, *chain(ROLE_DEPTH)]))
    for rows in permuted([shortcut, *chain(ROLE_DEPTH + 1)], 20):
        with pytest.raises(SyscallError, match="roles are nested deeper than 8"):
            policy(tmp_path, "\n".join(rows))


def permuted(rows: list[str], count: int) -> list[list[str]]:
    chance = random.Random(1)
    return [chance.sample(rows, len(rows)) for _ in range(count)]


def test_who_gets_a_role_makes_no_rule_a_mistake(tmp_path: Path) -> None:
    """Else a user could not be added, or worse not removed, before somebody mends the rules."""
    deny = f"p, r:l{ROLE_DEPTH}, ps, /proc, deny\ng, app:x, r:l0\ng, pid:7, r:l0\n"
    gate = policy(tmp_path, "\n".join([*chain(ROLE_DEPTH), deny]))
    gate.set_members([("bob", "l0"), ("eve", "user")])
    gate.load()
    for subject in ("u:bob", "app:x", "pid:7"):
        decision = gate.check((subject,), "ps", "/proc")
        assert decision.rule.endswith(f"p, r:l{ROLE_DEPTH}, ps, /proc, deny")
    assert gate.check(("u:eve",), "ps", "/proc").allowed


@pytest.mark.parametrize("turn", [1, -1])
def test_a_chain_of_a_hundred_thousand_roles_is_one_mistake(turn: int) -> None:
    roles, found = Roles(), list[Mistake]()
    for number in range(100_000)[::turn]:
        roles.add(Rule("g", (f"r:l{number}", f"r:l{number + 1}"), "policy.csv", number + 1))
    breaths = sum(1 for _ in roles.mistakes(found))
    assert [one.why for one in found] == ["roles are nested deeper than 8"]
    assert breaths > 100


def test_cycles_are_found_among_random_roles() -> None:
    """Against the plain reading: somebody who is above itself."""
    chance, cycles = random.Random(1), 0
    for _ in range(500):
        names = [f"r:{number}" for number in range(6)]
        rows = [(chance.choice(names), chance.choice(names)) for _ in range(chance.randrange(8))]
        roles, found = Roles(), list[Mistake]()
        for number, row in enumerate(rows):
            roles.add(Rule("g", row, "policy.csv", number))
        deque(roles.mistakes(found), maxlen=0)
        above = {name: {role for member, role in rows if member == name} for name in names}
        for _ in names:
            above = {name: own.union(*(above[one] for one in own)) for name, own in above.items()}
        cyclic = any(name in own for name, own in above.items())
        cycles += cyclic
        assert bool(found) is cyclic
    assert 100 < cycles < 400


def test_too_many_rules_are_refused_and_users_are_no_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = policy(tmp_path)
    shipped = [rule for rule in gate.evaluator.rules if rule.line]
    monkeypatch.setattr(limits, "RULES", len(shipped) + 1)
    gate = policy(tmp_path, NO_A)
    gate.set_members([(f"user{number}", "guest") for number in range(10)])
    gate.load()
    assert not gate.check(CAREFUL, "spawn", A).allowed
    with pytest.raises(SyscallError, match=r"\d+ rules; at most \d+ are allowed") as caught:
        policy(tmp_path, NO_A + NO_B)
    assert caught.value.errno is Errno.EINVAL


# --- objects ----------------------------------------------------------------------------------
def test_a_pattern_matches_what_is_below_it_and_nothing_else() -> None:
    assert matching("/proc/1/mem") == ("/proc/1/mem", "/*", "/proc/*", "/proc/1/*")
    assert under("/proc/1", ["/proc/*"])
    assert under("/proc/1/mem", ["/x", "/proc/*"])
    assert under("/proc", ["/*"])
    assert not under("/proc", ["/proc/*"])
    assert not under("/process", ["/proc/*"])
    assert not under("/proc/10", ["/proc/1"])
    assert not under("/proc", [])


def test_patterns_of_an_own_process_and_of_the_process_match_it() -> None:
    for own, other in (("/proc/own/7/mem", "/proc/7/mem"), ("/journal/own", "/journal")):
        assert set(matching(own)) == {own, *matching(other), *matching(own)}
        for pattern in (own, other, "/*"):
            assert under(own, [pattern])
        assert not under(other, [own])
    assert under("/proc/own/7", ["/proc/own/*"])
    assert not under("/proc/owned/7", ["/proc/7"])


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "//", "proc", "/proc/", "/proc//1", "//proc", "/proc/../kernel", "/proc/..",
        "/proc/./1", "/.", "/..", "/*", "/proc/*", "/proc/1 ", " /proc", "/proc/1\n", "\n/proc",
        "/proc\0", "/proc/\u202e1", "/procé", "/proc/\uff11", "/proc?x", "/proc#x", "/proc\\1",
        "/a%2Fb", "/proc,1", "C:/proc",
    ],
)  # fmt: skip
def test_a_path_with_a_second_spelling_is_not_canonical(path: str) -> None:
    assert not canonical(path)


@pytest.mark.parametrize(
    "path", ["/proc", "/proc/1/mem", "/a/.hidden", "/...", "/a..b/c.d+e:f_g-h"]
)
def test_an_ordinary_path_is_canonical(path: str) -> None:
    assert canonical(path)
