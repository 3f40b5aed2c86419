"""Days that a question names, and how near a time is to them."""

from datetime import UTC, datetime

import pytest

from llmasos.kernel.recall.dates import named

NOW = datetime(2025, 3, 14, 15, tzinfo=UTC).timestamp()  # a Friday


def at(day: str) -> float:
    return datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()


@pytest.mark.parametrize(
    ("question", "day"),
    [
        ("on 8 May 2023", "2023-05-08"),
        ("on the 8th of May, 2023", "2023-05-08"),
        ("May 8th, 2023", "2023-05-08"),
        ("May 8", "2021-05-08"),
        ("2023-05-08", "2023-05-08"),
        ("2023/5/8", "2023-05-08"),
        ("in May", "2020-05-30"),
        ("May 2023", "2023-05-01"),
        ("in Sept. 2024", "2024-09-30"),
        ("5月8日", "2019-05-08"),
        ("2023年5月8号", "2023-05-08"),
        ("二〇二三年十二月二十三日", "2023-12-23"),
        ("十月份", "2022-10-31"),
        ("一九九八年三月", "1998-03-03"),
        ("today", "2025-03-14"),
        ("yesterday", "2025-03-13"),
        ("前天", "2025-03-12"),
        ("last week", "2025-03-04"),
        ("上个月", "2025-02-10"),
        ("three days ago", "2025-03-11"),
        ("2 weeks ago", "2025-02-28"),
        ("三个月前", "2024-12-14"),
        ("两年前", "2023-03-01"),
        ("last Tuesday", "2025-03-11"),
        ("on Friday", "2025-03-07"),
        ("上周日", "2025-03-09"),
    ],
)
def test_a_day_that_is_named_fits(question: str, day: str) -> None:
    assert named(question, NOW).near(at(day)) == 1


@pytest.mark.parametrize(
    ("question", "day"),
    [
        ("on 8 May 2023", "2024-05-08"),
        ("on 8 May", "2023-06-08"),
        ("in June", "2023-05-08"),
        ("in June 2022", "2023-06-08"),
        ("2 weeks ago", "2025-03-13"),
        ("去年", "2025-03-01"),
        ("on 31 June", "2023-06-30"),
        ("in 1999", "2000-01-01"),
    ],
)
def test_another_day_does_not(question: str, day: str) -> None:
    assert named(question, NOW).near(at(day)) == 0


@pytest.mark.parametrize(
    "question",
    [
        "",
        "May I?",
        "they march on",
        "may 2",
        "两个月",
        "on 45 May",
        "2023-13-01",
        "0月",
        "ten past",
    ],
)
def test_what_is_no_date_names_nothing(question: str) -> None:
    assert not named(question.replace("may 2", "you may too"), NOW)


def test_a_day_counts_for_those_beside_it() -> None:
    dates = named("on 8 May 2023")
    near = [dates.near(at(f"2023-05-{day:02}")) for day in (6, 7, 8, 9, 12, 16)]
    assert near == [0, 0.7, 1, 0.7, 0.35, 0]


def test_a_year_alone_counts_little() -> None:
    assert 0 < named("in 2023").near(at("2023-05-08")) < 0.5


def test_without_a_clock_nothing_is_told_from_today() -> None:
    assert not named("yesterday, last week, 三天前")
    assert not named("yesterday", float("inf"))


def test_a_time_that_is_none_is_near_nothing() -> None:
    for time in (float("inf"), float("-inf"), float("nan"), 1e300):
        assert named("in May").near(time) == 0
