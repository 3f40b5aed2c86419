"""How Casbin can be misled, each shown on Casbin itself, and that the gate is not.

What does not apply here, and why:
- results that differ between threads, a load beside a question, a lock that a watcher holds: one
  thread asks, rules are built apart and never changed, there is no watcher (test_decisions.py has
  the traffic during a change)
- globs, regular expressions, addresses and conditions of Casbin: no row of ours can name one
- domains: there is one machine; the filtered, fast and cached enforcers: the store is ours
- adapters for databases, of which one brings the stale `casbin` along: the file is read by us
"""

import importlib.metadata
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import casbin
import pytest
from casbin.persist.adapters.file_adapter import FileAdapter
from casbin.persist.adapters.string_adapter import StringAdapter

from llmasos.kernel import check
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.abi.values import Effect
from llmasos.kernel.access.decisions import model
from llmasos.kernel.access.evaluator import Evaluator, PlainEvaluator
from llmasos.kernel.access.rules import Rule
from tests.kernel.gate import CAREFUL, NO_A, A, chain, policy, restarted

ALLOW, ASK, DENY = Effect.ALLOW, Effect.ASK, Effect.DENY
WINS = "some(where (p.eft == allow)) && !some(where (p.eft == deny))"
KEYS = "g(r.sub, p.sub) && r.act == p.act && keyMatch(r.obj, p.obj)"
# What a person writes who has read the introduction.
MODEL = """
[request_definition]
r = sub, act, obj
[policy_definition]
p = sub, act, obj, eft
[role_definition]
g = _, _
[policy_effect]
e = {effect}
[matchers]
m = {matcher}
"""


def naive(rows: str, matcher: str = KEYS, effect: str = WINS) -> Any:
    parsed: Any = casbin.Model()
    parsed.load_model_from_text(MODEL.format(effect=effect, matcher=matcher))
    return casbin.Enforcer(parsed, StringAdapter(rows))


def build_evaluator(rules: Sequence[Rule], conf: str | None = None) -> Evaluator:
    made = Evaluator(conf or model(), rules)
    deque(made.build(), maxlen=0)
    return made


def rules(text: str) -> list[Rule]:
    """Without a look at what they say."""
    rows = [[field.strip() for field in row.split(",")] for row in text.splitlines()]
    return [Rule(kind, tuple(fields), "x.csv", n) for n, (kind, *fields) in enumerate(rows, 1)]


# --- effects ----------------------------------------------------------------------------------
@pytest.mark.parametrize("effect", ["Deny", "DENY", "denied", "no", "ask"])
def test_a_deny_that_is_spelled_otherwise_would_be_ignored(tmp_path: Path, effect: str) -> None:
    assert naive(f"p, a, read, /x/*, allow\np, a, read, /x/1, {effect}").enforce(
        "a", "read", "/x/1"
    )
    row = f"p, r:careful, spawn, {A}, {effect}"
    if effect != "ask":  # which Casbin does not know, and we do
        with pytest.raises(SyscallError, match=r"policy\.csv:1: effect"):
            policy(tmp_path, row)
    else:
        assert policy(tmp_path, row).check(CAREFUL, "spawn", A).effect is ASK


def test_a_comment_behind_a_deny_would_make_another_effect_of_it(tmp_path: Path) -> None:
    assert naive("p, a, read, /x/*, allow\np, a, read, /x, deny # no").enforce("a", "read", "/x/1")
    assert not policy(tmp_path, NO_A.replace("\n", " # no")).check(CAREFUL, "spawn", A).allowed


def test_without_an_allow_nothing_may_be_allowed(tmp_path: Path) -> None:
    rows = "p, a, read, /x, deny"
    assert naive(rows, effect="!some(where (p.eft == deny))").enforce("eve", "read", "/secret")
    one = "p, r:careful, shutdown, /kernel/x, deny"
    assert not policy(tmp_path, one).check(("r:careful",), "shutdown", "/kernel").allowed
    for question in (("r:eve", "ps", "/a"), ("r:x", "ps", "/b"), ("r:x", "kill", "/a")):
        assert build_evaluator(rules("p, r:x, ps, /a, ask")).evaluate(*question).effect is DENY
        assert PlainEvaluator(model(), rules("p, r:x, ps, /a, ask")).evaluate(*question) is DENY


