"""P-06: the permissions of a fresh machine: authorisation.txt and its invariants."""

from itertools import product

from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.abi.values import Profile, UserRole
from llmasos.kernel.access.decisions import Policy
from tests.kernel import authorisation

RULES = ("user_add", "user_remove", "user_role", "key_create", "key_list", "key_revoke",
         "policy_edit", "policy_simulate", "policy_learn")  # fmt: skip
CHANGES = {"spawn", "generate", "fork", "wait", "kill", "nice"}  # in the reader's reach, if wrong


def cells() -> list[tuple[str, str]]:
    paths = {action: authorisation.objects(action) for action in TABLE}
    everywhere = sorted({path for own in paths.values() for path in own})
    return list(product(TABLE, [*everywhere, *authorisation.OTHER_OBJECTS]))


def allowed(policy: Policy, *subjects: str) -> set[tuple[str, str]]:
    """Every pair of call and object that these subjects are allowed."""
    return {cell for cell in cells() if policy.check(subjects, *cell).allowed}


def test_the_matrix_of_permissions_is_current() -> None:
    said = authorisation.FILE.read_text(encoding="utf-8")
    assert authorisation.text() == said, "run: make docs"


def test_the_table_covers_every_call_and_every_role() -> None:
    said = authorisation.FILE.read_text(encoding="utf-8")
    assert {line.split()[0] for line in said.splitlines() if line[:1].islower()} == set(TABLE)
    assert [one for (one,) in authorisation.USERS] == [f"u:{role}" for role in UserRole]
    assert [one for (one,) in authorisation.PROFILES] == [f"r:{profile}" for profile in Profile]


def test_each_role_of_a_user_may_what_the_next_lower_may() -> None:
    policy = authorisation.fresh()
    owner, operator, user, guest = (allowed(policy, f"u:{role}") for role in UserRole)
    assert guest < user < operator < owner


def test_a_profile_only_takes_away_from_what_its_user_may() -> None:
    policy = authorisation.fresh()
    users = {role: allowed(policy, f"u:{role}") for role in UserRole}
    caps = {profile: allowed(policy, f"r:{profile}") for profile in Profile}
    for role, profile in product(UserRole, Profile):
        assert allowed(policy, f"u:{role}", f"r:{profile}") == users[role] & caps[profile]


def test_nobody_but_the_owner_may_change_who_may_do_what() -> None:
    policy = authorisation.fresh()
    for action in RULES:
        (path,) = authorisation.objects(action)
        may = [role for role in UserRole if policy.check((f"u:{role}",), action, path).allowed]
        assert may == [UserRole.OWNER]
        capped = ("u:owner", "r:operator")
        assert not policy.check(capped, action, path).allowed


def test_only_the_owner_comes_as_an_owner() -> None:
    policy = authorisation.fresh()
    path = "/kernel/profile/owner"
    may = [role for role in UserRole if policy.check((f"u:{role}",), "hello", path).allowed]
    assert may == [UserRole.OWNER]


def test_a_reader_changes_nothing() -> None:
    policy = authorisation.fresh()
    may = {action for action, _ in allowed(policy, "r:reader")}
    assert not may & CHANGES
    assert {row.durability.value for row in TABLE.values() if row.name in may} == {"C"}


def test_whom_no_rule_names_may_nothing_and_lets_nobody_else() -> None:
    policy = authorisation.fresh()
    for stranger in ("u:mallory", "r:root"):
        assert allowed(policy, stranger) == set()
        assert allowed(policy, stranger, "r:owner") == set()
    assert allowed(policy, "pid:7") == allowed(policy, "app:thing") == set()
    assert allowed(policy) == set()
