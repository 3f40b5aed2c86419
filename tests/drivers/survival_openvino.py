"""What is known to end a process that computes with OpenVINO, done to it through our wrapper.

    python -m tests.drivers.survival_openvino MODEL BROKEN_FILES_FOLDER

As survival.py does it for llama.cpp; test_survival_openvino.py reads the lines.
"""

import contextlib
import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from llmasos.drivers.llama.model import load_vocab
from llmasos.drivers.local import gguf
from llmasos.drivers.local.context import Run
from llmasos.drivers.openvino import options
from llmasos.drivers.openvino.context import PagedContext
from llmasos.drivers.openvino.graph import convert
from llmasos.drivers.openvino.model import PagedModel
from llmasos.drivers.openvino.settings import OpenVinoSettings
from llmasos.drivers.openvino.vectors import PagedVectors
from llmasos.kernel.abi.errors import DeviceFault
from tests.drivers import survival_cases
from tests.drivers.survival_cases import ContextBench

SMALL: dict[str, bool | int | float | str] = {
    "slots": 4, "window": 256, "batch": 32, "threads": 1,
}  # fmt: skip
BLOCKS = 40  # of the pool: all slots, and eight more
FEW = 3


class Bench(ContextBench):
    """A model, and a context of four slots."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        chosen = options.settings(path, gguf.read(path), SMALL)
        self.settings: OpenVinoSettings = dataclasses.replace(chosen, blocks=BLOCKS)
        self.graph = convert(path)
        self.model = PagedModel(self.graph, BLOCKS, 1)
        self.vocab = load_vocab(path).vocab
        self.context = self.another()

    def another(self) -> PagedContext:
        """A further context on the same blocks; nothing else uses them meanwhile."""
        return PagedContext(self.model, self.settings, self.vocab.size)

    def fill(self, slot: int, tokens: int) -> None:
        for first in range(0, tokens, 32):
            self.feed(*[1] * 32, slot=slot, first=first)

    def scores(self, *tokens: int, slot: int = 0, first: int = 0) -> list[float]:
        found: list[float] = self.context.logits(
            self.feed(*tokens, slot=slot, first=first)
        ).tolist()
        return found


# --- batches ----------------------------------------------------------------------------------
def a_batch_over_its_size(b: Bench) -> object:
    runs = [Run(slot, 0, [1] * 100, asks=1) for slot in range(4)]
    return b.context.decode(runs)


def a_negative_position(b: Bench) -> object:
    return b.feed(1, first=-1)


def a_token_beyond_32_bits(b: Bench) -> object:
    return b.feed(2**40)


def logits_that_were_not_asked_for(b: Bench) -> object:
    b.context.decode([Run(0, 0, [1, 2], asks=0)])
    return b.context.logits(0)


def logits_of_the_batch_before(b: Bench) -> object:
    b.context.decode([Run(slot, 0, [1, 2], asks=1) for slot in range(2)])
    b.feed(1, slot=2)
    return b.context.logits(1)


def logits_after_a_refused_batch(b: Bench) -> object:
    index = b.feed(1, 2)
    with contextlib.suppress(DeviceFault):
        b.feed(-1, first=2)
    return b.context.logits(index).shape


def more_threads_than_there_are(b: Bench) -> object:
    b.context.set_threads(64)
    return b.feed(1)


# --- blocks -----------------------------------------------------------------------------------
def more_tokens_than_the_pool_has(b: Bench) -> object:
    few = PagedContext(PagedModel(b.graph, FEW + 1, 1), b.settings, b.vocab.size)
    for first in range(0, FEW * 32, 32):
        few.decode([Run(0, first, [1] * 32, asks=0)])
    return few.decode([Run(1, 0, [1], asks=1)])


def what_did_not_fit_changed_nothing(b: Bench) -> object:
    few = PagedContext(PagedModel(b.graph, FEW + 1, 1), b.settings, b.vocab.size)
    few.decode([Run(0, 0, [1] * 32, asks=0)])
    with contextlib.suppress(DeviceFault):
        few.decode([Run(0, 32, [1], asks=1), Run(1, 0, [1] * 64, asks=1)])
    return few.length(0), few.length(1), sorted(few.decode([Run(1, 0, [1] * 64, asks=1)]))


def two_writers_of_a_block(b: Bench) -> object:
    """Each of two copies writes into the block that they share."""
    alone = [b.scores(1, 2, token) for token in (3, 4) if not b.context.keep(0, 0)]
    b.context.keep(0, 0)
    b.feed(1, 2)
    b.context.copy(0, 1)
    found = [b.scores(3, slot=0, first=2), b.scores(4, slot=1, first=2)]
    again = [b.scores(5, slot=slot, first=3) for slot in (0, 1)]
    return np.allclose(found, alone, atol=1e-3), again[0] != again[1]


def an_error_of_openvino(b: Bench) -> object:
    tokens: Any = np.zeros((1, 1, 1, 2), np.int64)
    return b.model.compute({"inp_tokens": tokens})


def a_shape_that_does_not_fit(b: Bench) -> object:
    return b.model.compute({"inp_tokens": np.zeros((2, 2), np.int32)})


# --- saved blocks -----------------------------------------------------------------------------
def loading_into_a_slot_that_is_not_there(b: Bench) -> None:
    b.feed(1, 2, 3)
    b.context.load(4, b.context.save(0))


def loading_into_a_slot_in_use(b: Bench) -> None:
    b.feed(1, 2, 3)
    b.context.load(0, b.context.save(0))


def blocks_of_another_context(b: Bench) -> None:
    b.feed(1, 2, 3)
    b.another().load(1, b.context.save(0))


def blocks_that_were_freed(b: Bench) -> None:
    b.feed(1, 2, 3)
    state = b.context.save(0)
    state.free()
    b.context.load(1, state)


def blocks_freed_twice(b: Bench) -> object:
    b.feed(1, 2, 3)
    state = b.context.save(0)
    state.free()
    state.free()
    return b.context.length(0), sorted(b.context.decode([Run(0, 3, [4], asks=1)]))


def saved_blocks_that_outlive_their_slot(b: Bench) -> object:
    scores = b.scores(1, 2, 3)
    b.context.keep(0, 2)
    state = b.context.save(0)
    b.context.keep(0, 0)
    b.fill(1, 64)  # would take the blocks if they were free
    b.context.load(2, state)
    state.free()
    return np.allclose(scores, b.scores(3, slot=2, first=2), atol=1e-3)


# --- files ------------------------------------------------------------------------------------
def a_missing_file(b: Bench) -> object:
    return convert(b.folder / "nowhere.gguf")


def a_file_cut_short(b: Bench) -> object:
    path = b.folder / "short.gguf"
    path.write_bytes(b.path.read_bytes()[:3_000_000])
    return convert(path)


def a_garbled_file(b: Bench) -> object:
    path = b.folder / "garbled.gguf"
    path.write_bytes(b"GGUF" + random.Random(3).randbytes(100_000))
    return convert(path)


def an_architecture_that_is_not_supported(b: Bench) -> object:
    path = b.folder / "other.gguf"
    path.write_bytes(b.path.read_bytes().replace(b"llama", b"lamas"))
    return convert(path)


def a_window_over_the_trained_length(b: Bench) -> object:
    return options.settings(b.path, gguf.read(b.path), {"window": 8448})


# --- vectors ----------------------------------------------------------------------------------
def vectors_of_too_many_tokens_at_once(b: Bench) -> object:
    return PagedVectors(b.graph, b.settings, b.vocab.size).compute([1] * 1_000, 0)


def vectors_over_the_window(b: Bench) -> object:
    context = PagedVectors(b.graph, b.settings, b.vocab.size)
    for first in range(0, 256, 128):
        context.compute([1] * 128, first)
    return context.compute([1], 256)


def vectors_with_a_gap(b: Bench) -> object:
    return PagedVectors(b.graph, b.settings, b.vocab.size).compute([1], 7)


def vectors_of_a_token_that_is_not_there(b: Bench) -> object:
    return PagedVectors(b.graph, b.settings, b.vocab.size).compute([b.vocab.size], 0)


def main() -> None:
    bench = Bench(Path(sys.argv[1]), Path(sys.argv[2]))
    survival_cases.run(survival_cases.cases(globals(), Bench), bench)
    token = int(bench.context.logits(bench.feed(1)).argmax())
    print(json.dumps(["alive", bench.vocab.text(token)]), flush=True)


if __name__ == "__main__":
    main()