@pytest.mark.parametrize("turn", [1, -1])
def test_the_order_of_rows_decides_nothing(turn: int) -> None:
    rows = ["p, r:x, ps, /a/*, allow", "p, r:x, ps, /a/b, deny"]
    priority = naive("\n".join(rows).replace("r:", ""), KEYS, "priority(p.eft) || deny")
    assert priority.enforce("x", "ps", "/a/b")  # the first one is reached first
    ruling = build_evaluator(rules("\n".join(rows[::turn]))).evaluate("r:x", "ps", "/a/b")
    assert ruling.effect is DENY
    assert (
        PlainEvaluator(model(), rules("\n".join(rows[::turn]))).evaluate("r:x", "ps", "/a/b")
        is DENY
    )


def test_the_effect_of_the_model_is_the_only_safe_one() -> None:
    (effect,) = re.findall(r"^e = (.*)$", model(), re.MULTILINE)
    assert effect == WINS


# --- how it is asked --------------------------------------------------------------------------
def test_an_answer_that_is_a_refusal_and_yet_true_is_no_answer_of_ours(tmp_path: Path) -> None:
    answer = naive("p, a, read, /x, allow").enforce_ex("eve", "read", "/x")
    assert answer[0] is False
    assert answer  # so `if enforcer.enforce_ex(...)` lets everybody in
    decision = policy(tmp_path).check(("u:mallory",), "ps", "/proc")
    assert decision.allowed is False
    with pytest.raises(TypeError, match="allowed"):
        bool(decision)


def test_a_disabled_evaluator_allows_nothing(tmp_path: Path) -> None:
    off = naive("p, a, read, /x, deny")
    off.enable_enforce(False)
    assert off.enforce("eve", "read", "/x")
    gate = policy(tmp_path, NO_A)
    vars(gate.evaluator)["_enforcer"].enable_enforce(False)
    for subjects, object_ in ((CAREFUL, A), (CAREFUL, "/dev/image/b"), (("u:alice",), "/x")):
        assert not gate.check(subjects, "spawn", object_).allowed


@pytest.mark.parametrize(
    ("matcher", "asked"),
    [
        ("nosuch(r.sub)", ("a", "read", "/x")), ("r.sub.level >= 2", ("a", "read", "/x")),
        ("keyMatch(r.obj)", ("a", "read", "/x")), ("r.obj > 1", ("a", "read", "/x")),
        ("r.obj", ("a", "read", "/x")), (KEYS, ("a", "read")), (KEYS, ("a", "read", 7)),
    ],
)  # fmt: skip
def test_a_question_that_raises_is_a_deny(
    tmp_path: Path, matcher: str, asked: tuple[object, ...]
) -> None:
    with pytest.raises(Exception, match=r"."):  # each of another kind, and none is a no
        naive("p, a, read, /x/*, allow", matcher).enforce(*asked)
    gate = policy(tmp_path)
    broken = matcher if matcher != KEYS else "under(r.obj)"
    made = build_evaluator(gate.evaluator.rules, re.sub(r"(?m)^m = .*$", f"m = {broken}", model()))
    for subjects in (("u:alice",), CAREFUL, ("u:alice", "pid:7")):
        decision = gate.decide(made, subjects, "ps", "/proc")
        assert decision.effect is DENY
        assert decision.rule.startswith("the rules could not be evaluated: ")


def test_a_row_that_is_cut_would_end_every_question(tmp_path: Path) -> None:
    """In Casbin; where it is cut within its last word, the deny is gone instead."""
    rows = "p, a, read, /x/*, allow\np, a, read, /x/1"
    with pytest.raises(RuntimeError, match="invalid policy size"):
        naive(rows).enforce("a", "read", "/x/1")
    assert naive(f"{rows}, den").enforce("a", "read", "/x/1")
    for cut in (NO_A[:-2], NO_A.removesuffix(", deny\n")):
        with pytest.raises(SyscallError, match=r"policy\.csv:1"):
            policy(tmp_path, cut)


class Visitor:
    """What a request could hold, if it held more than text."""

    def __init__(self) -> None:
        self.moved = False

    def move(self) -> bool:
        self.moved = True
        return True


