"""Which quantisations `models tune` measures on a processor, and which of them it chooses. Pure.

llama.cpp has fast kernels for these types only: Q8_0 everywhere, BF16 where the processor has
instructions for it, and 4-bit types that it repacks when it loads them.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from llmasos.kernel.abi.values import TuneCandidate

from .comparison import EngineRates

RATIO_MAX = 1.01  # of a chosen file's perplexity over the original's
_REPACKED = ("Q4_K_M", "IQ4_NL", "Q4_0")
BY_FLAG = {  # of the processor
    "avx512_bf16": ("BF16",),
    "avx2": _REPACKED,
    "asimddp": _REPACKED,
}


def offered(original: str, flags: Collection[str]) -> list[str]:
    """The quantisations to make of a file of the quantisation `original`."""
    found = ["Q8_0", *(name for flag, names in BY_FLAG.items() if flag in flags for name in names)]
    return [name for name in dict.fromkeys(found) if name != original]


def chosen(rows: Sequence[TuneCandidate], slots: int) -> list[TuneCandidate]:
    """The rows with the choice: the fastest that loses little. The first row is the original."""
    original, *others = rows
    allowed = [row for row in (original, *others) if _measured(row)]
    allowed = [row for row in allowed if row is original or row.ratio <= RATIO_MAX]
    best = min(allowed, key=lambda row: _rates(row).cost(slots), default=original)
    return [_explained(row, best, slots) for row in rows]


def _measured(row: TuneCandidate) -> bool:
    return min(row.prompt, row.single, row.full, row.ratio) > 0


def _rates(row: TuneCandidate) -> EngineRates:
    return EngineRates(row.prompt, row.single, row.full)


def _explained(row: TuneCandidate, best: TuneCandidate, slots: int) -> TuneCandidate:
    if row is best:
        why = row.why or f"fastest with a ratio up to {RATIO_MAX:g}"
        return replace(row, chosen=True, why=why)
    if not _measured(row):
        return row  # it has its reason
    if row.made_from and row.ratio > RATIO_MAX:
        return replace(row, why=f"ratio over {RATIO_MAX:g}")
    times = _rates(row).cost(slots) / _rates(best).cost(slots)
    return replace(row, why=f"{times:.2f} x the time of {best.quantisation}")


def requested(rows: Sequence[TuneCandidate]) -> list[TuneCandidate]:
    """The original and the requested quantisation."""
    original, row = rows
    return [original, replace(row, chosen=True, why=row.why or "as requested")]
