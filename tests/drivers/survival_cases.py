"""What is known to end a process that computes, done to the context of any engine.

Also how such cases are run, in one interpreter: a case that ends the process ends the lines that it
prints. survival.py has the cases of llama.cpp, survival_openvino.py those of OpenVINO.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmasos.drivers.local.context import Context, Run, Vocab
from llmasos.kernel.abi.errors import SyscallError

DEADLINE_S = 120.0  # a guard against hangs
ROOT = Path(__file__).resolve().parents[2]
Case = Callable[[Any], object]


class ContextBench:
    """A context of four slots of 256 tokens."""

    context: Context
    vocab: Vocab

    def feed(self, *tokens: int, slot: int = 0, first: int = 0) -> int:
        """Tokens into a slot; where the logits are."""
        return self.context.decode([Run(slot, first, tokens, asks=1)])[slot]

    def clear(self) -> None:
        for slot in range(self.context.slots):
            self.context.keep(slot, 0)


# --- batches ----------------------------------------------------------------------------------
def an_empty_batch(b: ContextBench) -> object:
    return b.context.decode([])


def a_run_without_tokens(b: ContextBench) -> object:
    return b.feed()


def a_slot_that_is_not_there(b: ContextBench) -> object:
    return b.feed(1, slot=4)


def a_negative_slot(b: ContextBench) -> object:
    return b.feed(1, slot=-1)


def a_token_that_is_not_there(b: ContextBench) -> object:
    return b.feed(b.vocab.size)


def a_negative_token(b: ContextBench) -> object:
    return b.feed(-1)


def a_gap_in_the_positions(b: ContextBench) -> object:
    return b.feed(1, first=5)


def a_position_twice(b: ContextBench) -> object:
    b.feed(1, 2)
    return b.feed(3, first=1)


def a_slot_twice_in_a_batch(b: ContextBench) -> object:
    return b.context.decode([Run(0, 0, [1], asks=1), Run(0, 0, [2], asks=1)])


def logits_of_more_tokens_than_there_are(b: ContextBench) -> object:
    return b.context.decode([Run(0, 0, [1, 2], asks=3)])


def a_full_slot(b: ContextBench) -> object:
    for first in range(0, 256, 32):
        b.feed(*[1] * 32, first=first)
    return b.feed(1, first=256)


# --- slots ------------------------------------------------------------------------------------
def a_copy_onto_a_slot_that_is_not_there(b: ContextBench) -> None:
    b.feed(1)
    b.context.copy(0, 9)


def a_copy_onto_a_slot_in_use(b: ContextBench) -> None:
    b.feed(1)
    b.feed(2, slot=1)
    b.context.copy(0, 1)


def keeping_of_a_slot_that_is_not_there(b: ContextBench) -> object:
    return b.context.keep(4, 0)


def keeping_more_than_there_is(b: ContextBench) -> object:
    b.feed(1)
    return b.context.keep(0, 2)


def keeping_fewer_than_none(b: ContextBench) -> object:
    return b.context.keep(0, -1)


def the_length_of_a_slot_that_is_not_there(b: ContextBench) -> object:
    return b.context.length(4)


def saving_a_slot_that_is_not_there(b: ContextBench) -> object:
    return b.context.save(4)


def two_threads_on_a_context(b: ContextBench) -> object:
    b.feed(1)
    faults: list[str] = []

    def other() -> None:
        try:
            b.feed(2, slot=1)
        except SyscallError as error:
            faults.append(error.message)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    return faults[0]


def cases(names: Mapping[str, object], bench: type[ContextBench]) -> list[Case]:
    """The functions of a module that take a bench, and those that take any."""
    found = [*globals().items(), *names.items()]
    return [
        case
        for name, case in found
        if callable(case)
        and name[0] != "_"
        and getattr(case, "__annotations__", {}).get("b") in (bench, ContextBench)
    ]


def run(every: Sequence[Case], bench: ContextBench) -> None:
    """Do each case, and print what became of it."""
    for case in every:
        bench.clear()
        print(json.dumps([case.__name__, _outcome(case, bench)]), flush=True)
    bench.clear()


def _outcome(case: Case, bench: ContextBench) -> str:
    try:
        return f"returned {case(bench)!r}"
    except SyscallError as error:
        return f"{error.errno.name}: {error.message}"


def outcomes(
    module: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """What became of each case, by name, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE_S, env=environment,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    told = f"after {lines[-1:]} it ended with {done.returncode}: {done.stderr[-500:]}"
    assert done.returncode == 0, told
    return dict(lines)