def test_a_row_cannot_run_anything(tmp_path: Path) -> None:
    visitor = Visitor()
    assert naive("p, r.sub.move(), read, /x, allow", "eval(p.sub)").enforce(visitor, "read", "/x")
    assert visitor.moved
    assert "eval" not in model()
    for row in ("p, r.sub.move(), ps, /proc, allow", "p, r:x, ps, eval(r.sub.move()), allow"):
        with pytest.raises(SyscallError, match=r"policy\.csv:1: (subject|object)"):
            policy(tmp_path, row)


def test_a_refusal_is_not_logged_with_the_words_of_who_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = policy(tmp_path, NO_A)
    assert not gate.check(CAREFUL, "spawn", A).allowed
    assert not [record for record in caplog.records if record.name.startswith("casbin.enforcer")]


# --- objects ----------------------------------------------------------------------------------
def test_a_wildcard_within_a_path_would_swallow_the_rest_of_it(tmp_path: Path) -> None:
    assert naive("p, a, read, /mem/*/public, allow").enforce("a", "read", "/mem/eve/secret")
    with pytest.raises(SyscallError, match="no other \\*"):
        policy(tmp_path, "p, r:careful, read_mem, /proc/*/public, allow")


@pytest.mark.parametrize("path", ["/x/../secret", "/x/./1", "/x//1", "/x/1/..", "/x/\0", "/x/1\n"])
def test_another_spelling_of_a_path_is_denied_to_everybody(tmp_path: Path, path: str) -> None:
    assert naive("p, a, read, /x/*, allow").enforce("a", "read", path)
    gate = policy(tmp_path, "p, r:z, *, /*, allow")
    for subjects in (("u:alice",), ("r:owner",), ("r:z",)):
        decision = gate.check(subjects, "kill", path)
        assert not decision.allowed
        assert "is not a canonical path" in decision.rule


def test_another_spelling_of_a_path_would_miss_its_deny(tmp_path: Path) -> None:
    rows = "p, a, read, /*, allow\np, a, read, /x/*, deny"
    gate = policy(tmp_path, "p, u:alice, kill, /x/*, deny")
    assert not naive(rows).enforce("a", "read", "/x/1")
    assert not gate.check(("u:alice",), "kill", "/x/1").allowed
    for path in ("//x/1", "/./x/1", "/y/../x/1"):
        assert naive(rows).enforce("a", "read", path)
        assert not gate.check(("u:alice",), "kill", path).allowed


@pytest.mark.parametrize(
    ("function", "pattern", "path"),
    [
        ("keyMatch2", "/a.b", "/axb"), ("keyMatch2", "/a", "/a\n"), ("regexMatch", "/1", "/10/all"),
        ("regexMatch", "/a+", "/aa"),
    ],
)  # fmt: skip
def test_a_pattern_is_no_regular_expression(
    tmp_path: Path, function: str, pattern: str, path: str
) -> None:
    matcher = f"r.sub == p.sub && {function}(r.obj, p.obj)"
    assert naive(f"p, a, read, {pattern}, allow", matcher).enforce("a", "read", path)
    gate = policy(tmp_path, f"p, r:z, kill, {pattern}, allow")
    assert gate.check(("r:z",), "kill", pattern).allowed
    assert not gate.check(("r:z",), "kill", path).allowed


def test_a_deny_reaches_hidden_files(tmp_path: Path) -> None:
    matcher = "r.sub == p.sub && (r.obj == p.obj || globMatch(r.obj, p.obj))"
    rows = "p, a, read, /x/.hidden, allow\np, a, read, /x/*, deny"
    assert naive(rows, matcher).enforce("a", "read", "/x/.hidden")
    for deny in ("/x/*", "/*", "/x/y/*"):
        allowed = "p, r:z, kill, /x/y/.hidden, allow\np, r:z, kill, /x/y/.h/i, allow"
        gate = policy(tmp_path, f"{allowed}\np, r:z, kill, {deny}, deny")
        for path in ("/x/y/.hidden", "/x/y/.h/i"):
            assert gate.check(("r:z",), "kill", path).rule.startswith("policy.csv:3")


