"""What is known to end a process that speaks to llama.cpp, done to it through our wrapper.

    python -m tests.drivers.survival MODEL BROKEN_FILES_FOLDER

Runs every case in this one interpreter and prints a JSON line for each: what became of it. A case
that ends the process ends the lines; test_survival.py reads them.
"""

import dataclasses
import gc
import json
import random
import sys
from pathlib import Path

import numpy as np

from llmasos.drivers.llama import options
from llmasos.drivers.llama.context import LlamaContext, StateBytes
from llmasos.drivers.llama.model import LlamaModel, load
from llmasos.drivers.llama.settings import LlamaSettings
from llmasos.drivers.llama.vectors import LlamaVectors
from llmasos.drivers.local import gguf
from llmasos.drivers.local.context import Run
from llmasos.drivers.local.grammar import Grammars
from llmasos.drivers.local.picking import SamplingPicker
from llmasos.drivers.local.sampler import Bounds, Sampler, sampler
from llmasos.kernel.abi.values import Sampling, pack_bias
from tests.drivers import survival_cases
from tests.drivers.survival_cases import ContextBench

SMALL: dict[str, bool | int | float | str] = {
    "slots": 4, "window": 256, "batch": 32, "threads": 1,
}  # fmt: skip


class Bench(ContextBench):
    """A model, a context of four slots, and short words."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.settings: LlamaSettings = options.settings(path, gguf.read(path), SMALL)
        self.model: LlamaModel = load(self.settings)
        self.context = LlamaContext(self.model, self.settings)
        self.vocab = self.model.vocab
        self.bounds = Bounds(self.vocab, Grammars(self.vocab))

    def sampler(self, **fields: object) -> Sampler:
        return sampler(Sampling(**{"seed": 1, **fields}), self.bounds)  # type: ignore[arg-type]

    def token(self, text: str) -> int:
        return int(self.vocab.tokenize(text, special=False)[0])


# --- batches ----------------------------------------------------------------------------------
def a_batch_over_its_size(b: Bench) -> object:
    return b.feed(*[1] * 33)


def a_batch_smaller_than_the_slots(b: Bench) -> object:
    context = LlamaContext(b.model, dataclasses.replace(b.settings, batch=2, slots=8))
    return sorted(context.decode([Run(slot, 0, [1], asks=1) for slot in range(8)]))


def a_batch_of_2_to_31(b: Bench) -> object:
    return options.settings(b.path, gguf.read(b.path), {"batch": 2**31})


def a_closed_context(b: Bench) -> object:
    context = LlamaContext(b.model, b.settings)
    context.close()
    return context.decode([Run(0, 0, [1], asks=1)])


def a_context_closed_twice(b: Bench) -> object:
    context = LlamaContext(b.model, b.settings)
    context.close()
    context.close()
    return "closed"


def a_context_of_257_slots(b: Bench) -> object:
    return LlamaContext(b.model, dataclasses.replace(b.settings, slots=257))


def a_context_of_200_million_tokens(b: Bench) -> object:
    return options.settings(b.path, gguf.read(b.path), {"window": 200_000_000})


# --- choosing ---------------------------------------------------------------------------------
def logits_that_were_not_asked_for(b: Bench) -> object:
    b.feed(1, 2, 3)
    return b.sampler(temperature=0.0).choose(b.context, 1)


def a_choice_at_an_index_without_logits(b: Bench) -> object:
    b.feed(1)
    return b.sampler(temperature=0.7).choose(b.context, 31)


def logits_of_the_batch_before(b: Bench) -> object:
    index = b.feed(1, 2)
    b.feed(1, slot=1)
    return b.sampler(temperature=0.7).choose(b.context, index)


def a_sampler_told_a_token_that_is_not_there(b: Bench) -> None:
    SamplingPicker(Sampling(seed=1, repeat_penalty=1.5), b.vocab.size).accept(b.vocab.size)


def scores_that_are_no_numbers(b: Bench) -> object:
    index = b.feed(1)
    b.context.logits(index)[:] = np.nan
    return b.sampler(temperature=0.7).choose(b.context, index)


def scores_without_a_finite_one(b: Bench) -> object:
    index = b.feed(1)
    b.context.logits(index)[:] = -np.inf
    return b.sampler(temperature=0.7).choose(b.context, index)


def a_bias_on_a_token_that_is_not_there(b: Bench) -> object:
    return b.sampler(bias=pack_bias({b.vocab.size: 1.0}))


# --- grammars ---------------------------------------------------------------------------------
def a_forbidden_token_told_to_a_grammar(b: Bench) -> None:
    matcher = b.bounds.grammars.matcher(Sampling(grammar='root ::= "a" "b"'))
    assert matcher is not None
    matcher.take(b.token("b"))


def a_token_told_to_a_grammar_twice(b: Bench) -> None:
    matcher = b.bounds.grammars.matcher(Sampling(grammar='root ::= "a" "b"'))
    assert matcher is not None
    matcher.take(b.token("a"))
    matcher.take(b.token("a"))


def top_k_of_one_beside_a_grammar(b: Bench) -> object:
    chosen = b.sampler(temperature=1.0, top_k=1, grammar='root ::= "yes" | "no"')
    return b.vocab.piece(chosen.choose(b.context, b.feed(b.token("The")))).decode()


def a_grammar_that_leaves_no_token(b: Bench) -> object:
    chosen = b.sampler(temperature=1.0, grammar='root ::= "a" [^\\x00-\\U0010FFFF]')
    token = chosen.choose(b.context, b.feed(1))
    return chosen.choose(b.context, b.feed(token, first=1))


def every_end_banned_and_nothing_else_allowed(b: Bench) -> object:
    chosen = b.sampler(temperature=1.0, grammar='root ::= ""', ignore_eos=True)
    return chosen.choose(b.context, b.feed(1)) in b.vocab.ends


def a_bias_on_thousands_of_tokens(b: Bench) -> object:
    bias = pack_bias(dict.fromkeys(range(2_000), -100.0))
    return b.sampler(temperature=1.0, bias=bias).choose(b.context, b.feed(1)) >= 0


def a_grammar_without_a_root(b: Bench) -> object:
    return b.sampler(grammar='x ::= "a"')


def a_grammar_that_is_none(b: Bench) -> object:
    return b.sampler(grammar="root ::= ((")


def a_left_recursive_grammar(b: Bench) -> object:
    chosen = b.sampler(temperature=0.0, grammar='root ::= root "," [0-9] | [0-9]')
    return b.vocab.piece(chosen.choose(b.context, b.feed(1))).decode().isdigit()


def a_chain_of_rules_deeper_than_a_stack(b: Bench) -> object:
    rules = "\n".join(f'{n}::={n + 1}|"b"' for n in range(4000))
    chosen = b.sampler(temperature=0.0, grammar=f'root::=0\n{rules}\n4000::="c"')
    return b.vocab.piece(chosen.choose(b.context, b.feed(1))).decode() in ("b", "c")


# --- the vocabulary ---------------------------------------------------------------------------
def the_piece_of_a_token_that_is_not_there(b: Bench) -> object:
    return b.vocab.piece(b.vocab.size)


def the_piece_of_a_negative_token(b: Bench) -> object:
    return b.vocab.piece(-1)


def the_text_of_a_token_that_is_not_there(b: Bench) -> object:
    return [b.vocab.text(token) for token in (-1, b.vocab.size, 2**31 - 1)]


def a_text_that_is_not_unicode(b: Bench) -> object:
    return b.vocab.tokenize("\ud800", special=False)


def a_long_text_without_spaces(b: Bench) -> object:
    return len(b.vocab.tokenize("x" * 200_000, special=False)) > 1_000


# --- slots and states -------------------------------------------------------------------------
def loading_into_a_slot_that_is_not_there(b: Bench) -> None:
    b.context.load(4, _state(b))


def an_empty_state(b: Bench) -> None:
    b.context.load(1, StateBytes(bytearray()))


def a_state_cut_short(b: Bench) -> None:
    b.context.load(1, StateBytes(_state(b).data[:-100]))


def a_state_of_random_bytes(b: Bench) -> None:
    b.context.load(1, StateBytes(bytearray(random.Random(1).randbytes(50_000))))


def a_state_whose_head_is_garbled(b: Bench) -> None:
    state = _state(b)
    state.data[:64] = random.Random(2).randbytes(64)
    b.context.load(1, state)


def a_state_of_another_context(b: Bench) -> None:
    other = LlamaContext(b.model, dataclasses.replace(b.settings, flash=not b.settings.flash))
    other.load(1, _state(b))


def a_state_without_room(b: Bench) -> None:
    big = LlamaContext(b.model, dataclasses.replace(b.settings, window=512))
    for first in range(0, 512, 32):
        big.decode([Run(0, first, [1] * 32, asks=0)])
    b.context.load(1, big.save(0))


def _state(b: Bench) -> StateBytes:
    b.feed(1, 2, 3)
    state = b.context.save(0)
    assert isinstance(state, StateBytes)
    return state


# --- files and the log ------------------------------------------------------------------------
def _load(b: Bench, path: Path) -> object:
    return load(dataclasses.replace(b.settings, path=str(path)))


def a_missing_file(b: Bench) -> object:
    return _load(b, b.folder / "nowhere.gguf")


def a_file_cut_short(b: Bench) -> object:
    path = b.folder / "short.gguf"
    path.write_bytes(b.path.read_bytes()[:3_000_000])
    return _load(b, path)


def a_garbled_file(b: Bench) -> object:
    path = b.folder / "garbled.gguf"
    path.write_bytes(b"GGUF" + random.Random(3).randbytes(100_000))
    return _load(b, path)


def a_log_line_after_the_collector_ran(b: Bench) -> object:
    gc.collect()
    return _load(b, b.folder / "nowhere.gguf")


# --- vectors ----------------------------------------------------------------------------------
def vectors_of_too_many_tokens_at_once(b: Bench) -> object:
    return LlamaVectors(b.model, b.settings).compute([1] * 1_000, 0)


def vectors_over_the_window(b: Bench) -> object:
    context = LlamaVectors(b.model, b.settings)
    for first in range(0, 256, 128):
        context.compute([1] * 128, first)
    return context.compute([1], 256)


def vectors_with_a_gap(b: Bench) -> object:
    return LlamaVectors(b.model, b.settings).compute([1], 7)


def vectors_of_a_token_that_is_not_there(b: Bench) -> object:
    return LlamaVectors(b.model, b.settings).compute([b.vocab.size], 0)


def main() -> None:
    bench = Bench(Path(sys.argv[1]), Path(sys.argv[2]))
    survival_cases.run(survival_cases.cases(globals(), Bench), bench)
    token = bench.sampler(temperature=0.0).choose(bench.context, bench.feed(bench.token("The")))
    print(json.dumps(["alive", bench.vocab.piece(token).decode()]), flush=True)


if __name__ == "__main__":
    main()
