"""Compares window layouts by the likelihood of the right answer under each.

    python -m llmasos.drivers.llama.layouts --model FILE < cases.json

A case is a conversation whose beginning was paged out, a question about it, the page that answers
it, and the answer. Four layouts are scored by the mean negative log-likelihood of the answer's
tokens, and reported with the number of tokens computed when the page was restored or the beginning
removed:

    before   the page is before the tail, which is recomputed
    after    the page is just before the question; only the page and the question are computed
    anew     the beginning of the tail is removed, the rest is recomputed at its new position
    shifted  the beginning of the tail is removed, the rest is moved by a shift of positions
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmasos.drivers.local import gguf
from llmasos.drivers.local.text import Texts
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Message, Role
from llmasos.kernel.driver import Option

from . import options
from .library import lib
from .model import LlamaModel, load
from .placement import place

WINDOW = 4_096
_OPTIONS: dict[str, Option] = {"slots": 1, "window": WINDOW, "nice": 0}


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation, a question about it, and the expected answer."""

    system: str
    tail: Sequence[tuple[str, str]]  # role, text
    page: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """The result of one layout."""

    loss: float  # mean negative log-likelihood of the answer's tokens
    computed: int  # tokens, when the page was restored or the beginning removed


class SequenceContext:
    """A context of one sequence."""

    def __init__(self, model: LlamaModel, threads: int) -> None:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = WINDOW
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context: Any = lib.llama_init_from_model(model.handle, parameters)
        if not self._context:
            raise DeviceFault(f"llama.cpp cannot create a context of {WINDOW} tokens")
        self._memory: Any = lib.llama_get_memory(self._context)
        self._batch: Any = lib.llama_batch_init(WINDOW, 0, 1)
        self._size = model.vocab.size
        self.length = 0

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, True)
        self.length = 0

    def read(self, tokens: Sequence[int], *, scored: int = 0) -> list[float]:
        """Append tokens; the losses of the last `scored` of them."""
        batch, count = self._batch, len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, self.length + at
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            batch.logits[at] = at >= count - scored - 1
        batch.n_tokens = count
        if result := lib.llama_decode(self._context, batch):
            raise DeviceFault(f"llama_decode returned {result} for {count} tokens")
        self.length += count
        places = range(count - scored - 1, count - 1)
        return [self._loss(at, tokens[at + 1]) for at in places]

    def _loss(self, at: int, token: int) -> float:
        pointer = lib.llama_get_logits_ith(self._context, at)
        scores = np.ctypeslib.as_array(pointer, (self._size,)).astype(np.float64)
        most = scores.max()
        return float(most + np.log(np.exp(scores - most).sum()) - scores[token])

    def drop(self, first: int, end: int) -> None:
        """Remove tokens and shift those after them to their position."""
        if not lib.llama_memory_seq_rm(self._memory, 0, first, end):
            raise DeviceFault(f"cannot remove the tokens {first} to {end}")
        lib.llama_memory_seq_add(self._memory, 0, end, -1, first - end)
        self.length -= end - first


class LayoutScorer:
    """Scores every layout of a case."""

    def __init__(self, model: LlamaModel, threads: int) -> None:
        self._texts = Texts(model.vocab, model.template)
        self._context = SequenceContext(model, threads)

    def score(self, case: Case) -> dict[str, Score]:
        block = f"From earlier:\n{case.page}\n\n"
        half = len(case.tail) // 2
        head = [Message(Role.SYSTEM, case.system)]
        tail = [Message(Role(role), text) for role, text in case.tail]
        asked = Message(Role.USER, f"{block}{case.question}")
        first = Message(tail[0].role, f"{block}{tail[0].content}")
        before = [*head, first, *tail[1:], Message(Role.USER, case.question)]
        return {
            "before": self._recomputed(before, case.answer, kept=head),
            "after": self._recomputed([*head, *tail, asked], case.answer, kept=[*head, *tail]),
            "anew": self._recomputed([*head, *tail[half:], asked], case.answer, kept=head),
            "shifted": self._shifted([head, tail[:half], tail[half:]], asked, case.answer),
        }

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        return self._texts.compose(messages, raw=False).tokens.tolist()

    def _prefix_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of messages at the beginning of a prompt, without the header of an answer."""
        one, two = (
            self._tokens([*messages, Message(Role.USER, text)]) for text in ("left", "right")
        )
        pairs = zip(one, two, strict=False)
        return next(at for at, (left, right) in enumerate(pairs) if left != right)

    def _recomputed(
        self, messages: Sequence[Message], answer: str, kept: Sequence[Message]
    ) -> Score:
        prompt, answer_tokens = self._tokens(messages), self._texts.tokenize(answer)
        self._context.clear()
        losses = self._context.read([*prompt, *answer_tokens], scored=len(answer_tokens))
        return Score(
            math.fsum(losses) / len(answer_tokens), len(prompt) - self._prefix_tokens(kept)
        )

    def _shifted(self, parts: Sequence[list[Message]], asked: Message, answer: str) -> Score:
        head, removed, rest = parts
        whole = self._tokens([*head, *removed, *rest, asked])
        first, end = self._prefix_tokens(head), self._prefix_tokens([*head, *removed])
        kept_tokens = self._prefix_tokens([*head, *removed, *rest])
        answer_tokens = self._texts.tokenize(answer)
        self._context.clear()
        self._context.read(whole[:kept_tokens])
        self._context.drop(first, end)
        losses = self._context.read(
            [*whole[kept_tokens:], *answer_tokens], scored=len(answer_tokens)
        )
        return Score(math.fsum(losses) / len(answer_tokens), len(whole) - kept_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    path: Path = parser.parse_args().model
    settings = place(options.settings(path, gguf.read(path), _OPTIONS)).settings
    scorer = LayoutScorer(load(settings), settings.threads)
    for fields in json.load(sys.stdin):
        scores = scorer.score(Case(**fields))
        rows = {name: [round(one.loss, 5), one.computed] for name, one in scores.items()}
        print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