@pytest.mark.timeout(20)
def test_no_path_and_no_row_keeps_the_gate_busy_for_long(tmp_path: Path) -> None:
    """A regular expression that goes back and forth takes twice as long for each character more."""
    with pytest.raises(SyscallError, match="object"):
        policy(tmp_path, "p, r:z, kill, ^/(a+)+$, allow")
    gate = policy(tmp_path, "p, r:z, kill, /a/*, allow")
    for path in ("/" + "a" * 200_000 + "!", "/a" * 100_000 + "!", "/a" * 100_000 + "/"):
        assert not gate.check(("r:z",), "kill", path).allowed
        with pytest.raises(SyscallError, match="object"):
            policy(tmp_path, f"p, r:z, kill, {path}, allow")


def test_a_literal_of_the_model_would_be_rewritten() -> None:
    assert not naive("p, a, read, /x, allow", 'r.sub == "wow!x"').enforce("wow!x", "read", "/x")
    (matcher,) = re.findall(r"^m = (.*)$", model(), re.MULTILINE)
    for literal in re.findall(r'"(.*?)"', matcher):
        assert not re.search(r"!|&&|\|\||[rp]\.", literal)


# --- rows and files ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["p2", "P", "pp", "d"])
def test_a_row_of_an_unknown_kind_would_be_dropped(tmp_path: Path, kind: str) -> None:
    rows = f"p, a, read, /x/*, allow\n{kind}, a, read, /x/1, deny"
    assert naive(rows).enforce("a", "read", "/x/1")
    with pytest.raises(SyscallError, match=r"policy\.csv:1: .* want `p, subject"):
        policy(tmp_path, NO_A.replace("p", kind, 1))


def test_a_bracket_would_make_one_field_of_the_rest() -> None:
    assert naive("p, (a, read, /x, deny").get_policy() == [["(a, read, /x, deny"]]


def test_a_bracket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match=r"policy\.csv:1: subject '\(r:careful'"):
        policy(tmp_path, "p, (r:careful, spawn, /dev/image/*, deny")


def test_a_name_with_a_line_break_would_become_a_row(tmp_path: Path) -> None:
    name, file = "bob, r:guest\np, u:eve, *, /*, allow\ng, u:zoe", tmp_path / "casbin.csv"
    file.write_text("g, u:alice, r:owner")
    one: Any = casbin.Enforcer(naive("g, a, b").model, FileAdapter(str(file)))
    one.load_policy()
    one.add_grouping_policy(f"u:{name}", "r:guest")
    one.save_policy()
    one.load_policy()
    assert one.get_policy() == [["u:eve", "*", "/*", "allow"]]
    gate = policy(tmp_path)
    gate.set_members([(name, "guest")])
    gate.load()
    for subject in ("u:eve", "u:bob", "u:zoe"):
        assert not gate.check((subject,), "ps", "/proc").allowed
    for call in ("user_add", "user_remove"):
        with pytest.raises(SyscallError, match="name"):
            check.request(call, {"name": name})


def test_a_rule_that_was_added_is_still_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "casbin.csv"
    file.write_text("p, a, read, /x, allow")
    one: Any = casbin.Enforcer(naive("g, a, b").model, FileAdapter(str(file)))
    assert one.add_policy("a", "read", "/x", "deny")  # yes, it says
    assert file.read_text() == "p, a, read, /x, allow"
    gate = policy(tmp_path)
    gate.user_rules.write(NO_A)
    assert gate.user_rules.path.read_text() == NO_A
    gate.load()
    assert not gate.check(CAREFUL, "spawn", A).allowed


def test_a_file_that_is_empty_or_gone_allows_nothing_more(tmp_path: Path) -> None:
    """Casbin loads what is left of a file without a word."""
    assert not naive("# nothing").enforce("a", "read", "/x")
    path = policy(tmp_path, NO_A + "p, r:careful, shutdown, /kernel, allow\n").user_rules.path
    path.unlink()
    with pytest.raises(SyscallError, match="is missing"):
        restarted(tmp_path)
    path.write_text("")
    assert not restarted(tmp_path).check(CAREFUL, "shutdown", "/kernel").allowed


