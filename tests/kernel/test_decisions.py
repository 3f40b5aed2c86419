"""P-06: the gate: default deny; a deny beats an ask beats an allow; every subject has to allow.

Mistakes in rules stand in test_policy_rules.py, the file of the own rules in test_user_rules.py,
how Casbin can be misled in test_policy_hazards.py, and whether the index loses a row in
test_evaluator.py.
"""

from inspect import iscoroutinefunction
from itertools import permutations, product
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Effect
from llmasos.kernel.access.decisions import PROCESS_SEPARATOR, Policy
from llmasos.kernel.access.evaluator import Evaluator
from llmasos.kernel.access.rules import Mistake
from tests.kernel.gate import CAREFUL, NO_A, NO_B, OPERATOR, A, B, policy

ALLOW, ASK, DENY = Effect.ALLOW, Effect.ASK, Effect.DENY


# --- one subject ------------------------------------------------------------------------------
def test_what_no_rule_allows_is_denied(tmp_path: Path) -> None:
    gate = policy(tmp_path, "p, r:careful, shutdown, /kernel/x, allow\n")
    for subjects in (CAREFUL, ("u:mallory",), ("r:nothing",), ("",), ("*",), ()):
        decision = gate.check(subjects, "shutdown", "/kernel")
        assert (decision.effect, decision.allowed) == (DENY, False)
    assert gate.check(CAREFUL, "shutdown", "/kernel").rule == ""


