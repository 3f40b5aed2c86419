"""The process that compares both engines on a file. It is one of its own because they may abort.

    python -m llmasos.drivers.choice.probe FILE THREADS [llama]

With `llama` it measures llama.cpp only. Otherwise both engines compute the same tokens in turn: a
prompt for each of SEQUENCES sequences, then answers of all of them in one batch, then an answer of
one. Their logits are compared at each of these positions; the tokens are those of a passage, so
that they do not depend on what an engine computes.

Times are those of a clock, unless other programs use the cores: that slows the engine whose threads
wait for each other more often, and it passes. Then they are CPU times, divided by the threads, in
which work that one thread does alone counts less than it takes.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.llama import options as llama_options
from llmasos.drivers.llama import task
from llmasos.drivers.llama.context import LlamaContext
from llmasos.drivers.llama.model import LlamaModel, load
from llmasos.drivers.llama.placement import place
from llmasos.drivers.llama.scorer import PASSAGE
from llmasos.drivers.local import gguf
from llmasos.drivers.local.context import Context, Run
from llmasos.drivers.openvino import options as openvino_options
from llmasos.drivers.openvino.blocks import BLOCK_TOKENS
from llmasos.drivers.openvino.settings import OpenVinoSettings
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.driver import Option

from .comparison import SEQUENCES
from .measurement import LLAMA_ONLY

OPENVINO, LLAMA = "OpenVINO", "llama.cpp"  # stages
_PROMPT_TOKENS = range(4, 4 + 2 * SEQUENCES, 2)  # some within a block, some in two
_SPACING = 48  # tokens of the passage between the beginnings of two sequences
_FULL_STEPS, _SINGLE_STEPS = 4, 6
_TOKENS = _PROMPT_TOKENS[-1] + _FULL_STEPS + _SINGLE_STEPS  # of the longest sequence
_WINDOW = 256
_ROUNDS, _ENOUGH_S = 3, 1.5  # no further round begins after this time
_CONTENDED = 1.5  # times as long by the clock as by the CPU
_DIGITS = 4

Logits = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """The shortest times in seconds of a prompt, a step of all sequences, a step of one."""

    prompt: float
    full: float
    single: float

    @property
    def total(self) -> float:
        return self.prompt + _FULL_STEPS * self.full + _SINGLE_STEPS * self.single

    def best(self, other: "ProbeTimes") -> "ProbeTimes":
        """The shorter of each."""
        return ProbeTimes(
            min(self.prompt, other.prompt),
            min(self.full, other.full),
            min(self.single, other.single),
        )

    def rates(self, name: str) -> dict[str, float]:
        """Tokens per second."""
        return {
            f"{name}_prompt": round(sum(_PROMPT_TOKENS) / self.prompt, 1),
            f"{name}_full": round(SEQUENCES / self.full, 1),
            f"{name}_single": round(1 / self.single, 1),
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine."""

    logits: Logits  # of the first round
    clock: ProbeTimes
    cpu: ProbeTimes  # of all threads, divided by their number

    def best(self, other: "Measured") -> "Measured":
        return Measured(self.logits, self.clock.best(other.clock), self.cpu.best(other.cpu))

    @property
    def contended(self) -> bool:
        """Whether its threads had to wait for other programs."""
        return self.clock.total > _CONTENDED * self.cpu.total


def work(output: task.TaskOutput) -> dict[str, object]:
    """The fields of a EngineComparison for FILE."""
    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    output.unfinished = task.workspace_of(path)
    header = gguf.read(path)
    chosen: dict[str, Option] = {"slots": SEQUENCES, "threads": threads, "nice": 0}
    if header.facts.context >= _WINDOW:
        chosen["window"] = _WINDOW
    settings = place(llama_options.settings(path, header, chosen)).settings
    output.stage(LLAMA, 0.0)
    model = load(settings)
    llama, sequences = LlamaContext(model, settings), _sequences(model)
    if sys.argv[3:] == [LLAMA_ONLY]:
        _measure(llama, sequences, threads)
        [alone] = _alternate({LLAMA: llama}, sequences, threads, output)
        return {**(alone.cpu if alone.contended else alone.clock).rates("llama")}
    output.stage(OPENVINO, 0.2)
    try:
        openvino = _openvino(path, openvino_options.settings(path, header, chosen), model)
        _measure(openvino, sequences, threads)  # the first step of a size takes longer
    except SyscallError as error:
        return {"refusal": error.message}
    ours, others = _alternate({OPENVINO: openvino, LLAMA: llama}, sequences, threads, output)
    contended = ours.contended or others.contended
    first, second = (one.cpu if contended else one.clock for one in (ours, others))
    return {**_difference(ours, others), **first.rates("openvino"), **second.rates("llama")}