# --- roles ------------------------------------------------------------------------------------
@pytest.mark.parametrize("depth", [10, 11, 30])
def test_a_deny_at_the_end_of_a_long_chain_of_roles_would_be_lost(
    tmp_path: Path, depth: int
) -> None:
    rows = "\n".join([*chain(depth), f"p, r:l{depth}, ps, /proc, deny"])
    mine = f"{rows}\np, r:l0, ps, /proc, allow"
    assert naive(mine).enforce("r:l0", "ps", "/proc")
    assert PlainEvaluator(model(), rules(mine)).evaluate("r:l0", "ps", "/proc") is ALLOW
    with pytest.raises(SyscallError, match="nested deeper than 8"):
        policy(tmp_path, rows)
    assert (
        build_evaluator(rules(mine)).evaluate("r:l0", "ps", "/proc").effect is DENY
    )  # and were it loaded


def test_a_user_with_the_deepest_roles_that_are_loaded_loses_no_deny(tmp_path: Path) -> None:
    rows = ["g, u:bob, r:l0", *chain(8), "p, r:l8, ps, /*, deny", "p, u:bob, ps, /proc, allow"]
    assert not naive("\n".join(rows).replace("/*", "/proc")).enforce("u:bob", "ps", "/proc")
    assert PlainEvaluator(model(), rules("\n".join(rows))).evaluate("u:bob", "ps", "/proc") is DENY
    assert not policy(tmp_path, "\n".join(rows)).check(("u:bob",), "ps", "/proc").allowed


def test_a_cycle_of_roles_would_be_followed(tmp_path: Path) -> None:
    rows = "g, r:a, r:b\ng, r:b, r:a\n"
    assert naive(f"{rows}p, r:b, ps, /proc, allow").enforce("r:a", "ps", "/proc")
    with pytest.raises(SyscallError, match="contains itself"):
        policy(tmp_path, rows)


def test_a_user_who_is_named_like_a_role_would_have_it(tmp_path: Path) -> None:
    rows = "p, owner, read, /x, allow\ng, alice, owner"
    assert naive(rows).enforce("owner", "read", "/x")
    gate = policy(tmp_path, "p, r:bob, shutdown, /kernel, allow\n")
    gate.set_members([("operator", "guest"), ("bob", "guest")])
    gate.load()
    for name in ("owner", "operator", "bob"):
        assert not gate.check((f"u:{name}",), "shutdown", "/kernel").allowed
    for row in ("g, owner, r:guest", "p, owner, ps, /proc, allow", "g, u:eve, u:alice"):
        with pytest.raises(SyscallError, match=r"want (u:NAME|r:NAME)"):
            policy(tmp_path, row)


def test_names_that_were_asked_about_are_not_kept_for_ever(tmp_path: Path) -> None:
    one = naive("p, a, read, /x, allow")
    for number in range(20):
        one.enforce(f"pid:{number}", "read", "/x")
    assert len(one.rm_map["g"].all_roles) > 20
    gate = policy(tmp_path, "p, r:careful, kill, /proc/1, ask\n")
    for number in range(1, 20):
        gate.check((*CAREFUL, f"pid:{number}"), "kill", "/proc/1")
    enforcer = vars(gate.evaluator)["_enforcer"]
    assert not enforcer.rm_map["g"].all_roles
    assert {*vars(gate.evaluator.roles)["_resolved"]} <= {"u:alice"}


# --- two evaluators ---------------------------------------------------------------------------
def test_two_evaluators_share_nothing() -> None:
    """Rules that are only tried are asked in turn with those in force."""
    allow, deny = (build_evaluator(rules(f"p, r:x, ps, /a, {effect}")) for effect in (ALLOW, DENY))
    for _ in range(3):
        assert allow.evaluate("r:x", "ps", "/a").effect is ALLOW
        assert deny.evaluate("r:x", "ps", "/a").effect is DENY
        assert deny.evaluate("r:y", "ps", "/a").effect is DENY


# --- the package ------------------------------------------------------------------------------
def test_casbin_is_the_maintained_package_and_nothing_lies_over_it() -> None:
    version = importlib.metadata.version("pycasbin")
    assert tuple(map(int, version.split(".")[:2])) >= (2, 8)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("casbin")  # stale, and installs the same folder
    owners = importlib.metadata.packages_distributions()["casbin"]
    assert {*owners} == {"pycasbin"}
