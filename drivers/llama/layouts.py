"""What a window's layout is worth: how likely the model finds the right answer under each.

    python -m llmasos.drivers.llama.layouts --model FILE < cases.json

A case is a conversation whose beginning has left the window, a question about it, the page that
answers it, and the answer. Four ways to lay that out are scored by the mean negative log-likelihood
of the answer's tokens, and told with the tokens that had to be computed when the page came back or
the beginning went:

    before   the page stands before the tail, which is computed anew
    after    it stands just before the question; only it and the question are computed
    anew     the beginning of the tail went, the rest was computed anew at its new place
    shifted  the rest was moved there instead, by llama.cpp's shift of positions
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

from llmasos.kernel.driver import Option
from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.values import Message, Role

from . import gguf, options
from .cpp import Model, lib, load
from .placement import place
from .text import Texts

WINDOW = 4_096
_OPTIONS: dict[str, Option] = {"slots": 1, "window": WINDOW, "nice": 0}


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of what conversation."""

    system: str
    tail: Sequence[tuple[str, str]]  # role, text
    page: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """Of one layout."""

    loss: float  # mean negative log-likelihood of the answer's tokens
    computed: int  # tokens, when the page came back or the beginning went


class Line:
    """A context of one sequence."""

    def __init__(self, model: Model, threads: int) -> None:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = WINDOW
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context: Any = lib.llama_init_from_model(model.handle, parameters)
        if not self._context:
            raise DeviceFault(f"no context of {WINDOW} tokens")
        self._memory: Any = lib.llama_get_memory(self._context)
        self._batch: Any = lib.llama_batch_init(WINDOW, 0, 1)
        self._size = model.vocab.size
        self.length = 0

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, True)
        self.length = 0

    def read(self, tokens: Sequence[int], *, scored: int = 0) -> list[float]:
        """Decode after what is there; the losses of the last `scored` tokens."""
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
        """Take tokens away and move what follows to their place."""
        if not lib.llama_memory_seq_rm(self._memory, 0, first, end):
            raise DeviceFault("tokens in the midst cannot be taken away")
        lib.llama_memory_seq_add(self._memory, 0, end, -1, first - end)
        self.length -= end - first


class Bench:
    """Scores every layout of a case."""

    def __init__(self, model: Model, threads: int) -> None:
        self._texts, self._line = Texts(model), Line(model, threads)

    def score(self, case: Case) -> dict[str, Score]:
        block = f"From earlier:\n{case.page}\n\n"
        half = len(case.tail) // 2
        head = [Message(Role.SYSTEM, case.system)]
        tail = [Message(Role(role), text) for role, text in case.tail]
        asked = Message(Role.USER, f"{block}{case.question}")
        first = Message(tail[0].role, f"{block}{tail[0].content}")
        before = [*head, first, *tail[1:], Message(Role.USER, case.question)]
        return {
            "before": self._fresh(before, case.answer, keeps=head),
            "after": self._fresh([*head, *tail, asked], case.answer, keeps=[*head, *tail]),
            "anew": self._fresh([*head, *tail[half:], asked], case.answer, keeps=head),
            "shifted": self._shifted([head, tail[:half], tail[half:]], asked, case.answer),
        }

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        return self._texts.compose(messages, raw=False)

    def _kept(self, messages: Sequence[Message]) -> int:
        """Tokens of messages at the beginning of a prompt, without the opening of an answer."""
        one, two = (
            self._tokens([*messages, Message(Role.USER, text)]) for text in ("left", "right")
        )
        pairs = zip(one, two, strict=False)
        return next(at for at, (left, right) in enumerate(pairs) if left != right)

    def _fresh(self, messages: Sequence[Message], answer: str, keeps: Sequence[Message]) -> Score:
        prompt, said = self._tokens(messages), self._texts.tokenize(answer)
        self._line.clear()
        losses = self._line.read([*prompt, *said], scored=len(said))
        return Score(math.fsum(losses) / len(said), len(prompt) - self._kept(keeps))

    def _shifted(self, parts: Sequence[list[Message]], asked: Message, answer: str) -> Score:
        head, gone, rest = parts
        whole = self._tokens([*head, *gone, *rest, asked])
        first, end = self._kept(head), self._kept([*head, *gone])
        stays = self._kept([*head, *gone, *rest])
        said = self._texts.tokenize(answer)
        self._line.clear()
        self._line.read(whole[:stays])
        self._line.drop(first, end)
        losses = self._line.read([*whole[stays:], *said], scored=len(said))
        return Score(math.fsum(losses) / len(said), len(whole) - stays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    path: Path = parser.parse_args().model
    settings = place(options.settings(path, gguf.read(path), _OPTIONS)).settings
    bench = Bench(load(settings), settings.threads)
    for fields in json.load(sys.stdin):
        scores = bench.score(Case(**fields))
        told = {name: [round(one.loss, 5), one.computed] for name, one in scores.items()}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
