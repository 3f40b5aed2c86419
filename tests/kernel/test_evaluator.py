"""Casbin gets fewer rows to try, and no answer changes by that.

Random rules and requests: against plain pycasbin over all rows, against twenty obvious lines, and
against themselves, since a change of rules or of a name may only ever move an answer one way.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.abi.values import Effect
from llmasos.kernel.access.decisions import Policy
from llmasos.kernel.access.evaluator import Evaluation, Evaluator, PlainEvaluator
from llmasos.kernel.access.rules import Rule, matching, under
from llmasos.userland.bench.gate import SUBJECTS, Request, compare, model
from llmasos.userland.bench.gate import question as ask
from llmasos.userland.bench.gate import small as some_rules

ALLOW, ASK, DENY = Effect.ALLOW, Effect.ASK, Effect.DENY
RIGHTS = (DENY, ASK, ALLOW).index  # how much an answer lets through
PROGRAMS = ("pid:7", "app:a", "app:b")  # which have no say before a rule names them
WORLDS, QUESTIONS = 100, 25
Rules = list[Rule]
Moves = Counter[tuple[Effect, Effect]]


class World(NamedTuple):
    chance: random.Random
    rules: Rules
    asked: list[Request]


@pytest.fixture
def gate(tmp_path: Path) -> Policy:
    return Policy(TABLE, "alice", tmp_path / "policy.csv")


def build_evaluator(rules: Sequence[Rule]) -> Evaluator:
    made = Evaluator(model(), rules)
    deque(made.build(), maxlen=0)
    return made


def row(chance: random.Random, about: Request, effect: Effect) -> Rule:
    """That may matter to a request."""
    subjects, action, object_ = about
    fields = (
        chance.choice((*subjects, chance.choice((*SUBJECTS, *PROGRAMS)))),
        chance.choice((action, "*")),
        chance.choice(matching(object_)),
        str(effect),
    )
    return Rule("p", fields, "more", 1)


def worlds(count: int = WORLDS) -> Iterator[World]:
    """Requests that mostly touch the rules, of people and of programs with rows of their own."""
    for seed in range(count):
        chance = random.Random(seed)
        rules, asked = some_rules(chance), list[Request]()
        for _ in range(QUESTIONS):
            subjects, action, object_ = ask(rules, chance)
            more = chance.sample(PROGRAMS, chance.choice((0, 0, 1)))
            asked.append(((*subjects, *more), action, object_))
        for one in chance.sample(asked, 3):
            about = ((chance.choice(PROGRAMS),), *one[1:])
            rules.append(row(chance, about, chance.choice((ALLOW, ASK, DENY))))
        yield World(chance, rules, asked)


def answers(gate: Policy, rules: Rules, asked: Sequence[Request]) -> list[Effect]:
    made = build_evaluator(rules)
    return [gate.decide(made, *one).effect for one in asked]


def moves(gate: Policy, change: Callable[[World], Rules]) -> Moves:
    """How often which answer became which by a change of the rules."""
    found = Moves()
    for world in worlds():
        before = answers(gate, world.rules, world.asked)
        found.update(zip(before, answers(gate, change(world), world.asked), strict=True))
    return found


def up(found: Moves) -> int:
    return sum(count for (old, new), count in found.items() if RIGHTS(new) > RIGHTS(old))


def down(found: Moves) -> int:
    return sum(count for (old, new), count in found.items() if RIGHTS(new) < RIGHTS(old))


def more(effect: Effect) -> Callable[[World], Rules]:
    def change(world: World) -> Rules:
        chance, rules, asked = world
        place = chance.randrange(len(rules) + 1)
        return [*rules[:place], row(chance, chance.choice(asked), effect), *rules[place:]]

    return change


def less(effect: Effect) -> Callable[[World], Rules]:
    def change(world: World) -> Rules:
        rows = [rule for rule in world.rules if rule.kind == "p" and rule.effect is effect]
        gone = world.chance.choice(rows) if rows else None
        return [rule for rule in world.rules if rule is not gone]

    return change


# --- against others ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "count", [4_000, pytest.param(102_400, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_plain_pycasbin_says_the_same_of_random_requests(count: int) -> None:
    wrong, shares = compare(count, 50 if count < 10_000 else 256, seed=count)
    assert wrong == 0
    assert shares.total() == count
    for effect in Effect:
        assert shares[effect] >= count // 10, shares


def matches(object_: str, pattern: str) -> bool:
    return object_ == pattern or (pattern.endswith("/*") and object_.startswith(pattern[:-1]))


def plainly(rules: Sequence[Rule], subject: str, action: str, object_: str) -> Effect:
    """The language as it is told to people."""
    who = {subject}
    for _ in rules:
        who |= {one.fields[1] for one in rules if one.kind == "g" and one.fields[0] in who}
    said = {
        one.effect
        for one in rules
        if one.kind == "p"
        and one.fields[0] in who
        and one.fields[1] in (action, "*")
        and matches(object_, one.fields[2])
    }
    return next((effect for effect in (DENY, ASK, ALLOW) if effect in said), DENY)


def test_the_language_is_what_people_are_told() -> None:
    for _, rules, asked in worlds(40):
        made, plain = build_evaluator(rules), PlainEvaluator(model(), rules)
        for subjects, action, object_ in asked:
            for subject in (*subjects, "pid:7", "app:a"):
                expected = plainly(rules, subject, action, object_)
                assert made.evaluate(subject, action, object_).effect is expected
                assert plain.evaluate(subject, action, object_) is expected


def test_casbin_alone_decides_which_rows_apply() -> None:
    """It may be given all of them, and nothing changes."""
    for _, rules, asked in worlds(40):
        made, given_all = build_evaluator(rules), build_evaluator(rules)
        every = [row for rows in vars(made)["_rows"].values() for row in rows]
        for (subject, *_), action, object_ in asked:
            given_all.__dict__["_rows"] = {(subject, "*"): every}
            effect = made.evaluate(subject, action, object_).effect
            assert given_all.evaluate(subject, action, object_).effect is effect


def test_an_evaluator_that_was_taken_apart_denies_everything() -> None:
    """Its parts have all that takes long to free: the rules, and the roles of each subject."""
    rules = [
        Rule("p", ("r:x", "*", "/*", "allow"), "x.csv", 1), Rule("g", ("u:a", "r:x"), "x.csv", 2),
    ]  # fmt: skip
    made = build_evaluator(rules)
    assert made.evaluate("u:a", "ps", "/proc").effect is ALLOW
    parts = made.take_apart()
    assert rules[0] in parts
    assert [rules[1]] in parts
    assert not made.roles.has_role("u:a")
    assert made.evaluate("u:a", "ps", "/proc") == Evaluation(DENY, None)


def test_all_rules_of_a_subject_for_a_syscall_are_one_row_for_each_effect() -> None:
    """So their number does not matter: Casbin's time is in the number of rows."""
    rules = [
        Rule("p", ("u:a", "spawn", f"/dev/image/m{number}", effect), "many", number)
        for number, effect in enumerate(("allow", "deny", "ask") * 3_333)
    ]
    made, tried = build_evaluator(rules), list[str]()

    def counted(object_: str, patterns: Container[str]) -> bool:
        tried.append(object_)
        return under(object_, patterns)

    vars(made)["_enforcer"].add_function("under", counted)
    for row in vars(made)["_rows"]["u:a", "spawn"]:
        row.patterns.add("/never", random)  # a module: an error, if Casbin visited all patterns
    for number, effect in (0, ALLOW), (1, DENY), (2, ASK), (9_998, ASK):
        ruling = made.evaluate("u:a", "spawn", f"/dev/image/m{number}")
        assert (ruling.effect, ruling.rule) == (effect, rules[number])
    assert len(tried) <= 4 * 2 * len(Effect)


