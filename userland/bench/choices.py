"""The effect of each default of the engine on this machine. No bars.

Each row runs the bare loop twice, one run after the other: with the default and with the
alternative. The figure is the rate of the alternative over the rate of the default; below 1 the
default is better. What depends on other load is measured again beside a busy program. The size of a
prompt chunk is measured on the engine, by its effect on streams and on the prompt.
"""

import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import anyio

from llmasos.kernel.abi import limits
from llmasos.userland.client import BlockingClient

from . import bare
from .figures import Bar, MissingFigure, Suite, Take
from .peers import Absent
from .rig import Rig, ends_with_us, facts, image, mounted, tuned
from .stall import STREAM_TOKENS, STREAMS, arrival
from .texts import Writer

CONTEXT, SHARED = 256, 224  # tokens before decoding, and how many of them are common
LONG_TOKENS = 1000
CHUNKS_S = (0.1, 0.3, 0.6)
BUSY = "while True: pass"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the bare loop."""

    flags: tuple[object, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    busy: bool = False  # beside a program that uses a whole core


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: the rate of the alternative over the rate of the default."""

    name: str
    what: str
    chosen: Variant
    other: Variant
    of: str = "decode"  # or prefill


_LONG = ("--prompt-tokens", CONTEXT)
_COMMON = (*_LONG, "--shared-prefix", SHARED)
_SHORT = ("--prompt-tokens", 16)
_QUIET, _BUSY = Variant(_SHORT), Variant(_SHORT, busy=True)
_LAZY = {"OMP_WAIT_POLICY": "passive"}
_EAGER = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own
ROWS = (
    Row("unified_private", f"one pool of cells, private contexts of {CONTEXT} tokens",
        Variant(_LONG), Variant((*_LONG, "--unified"))),
    Row("unified_shared", f"one pool of cells, {SHARED} of {CONTEXT} tokens shared",
        Variant(_COMMON), Variant((*_COMMON, "--unified"))),
    Row("flash_off", "no flash attention", Variant(_LONG), Variant((*_LONG, "--no-flash"))),
    Row("flash_off_prefill", "no flash attention, prompts", Variant(_LONG),
        Variant((*_LONG, "--no-flash")), "prefill"),
    Row("one_thread", "one thread", _QUIET, Variant((*_SHORT, "--threads", 1))),
    Row("one_thread_busy", "one thread, beside a busy program",
        _BUSY, Variant((*_SHORT, "--threads", 1), busy=True)),
    Row("adaptive", "one thread per idle core", _QUIET, Variant((*_SHORT, "--adaptive"))),
    Row("adaptive_busy", "one thread per idle core, beside a busy program",
        _BUSY, Variant((*_SHORT, "--adaptive"), busy=True)),
    Row("spin", "threads that spin longer while waiting", _QUIET, Variant(_SHORT, _EAGER)),
    Row("spin_busy", "the same beside a busy program", _BUSY, Variant(_SHORT, _EAGER, busy=True)),
    Row("passive", "threads that sleep while waiting", _QUIET, Variant(_SHORT, _LAZY)),
    Row("passive_busy", "the same beside a busy program", _BUSY, Variant(_SHORT, _LAZY, busy=True)),
    Row("width_8", "8 sequences in a step", _QUIET, Variant((*_SHORT, "--sequences", 8))),
    Row("width_32", "32 sequences in a step", _QUIET, Variant((*_SHORT, "--sequences", 32))),
)  # fmt: skip
BARS = (
    *(Bar(f"choices.{row.name}", row.what, "x", "higher") for row in ROWS),
    *(Bar(f"choices.gap_s_{chunk * 1000:g}ms", f"longest gap of {STREAMS} streams while "
          f"a {LONG_TOKENS:,}-token prompt is computed, {chunk * 1000:g} ms of each step for it",
          "s", "lower") for chunk in CHUNKS_S),
    *(Bar(f"choices.ttft_s_{chunk * 1000:g}ms", f"time to first token of that prompt, "
          f"{chunk * 1000:g} ms of each step for it", "s", "lower") for chunk in CHUNKS_S),
)  # fmt: skip


@contextmanager
def rival() -> Generator[None]:
    """A program that uses a core while the block runs."""
    child = subprocess.Popen([sys.executable, "-c", BUSY], preexec_fn=ends_with_us())
    try:
        yield
    finally:
        child.kill()
        child.wait()


class Loops:
    """Runs the bare loop once for each variant of a repeat."""

    def __init__(self, path: str, sequences: int, new: int) -> None:
        self._words = (path, sequences, new)
        self._found: list[tuple[Variant, dict[str, Any]]] = []

    def rate(self, way: Variant, of: str) -> float:
        """Tokens a second in one phase."""
        report = next((one for known, one in self._found if known == way), None)
        if report is None:
            report = self._run(way)
            self._found.append((way, report))
        if of == "prefill":
            return float(report["prompt_tokens"] / report["prefill_s"])
        return float((report["tokens"] - report["sequences"]) / report["decode_s"])

    def _run(self, way: Variant) -> dict[str, Any]:
        path, sequences, new = self._words
        count = () if "--sequences" in way.flags else ("--sequences", sequences)
        with rival() if way.busy else nullcontext():
            return bare.loop(path, *count, *way.flags, "--new", new, **way.environment)[-1]


def chunks(rig: Rig, client: BlockingClient, tiny: bool) -> dict[str, list[float]]:
    """For each size: the longest gap of the streams and the first token of the long prompt."""
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
    missing = list[MissingFigure]()
    with tuned() as (rig, client):
        found = image(client)
        try:
            for _ in range(repeats):
                loops = Loops(found.tuned or found.path, sequences, new)
                for row in ROWS:
                    pair = [loops.rate(way, row.of) for way in (row.other, row.chosen)]
                    rates[row.name].append([round(one, 1) for one in pair])
        except Absent as error:
            missing.append(MissingFigure(str(error), "make setup"))
        values = chunks(rig, client, tiny)
        said = facts(client)
    values |= {
        f"choices.{name}": [round(other / chosen, 4) for other, chosen in pairs]
        for name, pairs in rates.items()
    }
    return Take(values, {**said, "other_and_chosen_rates": rates}, missing)


SUITE = Suite("choices", BARS, take)
