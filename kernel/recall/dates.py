"""Finds the dates that a question names, and scores a page's time against them.

Dates, months and years in English and Chinese, and relative dates ("last week", "上个月"). Times
are UTC. The days next to a named day score too, because people report events a day later and live
in other time zones. Pure; owns nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

DAY_S = 86_400
_NAMES = [
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
]
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTHS = {name[:3]: number for number, name in enumerate(_NAMES, 1)}
_MONTH = f"(?:{'|'.join(_NAMES)}|(?:jan|feb|apr|jun|jul|aug|sept?|oct|nov|dec)\\.?)"
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_ISO = re.compile(rf"\b{_YEAR}[-/.](?P<month>\d\d?)[-/.](?P<day>\d\d?)\b")
_DAY_FIRST = re.compile(
    rf"\b(?P<day>\d\d?)(?:st|nd|rd|th)?(?: of)? (?P<name>{_MONTH})(?:,? {_YEAR})?\b", re.I
)
_NAME_FIRST = re.compile(
    rf"\b(?P<name>{_MONTH}|mar\.?) (?P<day>\d\d?)(?:st|nd|rd|th)?(?![\d:])(?:,? {_YEAR})?", re.I
)
_MONTH_ONLY = re.compile(rf"\b(?P<name>{_MONTH})(?:,? (?:of )?{_YEAR})?\b", re.I)
# May and March are also verbs: without a day or year they are months only after these words.
_IN = re.compile(
    r"(?:\b(?:in|of|since|until|till|during|by|last|next|this|early|mid|late|and|or|from|to|before"
    r"|after|around|through|between)[ -]|, )$",
    re.I,
)
_DIGITS = "〇一二三四五六七八九"
_NUMBER = r"(?:\d{1,2}|[一二三四五六七八九十]{1,3})"
_CHINESE = re.compile(
    rf"(?:(?P<year>(?:19|20)\d\d|[〇零一二三四五六七八九]{{4}})年)?"
    rf"(?P<month>{_NUMBER})月(?:份|(?P<day>{_NUMBER})[日号])?"
)
_YEAR_ONLY = re.compile(r"(?<![\d.-])(?:19|20)\d\d(?![\d.-])")
_AGO = re.compile(
    r"\b(\d{1,3}|a|an|one|two|three|four|five|six) (day|week|month|year)s? ago\b"
    r"|(\d{1,3}|[一二两三四五六七八九十]{1,3})(天|周|星期|个星期|个月|年)(?:之|以)?前",
    re.I,
)
_BACK = re.compile(
    r"\b(today|yesterday|this week|last week|this month|last month|this year|last year)\b"
    r"|(今天|昨天|前天|这周|本周|上周|上星期|这个月|本月|上个月|今年|去年)",
    re.I,
)
_WEEKDAY = re.compile(rf"\b(?:last|on|this) ({'|'.join(_DAYS)})\b|上周([一二三四五六日天])", re.I)
_WORDS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "两": 2}
_UNITS = {
    "day": 1, "天": 1, "week": 7, "周": 7, "星期": 7, "个星期": 7, "month": 30, "个月": 30,
    "year": 365, "年": 365,
}  # fmt: skip
# First and last day, in days before today.
_SPANS = {
    "today": (0, 0), "今天": (0, 0), "yesterday": (1, 1), "昨天": (1, 1), "前天": (2, 2),
    "this week": (6, 0), "这周": (6, 0), "本周": (6, 0), "last week": (13, 5), "上周": (13, 5),
    "上星期": (13, 5), "this month": (30, 0), "这个月": (30, 0), "本月": (30, 0),
    "last month": (61, 20), "上个月": (61, 20), "this year": (365, 0), "今年": (365, 0),
    "last year": (730, 330), "去年": (730, 330),
}  # fmt: skip
_NEXT_DAY = 0.7  # score of the days next to a named day
_YEAR_SCORE = 0.3  # low: a year has too many pages


@dataclass(frozen=True, slots=True)
class Dates:
    """The dates that a question names."""

    days: frozenset[tuple[int | None, int, int]] = frozenset()  # year if given, month, day
    months: frozenset[tuple[int | None, int]] = frozenset()
    years: frozenset[int] = frozenset()
    spans: frozenset[tuple[int, int]] = frozenset()  # ordinals of a first and a last day

    def __bool__(self) -> bool:
        return bool(self.days or self.months or self.years or self.spans)

    def near(self, time: float) -> float:
        """Score of a time in Unix seconds, 0 to 1: the best over all dates."""
        day = _date(time)
        if day is None:
            return 0.0
        ordinal = day.toordinal()
        found = max((_day_score(named, day) for named in self.days), default=0.0)
        if (None, day.month) in self.months or (day.year, day.month) in self.months:
            found = 1.0
        if any(first <= ordinal <= last for first, last in self.spans):
            found = 1.0
        return max(found, _YEAR_SCORE) if day.year in self.years else found


def named(text: str, now: float | None = None) -> Dates:
    """The dates that a text names. Relative dates are read only if `now` is given."""
    days = set[tuple[int | None, int, int]]()
    months = set[tuple[int | None, int]]()
    for year, month, day in _named(text):
        if not 1 <= month <= 12 or not 0 <= day <= 31:
            continue
        if day:
            days.add((year, month, day))
        else:
            months.add((year, month))
    years = {int(year) for year in _YEAR_ONLY.findall(text)} if not days | months else set[int]()
    today = _date(now) if now is not None else None
    spans = frozenset(_spans(text, today)) if today is not None else frozenset[tuple[int, int]]()
    return Dates(frozenset(days), frozenset(months), frozenset(years), spans)


def _date(time: float) -> date | None:
    try:
        return datetime.fromtimestamp(time, UTC).date()
    except (OverflowError, OSError, ValueError):
        return None


def _day_score(named: tuple[int | None, int, int], day: date) -> float:
    """1 on the day itself, _NEXT_DAY on the days next to it, half of that in the week after it."""
    year, month, number = named
    try:
        apart = (day - date(year or day.year, month, number)).days
    except ValueError:  # for example 31 April
        return 0.0
    if apart == 0:
        return 1.0
    return _NEXT_DAY if abs(apart) == 1 else _NEXT_DAY / 2 if 0 < apart <= 7 else 0.0


def _named(text: str) -> Iterator[tuple[int | None, int, int]]:
    """Year if given, month, and day or 0. A date is not read again as a month."""
    for form in (_ISO, _DAY_FIRST, _NAME_FIRST, _CHINESE):
        for found in form.finditer(text):
            yield _read(found.groupdict())
        text = form.sub(" ; ", text)
    for found in _MONTH_ONLY.finditer(text):
        verb = found["name"].lower() in ("may", "march")
        if not verb or (
            found["name"][0].isupper() and (found["year"] or _after_preposition(text, found))
        ):
            yield _read(found.groupdict())


def _after_preposition(text: str, found: re.Match[str]) -> bool:
    return _IN.search(text, max(0, found.start() - 10), found.start()) is not None


def _read(found: dict[str, str | None]) -> tuple[int | None, int, int]:
    name, year = found.get("name"), found.get("year")
    month = _MONTHS[name[:3].lower()] if name else _number(found.get("month") or "0")
    return _year(year) if year else None, month, _number(found.get("day") or "0")


def _year(text: str) -> int:
    digits = text.replace("零", _DIGITS[0])
    return int("".join(str(_DIGITS.index(one)) if one in _DIGITS else one for one in digits))


def _number(text: str) -> int:
    """Up to 99, in digits or in Chinese."""
    if text.isascii():
        return int(text)
    tens, ten, ones = text.rpartition("十")
    return (_DIGITS.find(tens or "一") * 10 if ten else 0) + (_DIGITS.find(ones) if ones else 0)


def _spans(text: str, today: date) -> Iterator[tuple[int, int]]:
    now = today.toordinal()
    for english, chinese in _BACK.findall(text):
        first, last = _SPANS[(english or chinese).lower()]
        yield now - first, now - last
    for count, unit, number, measure in _AGO.findall(text):
        days = _UNITS[(unit or measure).lower()]
        amount = (count or number).lower()
        many = _WORDS.get(amount) or _number(amount)
        slack = days // 2 + 1
        yield now - many * days - slack, now - many * days + slack
    for english, chinese in _WEEKDAY.findall(text):
        wanted = _DAYS.index(english.lower()) if english else "一二三四五六日天".index(chinese) % 7
        back = (today.weekday() - wanted - 1) % 7 + 1
        weekday = today - timedelta(days=back)
        yield weekday.toordinal(), weekday.toordinal() + 1