def test_only_who_has_a_role_chooses_a_profile(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    assert gate.check(("u:alice",), "hello", "/kernel/profile/operator").allowed
    assert not gate.check(("u:bob",), "hello", "/kernel/profile/careful").allowed
    gate.set_members([("bob", "guest")])
    assert not gate.check(("u:bob",), "hello", "/kernel/profile/careful").allowed
    gate.load()
    assert gate.check(("u:bob",), "hello", "/kernel/profile/careful").allowed
    assert not gate.check(("u:bob",), "hello", "/kernel/profile/owner").allowed


def test_who_has_left_has_no_role_any_more(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    for roles in ([("bob", "user")], []):
        gate.set_members(roles)
        gate.load()
    assert not gate.check(("u:bob",), "ps", "/proc").allowed
    assert gate.check(("u:alice",), "ps", "/proc").allowed


def test_a_deny_beats_an_ask_beats_an_allow_in_any_order(tmp_path: Path) -> None:
    rows = [f"p, r:x, kill, /proc/*, {effect}" for effect in (ALLOW, ASK, DENY)]
    for count, expected in ((1, ALLOW), (2, ASK), (3, DENY)):
        for order in permutations(rows[:count]):
            gate = policy(tmp_path, "\n".join(order))
            decision = gate.check(("r:x",), "kill", "/proc/1")
            assert decision.effect is expected
            assert decision.rule.endswith(rows[count - 1])


def test_the_narrower_rule_does_not_win_the_stricter_one_does(tmp_path: Path) -> None:
    for wide, narrow in permutations((ALLOW, ASK, DENY), 2):
        rows = f"p, r:x, *, /*, {wide}\np, r:x, kill, /proc/1, {narrow}\n"
        effect = policy(tmp_path, rows).check(("r:x",), "kill", "/proc/1").effect
        assert effect is min(wide, narrow, key=[DENY, ASK, ALLOW].index)


def test_an_ask_reaches_whoever_has_the_role(tmp_path: Path) -> None:
    rules = "p, r:shy, mount, /dev/image/*, ask\ng, r:operator, r:shy\n"
    gate = policy(tmp_path, rules + "p, r:shy, mount, /dev/image/big, deny\n")
    asked = gate.check(OPERATOR, "mount", A)
    assert (asked.effect, asked.allowed, asked.subject) == (ASK, False, "r:operator")
    assert asked.rule == "policy.csv:1: p, r:shy, mount, /dev/image/*, ask"
    assert gate.check(("u:alice",), "mount", A).allowed
    assert gate.check(OPERATOR, "mount", "/dev/image/big").effect is DENY


def test_an_ask_alone_is_enough_to_be_asked_and_never_allows(tmp_path: Path) -> None:
    gate = policy(tmp_path, "p, r:x, ps, /proc, ask\np, app:tool, ps, /proc, ask\n")
    for subjects in (("r:x",), ("app:tool",), ("u:alice", "r:x"), (*CAREFUL, "app:tool")):
        decision = gate.check(subjects, "ps", "/proc/own")
        assert (decision.effect, decision.allowed) == (ASK, False)


def test_a_call_that_does_not_exist_is_denied_even_to_the_owner(tmp_path: Path) -> None:
    for action in ("format_disk", "*", "", "Spawn", "spawn "):
        decision = policy(tmp_path).check(("u:alice",), action, "/dev")
        assert not decision.allowed
        assert "is not a syscall" in decision.rule


# --- several subjects -------------------------------------------------------------------------
def test_the_strictest_subject_counts_in_any_order(tmp_path: Path) -> None:
    rows = [f"p, r:{effect}, kill, /proc/*, {effect}" for effect in (ALLOW, ASK, DENY)]
    gate = policy(tmp_path, "\n".join(rows))
    everybody = ("r:allow", "r:ask", "r:deny")
    for count, effect in ((1, ALLOW), (2, ASK), (3, DENY)):
        for subjects in permutations(everybody[:count]):
            decision = gate.check(subjects, "kill", "/proc/1")
            assert (decision.effect, decision.subject) == (effect, everybody[count - 1])


def test_who_has_no_rule_stops_everybody_that_it_comes_with(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    for stranger in ("u:mallory", "r:nothing"):
        for subjects in permutations((*CAREFUL, stranger)):
            decision = gate.check(subjects, "ps", "/proc/own")
            assert (decision.effect, decision.subject) == (DENY, stranger)


def test_a_deny_of_the_user_beats_what_the_profile_allows_in_any_order(tmp_path: Path) -> None:
    allow, deny = "p, r:careful, kill, /proc/*, allow", "p, u:alice, kill, /proc/1, deny"
    for lines in permutations((allow, deny)):
        gate = policy(tmp_path, "\n".join(lines))
        assert not gate.check(CAREFUL, "kill", "/proc/1").allowed
        assert gate.check(CAREFUL, "kill", "/proc/12").allowed


@pytest.mark.parametrize("who", ["pid", "app"])
def test_a_process_or_an_app_abstains_without_rules_and_only_restricts_with_rules(
    tmp_path: Path, who: str
) -> None:
    rows = f"p, {who}:7, kill, /proc/*, deny\np, {who}:8, unmount, /*, allow\n"
    gate = policy(tmp_path, rows + f"p, {who}:9, ps, /proc, ask\n")
    assert gate.check((*CAREFUL, f"{who}:7"), "ps", "/proc/own").allowed
    assert not gate.check((*CAREFUL, f"{who}:7"), "kill", "/proc/own/1").allowed
    assert gate.check((*CAREFUL, f"{who}:70"), "kill", "/proc/own/1").allowed
    assert not gate.check((*CAREFUL, f"{who}:8"), "unmount", A).allowed
    assert gate.check((*CAREFUL, f"{who}:9"), "ps", "/proc/own").effect is ASK
    assert not gate.check((f"{who}:1",), "ps", "/proc/own").allowed


@pytest.mark.parametrize("who", ["pid:7", "app:poet"])
def test_a_process_or_an_app_with_a_role_may_only_what_the_role_may(
    tmp_path: Path, who: str
) -> None:
    gate = policy(tmp_path, f"g, {who}, r:reader\n")
    assert gate.check((*OPERATOR, who), "ps", "/proc").allowed
    assert not gate.check((*OPERATOR, who), "kill", "/proc/1").allowed
    assert gate.check((*OPERATOR, f"{who}0"), "kill", "/proc/1").allowed


# --- what is cached ---------------------------------------------------------------------------
def test_two_objects_of_one_class_are_told_apart_in_both_orders(tmp_path: Path) -> None:
    for order in permutations((A, B)):
        gate = policy(tmp_path, NO_A)
        verdicts = {path: gate.check(CAREFUL, "spawn", path).allowed for path in order}
        assert verdicts == {A: False, B: True}


def test_callers_and_calls_are_told_apart_in_any_order(tmp_path: Path) -> None:
    asked = list(product((CAREFUL, OPERATOR, ("u:mallory",)), ("mount", "tokenize")))
    for order in permutations(asked):
        gate = policy(tmp_path)
        may = {one for one in order if gate.check(*one, A).allowed}
        assert may == {(CAREFUL, "tokenize"), (OPERATOR, "mount"), (OPERATOR, "tokenize")}


@pytest.mark.anyio
async def test_a_decision_is_made_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, evaluated = policy(tmp_path), list[str]()
    real = Evaluator.evaluate

    def evaluate(evaluator: Evaluator, subject: str, action: str, object_: str) -> object:
        evaluated.append(subject)
        return real(evaluator, subject, action, object_)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    for _ in range(3):
        gate.check(CAREFUL, "ps", "/proc")
    assert evaluated == [*CAREFUL]
    await gate.reload("")
    gate.check(CAREFUL, "ps", "/proc")
    assert evaluated == [*CAREFUL, *CAREFUL]


def test_the_cache_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DECISIONS", 10)
    gate = policy(tmp_path, "p, r:careful, kill, /proc/7, deny\n")
    for number in range(35):
        assert gate.check(CAREFUL, "kill", f"/proc/own/{number}").allowed is (number != 7)
        assert len(vars(gate)["_cache"]) <= 10


def test_an_evaluator_caches_no_subject_without_a_role(tmp_path: Path) -> None:
    gate = policy(tmp_path, "p, r:careful, kill, /proc/1, ask\n")
    for number in range(1, 50):
        gate.check(("u:alice", f"pid:{number}"), "kill", "/proc/1")
    cached = vars(gate.evaluator.roles)["_resolved"]
    assert "u:alice" in cached
    assert not [one for one in cached if one.startswith("pid:")]


# --- refusals ---------------------------------------------------------------------------------
def test_a_refusal_names_the_rule_and_the_command_that_explains_it(tmp_path: Path) -> None:
    gate = policy(tmp_path, NO_A)
    row = f"policy.csv:1: {NO_A.strip()}"
    assert gate.check(CAREFUL, "spawn", A).rule == row
    refusal = gate.refusal(CAREFUL, "spawn", A, 12)
    assert (refusal.errno, refusal.needs_approval) == (Errno.EACCES, False)
    assert refusal.message == f"u:alice as r:careful may not spawn {A}: {row}"
    assert "`llmasos policy explain 12`" in refusal.hint
    none = gate.refusal(CAREFUL, "mount", A, 13)
    assert none.message.endswith("no rule allows it for r:careful")
    assert "`llmasos policy explain 13`" in none.hint


def test_a_refusal_names_a_shipped_rule_by_its_file(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    allowed = gate.check(("u:alice",), "ps", "/proc")
    assert allowed.rule.startswith("owner.csv:")
    assert allowed.rule.endswith(": p, r:owner, *, /*, allow")


def test_a_refusal_at_the_door_names_the_profile(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    refusal = gate.refusal(("u:bob",), "hello", "/kernel/profile/owner", 12)
    assert refusal.message == "u:bob may not connect as owner: no rule allows it for u:bob"


def test_a_refusal_says_that_a_person_may_be_asked(tmp_path: Path) -> None:
    gate = policy(tmp_path, "p, r:careful, spawn, /dev/image/*, ask\n")
    refusal = gate.refusal(CAREFUL, "spawn", A, 12)
    assert refusal.needs_approval
    assert "needs a person's approval to spawn" in refusal.message


@pytest.mark.parametrize(
    "path",
    ["", " ", "/proc/\x1b[2J1", "/proc/\n/kernel", "/proc/\u202e1", "/проц", "/" + "x!" * 10_000],
)
def test_a_refusal_can_be_shown_whatever_the_object_holds(tmp_path: Path, path: str) -> None:
    refusal = policy(tmp_path).refusal(CAREFUL, "kill", path, 12)
    assert refusal.message.isascii()
    assert refusal.message.isprintable()
    assert len(refusal.message) < 400
    assert "is not a canonical path" in refusal.message


# --- a change ---------------------------------------------------------------------------------
def test_the_gate_never_waits() -> None:
    for asked in (Policy.check, Policy.decide, Policy.refusal, Evaluator.evaluate):
        assert not iscoroutinefunction(asked)


def test_a_bad_file_leaves_the_running_rules(tmp_path: Path) -> None:
    gate = policy(tmp_path, NO_A)
    (tmp_path / "policy.csv").write_text("nonsense")
    with pytest.raises(SyscallError):
        gate.load()
    assert gate.check(CAREFUL, "ps", "/proc/own").allowed
    assert not gate.check(CAREFUL, "spawn", A).allowed
    assert (gate.epoch, gate.text) == (1, NO_A)


@pytest.mark.anyio
async def test_a_bad_text_leaves_rules_epoch_and_copy(tmp_path: Path) -> None:
    gate = policy(tmp_path, NO_A)
    evaluator = gate.evaluator
    with pytest.raises(SyscallError, match="want"):
        await gate.reload(NO_B + "nonsense")
    assert (gate.evaluator, gate.epoch, gate.text) == (evaluator, 1, NO_A)
    assert (tmp_path / "memory.csv").read_text() == NO_A
    assert not gate.check(CAREFUL, "spawn", A).allowed
    assert gate.check(CAREFUL, "spawn", B).allowed


@pytest.mark.anyio
async def test_what_is_revoked_between_two_calls_is_refused_to_the_second(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    assert gate.check(CAREFUL, "spawn", A).allowed
    await gate.reload(NO_A)
    assert not gate.check(CAREFUL, "spawn", A).allowed
    await gate.reload("")
    assert gate.check(CAREFUL, "spawn", A).allowed
    assert gate.epoch == 3


def test_nothing_is_kept_of_a_process_that_is_gone(tmp_path: Path) -> None:
    """By any name, as the object or as one who asks; of 70 to 79 and of other processes it is."""
    gate = policy(tmp_path)
    before = gate.cache_sizes
    for subjects in (CAREFUL, (*CAREFUL, "app:x", "pid:7"), (*CAREFUL, "pid:5", "pid:7")):
        for object_ in ("/proc/7", "/proc/7/mem", "/proc/own/7/mem", "/proc/5", "/kernel", "/proc"):
            gate.check(subjects, "read_mem", object_)
    for object_ in ("/proc/70", "/proc/own/77/mem", "/proc/own/5"):
        gate.check(CAREFUL, "read_mem", object_)
    gate.forget(7)
    left = 6  # of CAREFUL alone: about 5, the kernel, all processes, 70, 77 and 5
    assert gate.cache_sizes == (before[0] + left, before[1] + 4)
    for pid in (5, 70, 77):
        gate.forget(pid)
    assert gate.cache_sizes == (before[0] + 2, before[1])


def test_a_load_forgets_what_was_cached(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    assert gate.check(CAREFUL, "spawn", A).allowed
    (tmp_path / "policy.csv").write_text(NO_A)
    gate.load()
    assert not gate.check(CAREFUL, "spawn", A).allowed
    assert gate.epoch == 2


@pytest.mark.anyio
async def test_rules_that_are_only_tried_change_nothing(tmp_path: Path) -> None:
    gate = policy(tmp_path)
    evaluator = await gate.evaluator_for(NO_A)
    for _ in range(2):
        assert gate.decide(evaluator, CAREFUL, "spawn", A).effect is DENY
        assert gate.check(CAREFUL, "spawn", A).allowed
        assert gate.decide(evaluator, CAREFUL, "spawn", B).effect is ALLOW
    assert (gate.epoch, gate.text) == (1, "")
    assert not (tmp_path / "memory.csv").exists()


@pytest.mark.anyio
async def test_traffic_passes_while_rules_are_read_and_sees_old_or_new_ones_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SLICE_S", 0.0)
    gate = policy(tmp_path, NO_A)
    many = "".join(f"p, app:a{n}, spawn, /dev/image/m{n}, allow\n" for n in range(10_000))
    seen: list[tuple[int, bool, bool]] = []

    def look() -> tuple[int, bool, bool]:
        a, b = (gate.check(CAREFUL, "spawn", path).allowed for path in (A, B))
        return gate.epoch, a, b

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.reload, NO_B + many)
        while gate.epoch == 1:
            seen.append(look())
            await anyio.lowlevel.checkpoint()
    assert len(seen) > 150  # both while rows are read and while they are put in order
    assert set(seen) == {(1, False, True)}
    assert look() == (2, True, False)


@pytest.mark.anyio
async def test_traffic_passes_while_mistakes_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SLICE_S", 0.0)
    gate, turns, told = policy(tmp_path), 0, list[Mistake]()

    async def look() -> None:
        told.extend(await gate.mistakes("nonsense\n" * 10_000))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        while not told:
            turns += 1
            await anyio.lowlevel.checkpoint()
    assert len(told) == 10_000
    assert turns > 70


@pytest.mark.anyio
async def test_users_who_come_while_rules_are_read_are_there_at_the_next_change(
    tmp_path: Path,
) -> None:
    gate = policy(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.reload, NO_A)
        await anyio.lowlevel.checkpoint()
        gate.set_members([("bob", "user")])
    assert not gate.check(("u:bob",), "ps", "/proc").allowed
    await gate.reload(gate.text)
    assert gate.check(("u:bob",), "ps", "/proc").allowed
    assert not gate.check(CAREFUL, "spawn", A).allowed


# --- processes of an application --------------------------------------------------------------
@pytest.mark.parametrize(
    ("row", "own", "other"),
    [
        ("/proc/7/mem", True, True),
        ("/proc/7/*", True, True),
        ("/proc/*", True, True),
        ("/*", True, True),
        ("/proc/own/7/mem", True, False),
        ("/proc/own/7/*", True, False),
        ("/proc/own/*", True, False),
        ("/proc/8/*", False, False),
        ("/proc/own/8/*", False, False),
        ("/proc/own", False, False),
        ("/proc", False, False),
    ],
)
def test_a_rule_about_a_process_holds_by_either_name_and_one_about_own_ones_for_these(
    tmp_path: Path, row: str, own: bool, other: bool
) -> None:
    gate = policy(tmp_path, f"p, r:x, read_mem, {row}, allow\n")
    assert gate.check(("r:x",), "read_mem", "/proc/own/7/mem").allowed is own
    assert gate.check(("r:x",), "read_mem", "/proc/7/mem").allowed is other
    gate = policy(tmp_path, f"p, r:open, read_mem, {row}, deny\n")
    assert gate.check(("r:open",), "read_mem", "/proc/own/7/mem").allowed is not own
    assert gate.check(("r:open",), "read_mem", "/proc/7/mem").allowed is not other


def test_only_processes_and_the_journal_have_own_parts(tmp_path: Path) -> None:
    gate = policy(tmp_path, "p, r:x, watch, /journal, allow\np, r:x, mmap, /files/x, allow\n")
    assert gate.check(("r:x",), "watch", "/journal/own").allowed
    assert not gate.check(("r:x",), "mmap", "/files/own/x").allowed
    assert not gate.check(("r:x",), "watch", "/journal/own/x").allowed


def test_a_process_that_acts_is_its_own_whoever_makes_it(tmp_path: Path) -> None:
    gate, path = policy(tmp_path), "/proc/7/generate"
    person, bounds = ("u:alice", "r:operator"), ("r:careful", "app:notes", "pid:7")
    assert gate.check((*person, PROCESS_SEPARATOR, *bounds), "generate", path).allowed
    assert not gate.check((*person, *bounds), "generate", path).allowed
    assert not gate.check(
        (*CAREFUL, PROCESS_SEPARATOR, "r:operator", "pid:7"), "generate", path
    ).allowed
    gate = policy(tmp_path, "p, pid:7, generate, /proc/own/*, deny\n")
    assert not gate.check((*person, PROCESS_SEPARATOR, *bounds), "generate", path).allowed
    assert (
        PROCESS_SEPARATOR
        not in gate.refusal((*person, PROCESS_SEPARATOR, *bounds), "generate", path, 3).message
    )
