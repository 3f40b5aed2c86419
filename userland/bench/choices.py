"""Why the engine is as it is: what each of its choices is worth on this machine. No bars.

Each row is the bare loop twice, as the engine chose and in the other way, one after the other: its
figure is the other's rate over the chosen one's, so that below 1 the choice is right. What depends
on who else wants the cores is measured again beside a program that never rests. The size of a
prompt's chunk is measured on the engine itself, by what it does to streams and to the prompt.
"""

import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import anyio

from llmasos.kernel import limits
from llmasos.userland.line import Line

from . import bare
from .figures import Bar, Missing, Suite, Take
from .peers import Absent
from .rig import Rig, facts, image, mounted, tuned
from .stall import STREAM_TOKENS, STREAMS, arrival
from .texts import Writer

CONTEXT, SHARED = 256, 224  # tokens before decoding, and how many of them are common
LONG_TOKENS = 1000
CHUNKS_S = (0.1, 0.3, 0.6)
BUSY = "while True: pass"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the bare loop."""

    flags: tuple[object, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    busy: bool = False  # beside a program that never rests


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: the other way over the way that was chosen, by a rate of the loop's report."""

    name: str
    what: str
    chosen: Way
    other: Way
    of: str = "decode"  # or prefill


_LONG = ("--prompt-tokens", CONTEXT)
_COMMON = (*_LONG, "--shared-prefix", SHARED)
_SHORT = ("--prompt-tokens", 16)
_QUIET, _BUSY = Way(_SHORT), Way(_SHORT, busy=True)
_LAZY = {"OMP_WAIT_POLICY": "passive"}
_EAGER = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own
ROWS = (
    Row("unified_private", f"one pool of cells, private contexts of {CONTEXT} tokens",
        Way(_LONG), Way((*_LONG, "--unified"))),
    Row("unified_shared", f"one pool of cells, {SHARED} of {CONTEXT} tokens shared",
        Way(_COMMON), Way((*_COMMON, "--unified"))),
    Row("flash_off", "no flash attention", Way(_LONG), Way((*_LONG, "--no-flash"))),
    Row("flash_off_prefill", "no flash attention, prompts", Way(_LONG), Way((*_LONG, "--no-flash")),
        "prefill"),
    Row("one_thread", "one thread", _QUIET, Way((*_SHORT, "--threads", 1))),
    Row("one_thread_busy", "one thread, beside a busy program",
        _BUSY, Way((*_SHORT, "--threads", 1), busy=True)),
    Row("adaptive", "as many threads as cores are free", _QUIET, Way((*_SHORT, "--adaptive"))),
    Row("adaptive_busy", "as many threads as cores are free, beside a busy program",
        _BUSY, Way((*_SHORT, "--adaptive"), busy=True)),
    Row("spin", "threads that wait by spinning for long", _QUIET, Way(_SHORT, _EAGER)),
    Row("spin_busy", "the same beside a busy program", _BUSY, Way(_SHORT, _EAGER, busy=True)),
    Row("passive", "threads that wait by sleeping", _QUIET, Way(_SHORT, _LAZY)),
    Row("passive_busy", "the same beside a busy program", _BUSY, Way(_SHORT, _LAZY, busy=True)),
    Row("width_8", "8 sequences in a step", _QUIET, Way((*_SHORT, "--sequences", 8))),
    Row("width_32", "32 sequences in a step", _QUIET, Way((*_SHORT, "--sequences", 32))),
)  # fmt: skip
BARS = (
    *(Bar(f"choices.{row.name}", row.what, "x", "higher") for row in ROWS),
    *(Bar(f"choices.gap_s_{chunk * 1000:g}ms", f"longest gap of {STREAMS} streams while "
          f"{LONG_TOKENS:,} tokens are fed, {chunk * 1000:g} ms of each step for them",
          "s", "lower") for chunk in CHUNKS_S),
    *(Bar(f"choices.ttft_s_{chunk * 1000:g}ms", f"first token of these {LONG_TOKENS:,}, "
          f"{chunk * 1000:g} ms of each step for them", "s", "lower") for chunk in CHUNKS_S),
)  # fmt: skip


@contextmanager
def rival() -> Generator[None]:
    """A program that wants a core, for as long as the block lasts."""
    child = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        child.kill()
        child.wait()


class Loops:
    """The bare loop, once for each way of a repeat."""

    def __init__(self, path: str, sequences: int, new: int) -> None:
        self._words = (path, sequences, new)
        self._found: list[tuple[Way, dict[str, Any]]] = []

    def rate(self, way: Way, of: str) -> float:
        """Tokens a second in one phase."""
        report = next((one for known, one in self._found if known == way), None)
        if report is None:
            report = self._run(way)
            self._found.append((way, report))
        if of == "prefill":
            return float(report["prompt_tokens"] / report["prefill_s"])
        return float((report["tokens"] - report["sequences"]) / report["decode_s"])

    def _run(self, way: Way) -> dict[str, Any]:
        path, sequences, new = self._words
        count = () if "--sequences" in way.flags else ("--sequences", sequences)
        with rival() if way.busy else nullcontext():
            return bare.loop(path, *count, *way.flags, "--new", new, **way.environment)[-1]


def chunks(rig: Rig, client: Line, tiny: bool) -> dict[str, list[float]]:
    """Of each size: the streams' longest gap, and the long prompt's first token."""
    streams, count = (2, 100) if tiny else (STREAMS, LONG_TOKENS)
    values: dict[str, list[float]] = {}
    for chunk in CHUNKS_S:
        with mounted(client, slots=streams + 1, chunk_s=chunk):
            writer = Writer.of(client)
            others = [writer.private(0, index, STREAM_TOKENS) for index in range(streams)]
            prompt = writer.private(0, streams, count)
            new = limits.WINDOW_TOKENS - STREAM_TOKENS - 1
            seen = anyio.run(arrival, rig.socket, others, prompt, new)
        values[f"choices.gap_s_{chunk * 1000:g}ms"] = [round(seen.gap_s, 4)]
        values[f"choices.ttft_s_{chunk * 1000:g}ms"] = [round(seen.ttft_s, 4)]
    return values


def take(tiny: bool) -> Take:
    repeats, sequences, new = (1, 2, 3) if tiny else (2, 16, 32)
    rates: dict[str, list[list[float]]] = {row.name: [] for row in ROWS}
    missing = list[Missing]()
    with tuned() as (rig, client):
        found = image(client)
        try:
            for _ in range(repeats):
                loops = Loops(found.tuned or found.path, sequences, new)
                for row in ROWS:
                    pair = [loops.rate(way, row.of) for way in (row.other, row.chosen)]
                    rates[row.name].append([round(one, 1) for one in pair])
        except Absent as error:
            missing.append(Missing(str(error), "make setup"))
        values = chunks(rig, client, tiny)
        said = facts(client)
    values |= {
        f"choices.{name}": [round(other / chosen, 4) for other, chosen in pairs]
        for name, pairs in rates.items()
    }
    return Take(values, {**said, "other_and_chosen_rates": rates}, missing)


SUITE = Suite("choices", BARS, take)