def _openvino(path: Path, settings: OpenVinoSettings, model: LlamaModel) -> Context:
    """A context of OpenVINO with memory for the sequences."""
    from llmasos.drivers.openvino.context import PagedContext  # loads OpenVINO
    from llmasos.drivers.openvino.graph import convert
    from llmasos.drivers.openvino.model import PagedModel

    blocks = 1 + SEQUENCES * -(-_TOKENS // BLOCK_TOKENS)
    graph = PagedModel(convert(path), blocks, settings.threads)
    return PagedContext(graph, replace(settings, blocks=blocks), model.vocab.size)


def _sequences(model: LlamaModel) -> list[list[int]]:
    """The tokens of all sequences: parts of the passage, which is repeated if it is too short."""
    text = PASSAGE.read_text(encoding="utf-8")
    tokens: list[int] = model.vocab.tokenize(text, special=False).tolist()
    needed = SEQUENCES * _SPACING + _TOKENS
    tokens *= -(-needed // len(tokens))
    return [tokens[_SPACING * n : _SPACING * n + _TOKENS] for n in range(SEQUENCES)]


def _alternate(
    contexts: Mapping[str, Context],
    sequences: list[list[int]],
    threads: int,
    output: task.TaskOutput,
) -> list[Measured]:
    """Measure them in turn, so that other work on the machine slows all."""
    begin = time.perf_counter()
    best: dict[str, Measured] = {}
    for turn in range(_ROUNDS):
        for number, (stage, context) in enumerate(contexts.items()):
            done = (turn + number / len(contexts)) / _ROUNDS
            output.stage(stage, 0.4 + 0.6 * done)
            found = _measure(context, sequences, threads)
            best[stage] = best[stage].best(found) if stage in best else found
        if time.perf_counter() - begin > _ENOUGH_S:
            break
    return list(best.values())


def _measure(context: Context, sequences: list[list[int]], threads: int) -> Measured:
    """One round: prompts, full steps, steps of one sequence. Its slots are empty afterwards."""
    logits: list[Logits] = []

    def step(slots: range, length: Callable[[int], int]) -> tuple[float, float]:
        begin, cpu = time.perf_counter(), time.process_time()
        runs = [
            Run(slot, first := context.length(slot), sequences[slot][first : length(slot)], True)
            for slot in slots
        ]
        asked = context.decode(runs)
        rows = [context.logits(asked[slot]).astype(np.float64) for slot in slots]
        seconds = time.perf_counter() - begin, (time.process_time() - cpu) / threads
        logits.extend(rows)
        return seconds

    prompt = step(range(SEQUENCES), lambda slot: _PROMPT_TOKENS[slot])
    every = range(SEQUENCES)
    full = [step(every, lambda slot: context.length(slot) + 1) for _ in range(_FULL_STEPS)]
    lone = range(SEQUENCES - 1, SEQUENCES)
    single = [step(lone, lambda slot: context.length(slot) + 1) for _ in range(_SINGLE_STEPS)]
    for slot in every:
        context.keep(slot, 0)
    clock, cpu = (
        ProbeTimes(prompt[at], min(one[at] for one in full), min(one[at] for one in single))
        for at in (0, 1)
    )
    return Measured(np.array(logits), clock, cpu)


def _difference(ours: Measured, others: Measured) -> dict[str, float]:
    """How the logits differ, without what is added to all of a position."""
    first, second = (
        one.logits - one.logits.mean(axis=1, keepdims=True) for one in (ours, others)
    )  # fmt: skip
    relative = np.sqrt(np.square(first - second).mean()) / np.sqrt(np.square(second).mean())
    same = first.argmax(axis=1) == second.argmax(axis=1)
    return {
        # Logits that are no numbers differ by more than any bound.
        "difference": round(float(np.nan_to_num(relative, nan=1e9)), _DIGITS),
        "agreeing": round(float(same.mean()), _DIGITS),
    }


if __name__ == "__main__":
    task.run(work)
