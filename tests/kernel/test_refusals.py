"""Which refusals are listed: the first of a kind, so many a second, and of each user apart."""

from llmasos.kernel.abi import limits
from llmasos.kernel.storage.refusals import Refusals


def listed(refusals: Refusals, owner: str, subjects: int, seconds: int, per_s: int) -> int:
    """How many of different refusals are listed when they come at an even pace."""
    rows = 0
    for number in range(seconds * per_s):
        rows += refusals.admits(owner, f"u:{owner} app:{number % subjects}", number / per_s)
    return rows


def test_a_refusal_that_repeats_another_is_counted_under_its_number() -> None:
    refusals, question = Refusals(), ("u:eve", "nice", "/proc/1", "13 no rule")
    assert refusals.repeated("eve", question, 0.0) == 0
    refusals.wrote("eve", question, 7, 0.0)
    assert refusals.repeated("eve", question, limits.REFUSAL_SAME_S - 1) == 7
    assert refusals.repeated("eve", ("u:eve", "nice", "/proc/2", "13 no rule"), 1.0) == 0
    assert refusals.repeated("bob", question, 1.0) == 0
    assert refusals.take_counts() == [("eve", "u:eve", 1)]
    assert refusals.take_counts() == []
    assert refusals.repeated("eve", question, limits.REFUSAL_SAME_S) == 0  # listed again


def test_a_subject_gets_so_many_rows_at_once_and_so_many_a_second() -> None:
    rows = listed(Refusals(), "eve", subjects=1, seconds=100, per_s=1_000)
    per_s = limits.REFUSAL_ROWS / limits.REFUSAL_S
    assert limits.REFUSAL_ROWS + 99 * per_s <= rows <= limits.REFUSAL_ROWS + 100 * per_s


def test_many_subjects_of_a_user_share_the_rows_of_the_user() -> None:
    for subjects in (10, limits.REFUSAL_SUBJECTS - 1, 100_000):
        rows = listed(Refusals(), "eve", subjects, seconds=100, per_s=1_000)
        most = limits.USER_REFUSAL_ROWS * (1 + 100 / limits.REFUSAL_S)
        assert rows <= most, subjects


def test_who_is_refused_too_often_hurries_until_there_was_a_pause() -> None:
    refusals = Refusals()
    assert not any(refusals.must_pause("eve", 0.0) for _ in range(limits.USER_REFUSAL_ROWS))
    assert all(refusals.must_pause("eve", 0.0) for _ in range(100))
    assert not refusals.must_pause("bob", 0.0)
    assert not refusals.must_pause("eve", limits.REFUSAL_S)


def test_one_user_takes_no_rows_from_another() -> None:
    refusals = Refusals()
    listed(refusals, "eve", subjects=100_000, seconds=1, per_s=10_000)
    assert refusals.admits("bob", "u:bob", 1.0)
    counted = refusals.take_counts()
    assert {owner for owner, _, _ in counted} == {"eve"}
    assert len(counted) <= limits.REFUSAL_SUBJECTS + 1
    assert sum(many for _, _, many in counted) >= 10_000 - 2 * limits.USER_REFUSAL_ROWS


def test_the_oldest_of_many_different_refusals_is_forgotten() -> None:
    refusals = Refusals()
    questions = [(f"app:{number}", "ps", "/proc", "") for number in range(limits.REFUSALS_SAME + 1)]
    for number, question in enumerate(questions, 1):
        refusals.wrote("ann", question, number, 0.0)
    assert refusals.repeated("ann", questions[0], 1.0) == 0
    assert refusals.repeated("ann", questions[1], 1.0) == 2
    assert refusals.repeated("ann", questions[-1], 1.0) == len(questions)