def test_the_rule_that_is_named_is_a_reason_and_the_roles_lead_to_it() -> None:
    ways = 0
    for _, rules, asked in worlds():
        made = build_evaluator(rules)
        for subjects, action, object_ in asked:
            ruling = made.evaluate(subjects[0], action, object_)
            if ruling.rule is None:
                assert (ruling.effect, ruling.role_path) == (DENY, ())
                continue
            member, syscall, pattern, _ = ruling.rule.fields
            assert ruling.rule in rules
            assert ruling.rule.effect is ruling.effect
            assert syscall in (action, "*")
            assert matches(object_, pattern)
            steps = [step.fields for step in ruling.role_path]
            assert [subjects[0], *(role for _, role in steps)] == [
                *(who for who, _ in steps),
                member,
            ]
            assert all(step in rules for step in ruling.role_path)
            ways += len(steps) > 1
    assert ways > 100


# --- a change of the rules moves answers one way --------------------------------------------------
def test_one_more_deny_lets_nothing_more_through(gate: Policy) -> None:
    found = moves(gate, more(DENY))
    assert up(found) == 0
    assert down(found) > 50


def test_one_allow_less_lets_nothing_more_through(gate: Policy) -> None:
    found = moves(gate, less(ALLOW))
    assert up(found) == 0
    assert down(found) > 50


