"""The results of a suite: figures, their bars, and every repeat.

Pure values. A figure is the median of its repeats; one without repeats is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Literal

Better = Literal["higher", "lower"]
NOISY_SHARE = 0.05  # of all CPU time, taken by other programs


@dataclass(frozen=True, slots=True)
class Bar:
    """The id of a figure and the bar that it has to reach. Without a bar it is only reported."""

    id: str
    what: str
    unit: str
    better: Better
    bar: float | None = None
    most: float | None = None  # the largest plausible value


@dataclass(frozen=True, slots=True)
class MissingFigure:
    """A program to compare with that is not installed."""

    peer: str
    install: str


@dataclass(frozen=True, slots=True)
class Take:
    """One run of a suite."""

    values: Mapping[str, Sequence[float]]  # every repeat, by the id of the figure
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    missing: Sequence[MissingFigure] = ()
    settings: Mapping[str, Mapping[str, object]] = field(  # by side
        default_factory=dict[str, Mapping[str, object]]
    )


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    bars: Sequence[Bar]
    take: Callable[[bool], Take]  # the argument: whether it is the tiny run
    timed: bool = True  # False: figures are counts, which other programs do not change


@dataclass(frozen=True, slots=True)
class Attempt:
    """A take and the CPU share of other programs; None where it is unknown."""

    take: Take
    foreign_share: float | None

    @property
    def noisy(self) -> bool:
        return self.foreign_share is not None and self.foreign_share > NOISY_SHARE


@dataclass(frozen=True, slots=True)
class Figure:
    id: str
    what: str
    value: float | None  # None: not measured
    unit: str
    better: Better
    bar: float | None
    most: float | None = None

    @property
    def good(self) -> bool:
        if self.bar is None:
            return True
        if self.value is None or (self.most is not None and self.value > self.most):
            return False
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar

    @property
    def wanted(self) -> str:
        """The bar as text; empty without one."""
        if self.bar is None:
            return ""
        sign = ">=" if self.better == "higher" else "<="
        return f"{sign} {self.bar:g}" if self.most is None else f"{self.bar:g} to {self.most:g}"


@dataclass(frozen=True, slots=True)
class ResultFile:
    """The result of one suite."""

    name: str
    date: str
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    model: str  # digest of the model file; empty: none
    tiny: bool
    noisy: bool
    figures: Sequence[Figure]
    missing: Sequence[MissingFigure]
    raw: Sequence[Attempt]
    engine: str = ""  # that computed it; empty: none, several, or the suite does not know

    @property
    def good(self) -> bool:
        return not self.missing and all(figure.good for figure in self.figures)

    @property
    def file_name(self) -> str:
        """The file that stores it: one for each engine."""
        return "-".join(filter(None, (self.name, self.engine))) + ".json"

    @classmethod
    def of(
        cls,
        suite: Suite,
        attempts: Sequence[Attempt],
        machine: Mapping[str, object],
        versions: Mapping[str, str],
        *,
        tiny: bool,
    ) -> "ResultFile":
        best = quietest(attempts)
        return cls(
            name=suite.name,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine,
            versions=versions,
            model=str(best.take.facts.get("model", "")),
            tiny=tiny,
            noisy=suite.timed and best.noisy,
            figures=[_figure(bar, best.take.values.get(bar.id, ())) for bar in suite.bars],
            missing=best.take.missing,
            raw=attempts,
        )


def quietest(attempts: Sequence[Attempt]) -> Attempt:
    return min(attempts, key=lambda attempt: attempt.foreign_share or 0.0)


def _figure(bar: Bar, repeats: Sequence[float]) -> Figure:
    value = float(f"{median(repeats):.4g}") if repeats else None
    return Figure(bar.id, bar.what, value, bar.unit, bar.better, bar.bar, bar.most)


def table(document: ResultFile) -> str:
    """The result as text."""
    on = f" on {document.engine}" if document.engine else ""
    lines = [f"{document.name}{on}  {document.date}" + ("  (tiny: no verdicts)" * document.tiny)]
    lines += [_line(figure, judged=not document.tiny) for figure in document.figures]
    lines += [f"  missing: {gap.peer}; install it by: {gap.install}" for gap in document.missing]
    best = quietest(document.raw)
    lines += [f"  {side}: {_listed(options)}" for side, options in best.take.settings.items()]
    share = "unknown" if best.foreign_share is None else f"{best.foreign_share:.1%}"
    noisy = document.noisy and not document.tiny
    lines.append(f"  other programs took {share} of the CPU" + (": NOISY" * noisy))
    return "\n".join(lines)


def _line(figure: Figure, *, judged: bool) -> str:
    value = "missing" if figure.value is None else f"{figure.value:g}"
    verdict = ""
    if figure.bar is not None and judged:
        verdict = f"{figure.wanted:12} {'ok' if figure.good else 'MISSED':6}"
    verdict = f" {verdict:19} " * judged
    return f"  {figure.id:40} {value:>10} {figure.unit:9}{verdict} {figure.what}"


def _listed(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
