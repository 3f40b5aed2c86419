"""The gate: default deny, deny beats allow, and each trap of the library is closed."""

from itertools import pairwise
from pathlib import Path

import pytest

from llmasos.kernel.abi import TABLE
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.policy import Policy, under

CAREFUL = ("u:alice", "r:careful")
OPERATOR = ("u:alice", "r:operator")
MACHINE_WIDE = {"image_add", "image_remove", "image_tune", "mount", "unmount", "shutdown"}


def policy(tmp_path: Path, rules: str = "") -> Policy:
    own = tmp_path / "policy.csv"
    own.write_text(rules)
    return Policy(TABLE, "alice", own)


def objects(action: str) -> str:
    path = TABLE[action].object
    return path[: path.index("{")] + "7" + path[path.index("}") + 1 :] if "{" in path else path


def test_the_matrix_of_a_fresh_machine(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    for action in TABLE:
        if action == "hello":
            continue
        place = objects(action)
        assert gate.check(OPERATOR, action, place).allowed, action
        assert gate.check(CAREFUL, action, place).allowed is (action not in MACHINE_WIDE), action
        assert not gate.check(("u:mallory",), action, place).allowed
        assert not gate.check(("u:alice",), action, place).allowed


def test_only_the_owner_chooses_a_profile(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    assert gate.check(("u:alice",), "hello", "/kernel/profile/operator").allowed
    assert not gate.check(("u:bob",), "hello", "/kernel/profile/careful").allowed


def test_a_refusal_names_the_rule_or_the_line_to_add(tmp_path: Path) -> None:
    gate = policy(tmp_path, "p, r:careful, spawn, /dev/image/big, deny\n")
    denied = gate.check(CAREFUL, "spawn", "/dev/image/big")
    assert denied.rule == "policy.csv:1: p, r:careful, spawn, /dev/image/big, deny"
    refusal = gate.refusal(CAREFUL, "spawn", "/dev/image/big", denied.rule)
    assert refusal.errno is Errno.EACCES
    assert "policy.csv:1" in refusal.message
    none = gate.refusal(CAREFUL, "mount", "/dev/image/x", "")
    assert "p, r:careful, mount, /dev/image/x, allow" in none.hint


def test_a_deny_beats_every_allow_in_any_order(tmp_path: Path) -> None:
    allow, deny = "p, r:careful, kill, /proc/*, allow", "p, u:alice, kill, /proc/1, deny"
    for lines in ([allow, deny], [deny, allow]):
        gate = policy(tmp_path, "\n".join(lines))
        assert not gate.check(CAREFUL, "kill", "/proc/1").allowed
        assert gate.check(CAREFUL, "kill", "/proc/12").allowed


def test_two_objects_of_one_class_are_told_apart_in_both_orders(tmp_path: Path) -> None:
    rules = "p, r:careful, spawn, /dev/image/a, deny\n"
    for order in (("a", "b"), ("b", "a")):
        gate = policy(tmp_path, rules)
        verdicts = {x: gate.check(CAREFUL, "spawn", f"/dev/image/{x}").allowed for x in order}
        assert verdicts == {"a": False, "b": True}


def test_a_reload_forgets_what_was_cached(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    assert gate.check(CAREFUL, "spawn", "/dev/image/a").allowed
    (tmp_path / "policy.csv").write_text("p, r:careful, spawn, /dev/image/a, deny\n")
    gate.load()
    assert not gate.check(CAREFUL, "spawn", "/dev/image/a").allowed
    assert gate.epoch == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("p, r:careful, spawn, /dev/image/*, Deny", "effect"),
        ("p, r:careful, spawn, /dev/image/*, DENY", "effect"),
        ("p, r:careful, spawn, /dev/image/*", "want"),
        ("p2, r:careful, spawn, /dev/image/*, deny", "want"),
        ("p, r:careful, spwan, /dev/image/*, deny", "no syscall"),
        ("p, careful, spawn, /dev/image/*, deny", "subject"),
        ("p, r:care\u202eful, spawn, /dev/image/*, deny", "subject"),
        ("p, r:careful, spawn, /dev/*/big, deny", "object"),
        ("p, r:careful, spawn, dev/image, deny", "object"),
        ("p, r:careful, spawn, /dev//image, deny", "object"),
        ("g, u:alice, operator", "role"),
        ("g, u:alice", "want"),
        ("g, r:a, r:b\ng, r:b, r:a", "circle"),
    ],
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(SyscallError, match=why) as caught:
        policy(tmp_path, "# my rules\n" + line)
    assert caught.value.errno is Errno.EINVAL
    assert "policy.csv:" in caught.value.message


def test_roles_too_deep_for_the_library_are_refused(tmp_path: Path) -> None:
    names = [f"r:level{n}" for n in range(12)]
    with pytest.raises(SyscallError, match="deeper"):
        policy(tmp_path, "\n".join(f"g, {low}, {high}" for low, high in pairwise(names)))


def test_a_bad_file_leaves_the_running_rules(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    (tmp_path / "policy.csv").write_text("nonsense")
    with pytest.raises(SyscallError):
        gate.load()
    assert gate.check(CAREFUL, "ps", "/proc").allowed
    assert gate.epoch == 1


@pytest.mark.parametrize(
    "place",
    ["/proc/../kernel", "/proc//1", "/proc/1/", "proc/1", "", "/proc/\n", "/proc/./1", "/*"],
)
def test_a_path_that_is_not_canonical_is_denied(tmp_path: Path, place: str) -> None:
    assert not policy(tmp_path).check(OPERATOR, "kill", place).allowed


def test_a_user_named_like_a_role_gains_nothing(tmp_path: Path) -> None:
    assert not policy(tmp_path).check(("u:operator",), "shutdown", "/kernel").allowed


def test_a_judge_that_raises_is_a_deny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no attribute of that name")

    gate = policy(tmp_path)
    monkeypatch.setattr("casbin.Enforcer.enforce_ex", broken)
    decision = gate.check(CAREFUL, "ps", "/proc")
    assert not decision.allowed
    assert "could not be judged" in decision.rule


def test_under_means_below_and_nothing_else() -> None:
    assert under("/proc/1", "/proc/*")
    assert under("/proc/1/mem", "/proc/*")
    assert not under("/proc", "/proc/*")
    assert not under("/process", "/proc/*")
    assert not under("/proc/10", "/proc/1")