def test_one_more_ask_allows_nothing(gate: Policy) -> None:
    found = moves(gate, more(ASK))
    assert found[DENY, ALLOW] == found[ASK, ALLOW] == 0
    assert found[ALLOW, ASK] > 20  # it asks about what was allowed
    assert found[DENY, ASK] > 20  # and about what no rule spoke of


def test_one_ask_less_may_allow_or_deny_but_leaves_every_deny(gate: Policy) -> None:
    found = moves(gate, less(ASK))
    assert found[DENY, ALLOW] == found[DENY, ASK] == 0
    assert min(found[ASK, ALLOW], found[ASK, DENY]) > 10


@pytest.mark.parametrize("change", [more(ALLOW), less(DENY)])
def test_one_more_allow_or_one_deny_less_takes_nothing_away(
    gate: Policy, change: Callable[[World], Rules]
) -> None:
    found = moves(gate, change)
    assert down(found) == 0
    assert up(found) > 20


def test_the_order_of_rows_changes_nothing(gate: Policy) -> None:
    found = moves(gate, lambda world: world.chance.sample(world.rules, len(world.rules)))
    assert up(found) == down(found) == 0


# --- another name, another subject ------------------------------------------------------------
def renamed(rules: Rules, old: str, new: str) -> Rules:
    return [
        Rule(
            rule.kind,
            tuple(
                new if field == old and (rule.kind == "g" or place == 0) else field
                for place, field in enumerate(rule.fields)
            ),
            rule.file,
            rule.line,
        )
        for rule in rules
    ]


def test_another_name_everywhere_changes_nothing(gate: Policy) -> None:
    for chance, rules, asked in worlds():
        old = chance.choice((*SUBJECTS, *PROGRAMS))
        new = f"{old.partition(':')[0]}:999"
        after = [
            (tuple(new if one == old else one for one in subjects), action, object_)
            for subjects, action, object_ in asked
        ]
        assert answers(gate, renamed(rules, old, new), after) == answers(gate, rules, asked)


def test_another_name_in_the_rules_alone_denies_whoever_had_it(gate: Policy) -> None:
    hit = 0
    for chance, rules, asked in worlds():
        old = chance.choice(SUBJECTS)
        after = build_evaluator(renamed(rules, old, f"{old[0]}:fresh"))
        for one, before in zip(asked, answers(gate, rules, asked), strict=True):
            effect = gate.decide(after, *one).effect
            assert effect is (DENY if old in one[0] else before)
            hit += before is not DENY and old in one[0]
    assert hit > 50


def test_whoever_takes_another_name_may_nothing(gate: Policy) -> None:
    """Who is a user or a role: a program has no say under a name that no rule speaks of."""
    for _, rules, asked in worlds():
        made = build_evaluator(rules)
        for (subject, *others), action, object_ in asked:
            for fresh in (f"{subject}x", f"{subject}0", subject.upper(), f"{subject[0]}:fresh"):
                assert gate.decide(made, (fresh, *others), action, object_).effect is DENY


def test_whoever_is_more_may_no_more_in_any_order(gate: Policy) -> None:
    moved = Counter[bool]()
    for chance, rules, asked in worlds():
        made = build_evaluator(rules)
        for subjects, action, object_ in asked:
            others = chance.sample([*SUBJECTS, *PROGRAMS], 2)
            everybody = chance.sample([*subjects, *others], len(subjects) + 2)
            before = gate.decide(made, subjects, action, object_).effect
            after = gate.decide(made, everybody, action, object_).effect
            assert RIGHTS(after) <= RIGHTS(before)
            moved[after is not before] += 1
            again = gate.decide(made, [*reversed(everybody), *subjects], action, object_)
            assert again.effect is after
    assert min(moved.values()) > 100
