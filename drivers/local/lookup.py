"""Prompt lookup: drafts the next tokens of an answer from earlier tokens of its conversation.

An answer that quotes, edits code or repeats keys goes on as an earlier part did. The engine
computes the drafted tokens in one step, and keeps those that it samples. Each prediction is
compared with the token that was sampled, drafted or not, so the rate of right ones is always known;
with the measured duration of steps it decides how many tokens to draft. Pure: no clock, no engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

ROWS = 16  # of a step with drafts, at most
CALLS = 4  # with more decoding calls nothing is drafted
_KEY = 3  # tokens that have to be the same
_COMPARED = 8  # earlier places of a key that are compared, the newest first
_LONG = 12  # tokens: a longer match predicts much better
_DECAY = 0.9  # of the rates, with each prediction
_RATES = (0.3, 0.8)  # first assumption: after a short match, after a long one
_REQUESTED_RATES = (0.7, 0.9)  # when the call requests lookup
_WEIGHT = 3.0  # of the first assumption, in predictions
_DELAY = 1.15  # by which drafts may lengthen a step that other calls share
_STEP_DECAY = 0.95  # of the measured steps, with each one
_ROW_SHARE = 0.05  # first assumption: a row takes this part of a step of one row
_ROW_WEIGHT = 8.0  # of this assumption, in squared rows


@dataclass(slots=True)
class HitRate:
    """The share of right predictions, recent ones first."""

    right: float
    all: float

    def record(self, *, right: bool) -> None:
        self.right = _DECAY * self.right + right
        self.all = _DECAY * self.all + 1

    @property
    def share(self) -> float:
        return self.right / self.all


class Lookup:
    """The tokens of one call, and where its answer may go on from."""

    def __init__(self, prompt: Sequence[int], *, requested: bool) -> None:
        self.requested = requested
        self._tokens = list(prompt)
        self._prompt = len(prompt)
        self._seen = 0  # tokens that are indexed
        self._newest: dict[tuple[int, ...], int] = {}  # the end of a key: its last token
        self._earlier: list[int] = []  # of each token: the one before that ends the same key, or -1
        self._next: int | None = None  # the position of the predicted token
        self._matched = 0  # tokens before it that are the same as the last ones
        rates = _REQUESTED_RATES if requested else _RATES
        self._rates = [HitRate(_WEIGHT * rate, _WEIGHT) for rate in rates]

    def add(self, token: int) -> None:
        """Append a token of the answer."""
        self._tokens.append(token)

    def draft(self, most: int) -> Sequence[int]:
        """The predicted next tokens, at most `most`."""
        self._update()
        if self._next is None:
            return ()
        period = len(self._tokens) - self._next  # what repeats itself goes on to do so
        return [self._tokens[self._next + at % period] for at in range(most)]

    def chances(self) -> Iterator[float]:
        """The probability that the draft is right up to each of its tokens, without end."""
        self._update()
        chance, matched = 1.0 if self._next is not None else 0.0, self._matched
        while True:
            chance *= self._rate(matched).share
            matched += 1
            yield chance

    def _rate(self, matched: int) -> HitRate:
        return self._rates[matched >= _LONG]

    def _update(self) -> None:
        """Index the new tokens, and compare those of the answer with the predictions."""
        for at in range(self._seen, len(self._tokens)):
            if at >= self._prompt:
                self._compare(self._tokens[at])
            self._index(at)
            if self._next is None and at >= self._prompt - 1:
                self._find(at)
        self._seen = len(self._tokens)

    def _compare(self, token: int) -> None:
        if self._next is None:
            return
        right = self._tokens[self._next] == token
        self._rate(self._matched).record(right=right)
        if right:
            self._next, self._matched = self._next + 1, self._matched + 1
        else:
            self._next = None

    def _index(self, at: int) -> None:
        key = tuple(self._tokens[max(0, at - _KEY + 1) : at + 1])
        self._earlier.append(self._newest.get(key, -1))
        self._newest[key] = at

    def _find(self, last: int) -> None:
        """Set the place after the longest match of the last tokens; the newest of several."""
        self._matched, place = _KEY - 1, self._earlier[last]
        for _ in range(_COMPARED):
            if place < 0:
                return
            matched = self._same(place, last)
            if matched > self._matched:
                self._next, self._matched = place + 1, matched
            place = self._earlier[place]

    def _same(self, place: int, last: int) -> int:
        """How many tokens up to both positions are the same; at most _LONG."""
        count = 0
        while (
            count <= min(place, _LONG - 1)
            and self._tokens[place - count] == (self._tokens[last - count])
        ):
            count += 1
        return count


@dataclass(slots=True)
class StepTimes:
    """The duration of a step by its rows: a line through the measured ones, recent ones first."""

    _weight: float = 0.0
    _rows: float = 0.0  # weighted sums
    _squares: float = 0.0
    _seconds: float = 0.0
    _products: float = 0.0
    _line: tuple[float, float] = field(default=(1.0, _ROW_SHARE))  # of one row, of each more

    def learn(self, rows: int, took_s: float) -> None:
        """Record a step without prompt tokens."""
        self._weight = _STEP_DECAY * self._weight + 1
        self._rows = _STEP_DECAY * self._rows + rows
        self._squares = _STEP_DECAY * self._squares + rows * rows
        self._seconds = _STEP_DECAY * self._seconds + took_s
        self._products = _STEP_DECAY * self._products + rows * took_s
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        spread = self._squares - mean_rows * self._rows
        slope = self._products - mean_rows * self._seconds
        assumed = _ROW_SHARE * mean_s / (1 + _ROW_SHARE * (mean_rows - 1))
        row_s = max(0.0, (slope + _ROW_WEIGHT * assumed) / (spread + _ROW_WEIGHT))
        first_s = mean_s - row_s * (mean_rows - 1)
        self._line = max(first_s, row_s), row_s

    def step_s(self, rows: int) -> float:
        """The expected duration; before the first measurement in steps of one row."""
        first_s, row_s = self._line
        return first_s + row_s * (rows - 1)


def draft_lengths(lookups: Sequence[Lookup], rows: int, most: int, times: StepTimes) -> list[int]:
    """Tokens to draft for each call, so that the step computes most tokens a second.

    `rows`: of the step without drafts; `most`: with them. Where the step has rows of other calls,
    drafts lengthen it by little.
    """
    lengths = [0] * len(lookups)
    chances = [lookup.chances() for lookup in lookups]
    gains = [next(chance) for chance in chances]
    expected, limit_s = float(rows), times.step_s(rows) * (_DELAY if rows > 1 else ROWS)
    for count in range(rows, most if lookups else rows):
        best = max(range(len(gains)), key=gains.__getitem__)
        now_s, then_s = times.step_s(count), times.step_s(count + 1)
        if then_s > limit_s or (expected + gains[best]) / then_s <= expected / now_s:
            break
        expected += gains[best]
        lengths[best] += 1
        gains[best] = next(chances[best])
    return lengths
