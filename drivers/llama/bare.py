"""The bare loop: llama.cpp on the same workload without LLMasOS.

    python -m llmasos.drivers.llama.bare --model FILE --sequences 16 --prompt-tokens 88 --new 48

The baseline of `llmasos bench`, as fast as possible: one context with the engine's settings, all
prompts fed in full batches first, then one batch a step for all sequences, greedy sampling by
numpy, no clients. It prints one JSON line per repeat. End tokens are banned, as with `ignore_eos`,
so both sides generate the same number of tokens. Its flags are the design choices of the engine:
`llmasos bench choices` measures them.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.local import gguf
from llmasos.drivers.local.context import Run
from llmasos.drivers.local.threads import Threads
from llmasos.drivers.stops import Scan

from . import options
from .context import LlamaContext
from .model import LlamaModel, load
from .placement import place
from .settings import LlamaSettings

_WAITS = {
    *options.SPIN,
    "OMP_WAIT_POLICY",
}  # variables with which the caller sets how OpenMP threads wait


@dataclass(frozen=True, slots=True)
class Times:
    """One repeat."""

    prefill_s: float
    decode_s: float
    answers: list[list[int]]


def main() -> None:
    arguments = _arguments()
    if not _WAITS & os.environ.keys():
        # OpenMP reads its settings when it is loaded. Both sides use the same ones.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **options.SPIN})
    model_path = Path(arguments.model)
    chosen = options.settings(model_path, gguf.read(model_path), _options(arguments))
    chosen = place(chosen).settings
    model = load(chosen)
    prompts = _prompts(arguments, model)
    context = LlamaContext(model, chosen)
    loop = Loop(
        context,
        model,
        arguments.shared_prefix,
        Threads(chosen.threads) if arguments.adaptive else None,
    )
    loop.warm()
    for _ in range(arguments.repeats):
        times = loop.run(prompts, arguments.new)
        print(json.dumps(_report(times, model, prompts, chosen)), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=88)
    parser.add_argument("--new", type=int, default=48, help="tokens to generate per sequence")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument(
        "--adaptive", action="store_true", help="fewer threads while other programs use cores"
    )
    parser.add_argument("--no-flash", action="store_true", help="disable flash attention")
    parser.add_argument("--unified", action="store_true", help="one KV pool for all sequences")
    parser.add_argument(
        "--shared-prefix",
        type=int,
        default=0,
        metavar="N",
        help="the first N tokens of all prompts are equal and computed once",
    )
    parser.add_argument("--batch", type=int, default=0, help="tokens per prefill batch")
    parser.add_argument("--window", type=int, default=0, help="tokens per slot; 0: the default")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1, help="seed of the random prompts")
    parser.add_argument("--prompts", default="", help="a JSON file: a list of lists of token ids")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    if not 0 <= arguments.shared_prefix < arguments.prompt_tokens:
        parser.error("--shared-prefix must be less than --prompt-tokens")
    return arguments


def _options(arguments: argparse.Namespace) -> dict[str, bool | int | float | str]:
    if arguments.nice:
        os.nice(arguments.nice)
    names = {"slots": arguments.sequences, "threads": arguments.threads}
    names |= {"batch": arguments.batch, "window": arguments.window}
    chosen: dict[str, bool | int | float | str] = {k: n for k, n in names.items() if n}
    chosen |= {"flash": False} if arguments.no_flash else {}
    return chosen | ({"unified": True} if arguments.unified else {})


def _prompts(arguments: argparse.Namespace, model: LlamaModel) -> list[list[int]]:
    if arguments.prompts:
        prompts: list[list[int]] = json.loads(Path(arguments.prompts).read_text())
        return prompts[: arguments.sequences]
    chance = random.Random(arguments.seed)
    ordinary = [token for token in range(model.vocab.size) if model.vocab.piece(token)]
    count = arguments.prompt_tokens
    common = chance.choices(ordinary, k=arguments.shared_prefix)
    rest = count - len(common)
    return [common + chance.choices(ordinary, k=rest) for _ in range(arguments.sequences)]


@dataclass(frozen=True, slots=True)
class Loop:
    """The generation loop. The slots are empty before and after each run."""

    context: LlamaContext
    model: LlamaModel
    shared: int  # tokens of the common prefix of all prompts
    threads: Threads | None  # None: the number is constant

    def warm(self) -> None:
        """Compute one token before the measurement."""
        self._decode([Run(0, 0, [0], asks=True)])
        self.context.keep(0, 0)

    def _decode(self, runs: list[Run]) -> dict[int, int]:
        if self.threads is not None:
            self.context.set_threads(self.threads.choose())
        return self.context.decode(runs)

    def run(self, prompts: list[list[int]], new: int) -> Times:
        """Compute all prompts, then all answers."""
        banned = np.fromiter(self.model.vocab.ends, np.intp)
        begin = time.perf_counter()
        tokens = self._prefill(prompts, banned)
        fed = time.perf_counter()
        answers = [[token] for token in tokens]
        for step in range(new - 1):
            asked = self._decode([
                Run(slot, len(prompts[slot]) + step, [token], asks=True)
                for slot, token in enumerate(tokens)
            ])  # fmt: skip
            tokens = [_greedy(self.context, asked[slot], banned) for slot in range(len(prompts))]
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
        done = time.perf_counter()
        for slot in range(len(prompts)):
            self.context.keep(slot, 0)
        return Times(fed - begin, done - fed, answers)

    def _prefill(self, prompts: list[list[int]], banned: NDArray[np.intp]) -> list[int]:
        """Feed the prompts in full batches, in order; the first token of each answer."""
        first: dict[int, int] = {}
        runs: list[Run] = []
        self._share(prompts)
        room = self.context.batch_tokens
        for slot, prompt in enumerate(prompts):
            at = self.shared
            while at < len(prompt):
                size = min(room, len(prompt) - at)
                runs.append(Run(slot, at, prompt[at : at + size], asks=at + size == len(prompt)))
                at, room = at + size, room - size
                if room == 0 or (at == len(prompt) and slot == len(prompts) - 1):
                    for asked, index in self._decode(runs).items():
                        first[asked] = _greedy(self.context, index, banned)
                    runs, room = [], self.context.batch_tokens
        return [first[slot] for slot in range(len(prompts))]

    def _share(self, prompts: list[list[int]]) -> None:
        """Compute the common prefix once and copy it to all slots."""
        size = self.context.batch_tokens
        for at in range(0, self.shared, size):
            part = prompts[0][at : min(self.shared, at + size)]
            self._decode([Run(0, at, part, asks=False)])
        if self.shared:
            for slot in range(1, len(prompts)):
                self.context.copy(0, slot)


def _greedy(context: LlamaContext, index: int, banned: NDArray[np.intp]) -> int:
    scores = context.logits(index)
    scores[banned] = -np.inf
    return int(scores.argmax())


def _report(
    times: Times, model: LlamaModel, prompts: list[list[int]], chosen: LlamaSettings
) -> dict[str, object]:
    tokens = sum(map(len, times.answers))
    text = "\n".join(Scan([]).feed(b"".join(map(model.vocab.piece, a))) for a in times.answers)
    wall_s = times.prefill_s + times.decode_s
    return {
        "tokens": tokens,
        "prompt_tokens": sum(map(len, prompts)),
        "sequences": len(prompts),
        "threads": chosen.threads,
        "wall_s": round(wall_s, 4),
        "prefill_s": round(times.prefill_s, 4),
        "decode_s": round(times.decode_s, 4),
        "tokens_per_s": round(tokens / wall_s, 2),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


if __name__ == "__main__":
    main()
