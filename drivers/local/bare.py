"""The bare loop: an engine's library on a workload without LLMasOS. Shared by the engines.

    python -m llmasos.drivers.ENGINE.bare --model FILE --sequences 16 --prompt-tokens 88 --new 48

The baseline of `llmasos bench`, as fast as possible: one context with the engine's settings, all
prompts fed in full batches first, then one batch a step for all sequences, greedy sampling by
numpy, no clients. It prints one JSON line per repeat. End tokens are banned, as with `ignore_eos`,
so both sides generate the same number of tokens. With `--random-steps N` it computes N steps of
random shapes instead and prints its resident memory after the first ones and at the end.
"""

import argparse
import hashlib
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.stops import Scan

from .context import Context, Run, Vocab
from .threads import Threads

_WARM_STEPS = 300  # of random shapes at most, before the memory is measured
_LONGEST_PIECE, _MOST_TOKENS = 120, 200  # of a random prompt


@dataclass(frozen=True, slots=True)
class Times:
    """One repeat."""

    prefill_s: float
    decode_s: float
    answers: list[list[int]]


def parser(description: str) -> argparse.ArgumentParser:
    """The flags that all engines have."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--model", required=True, help="a GGUF file")
    flags.add_argument("--sequences", type=int, default=16)
    flags.add_argument("--prompt-tokens", type=int, default=88)
    flags.add_argument("--new", type=int, default=48, help="tokens to generate per sequence")
    flags.add_argument("--threads", type=int, default=0, help="0: one per core")
    flags.add_argument(
        "--adaptive", action="store_true", help="fewer threads while other programs use cores"
    )
    flags.add_argument(
        "--shared-prefix",
        type=int,
        default=0,
        metavar="N",
        help="the first N tokens of all prompts are equal and computed once",
    )
    flags.add_argument("--batch", type=int, default=0, help="tokens per prefill batch")
    flags.add_argument("--window", type=int, default=0, help="tokens per slot; 0: the default")
    flags.add_argument("--nice", type=int, default=0)
    flags.add_argument("--seed", type=int, default=1, help="seed of the random prompts")
    flags.add_argument("--prompts", default="", help="a JSON file: a list of lists of token ids")
    flags.add_argument("--repeats", type=int, default=1)
    flags.add_argument(
        "--random-steps", type=int, default=0, metavar="N", help="compute N steps of random shapes"
    )
    return flags


def options(arguments: argparse.Namespace) -> dict[str, bool | int | float | str]:
    """The options of a mount that the flags stand for; sets the priority."""
    if arguments.nice:
        os.nice(arguments.nice)
    names = {"slots": arguments.sequences, "threads": arguments.threads}
    names |= {"batch": arguments.batch, "window": arguments.window}
    return {name: number for name, number in names.items() if number}


def measure(context: Context, vocab: Vocab, arguments: argparse.Namespace) -> None:
    """Run the loop and print a line per repeat."""
    threads = Threads(context.threads) if arguments.adaptive else None
    loop = Loop(context, vocab, arguments.shared_prefix, threads)
    loop.warm()
    if arguments.random_steps:
        print(json.dumps(churn(context, arguments.seed, arguments.random_steps)), flush=True)
        return
    prompts = _prompts(arguments, vocab)
    for _ in range(arguments.repeats):
        times = loop.run(prompts, arguments.new)
        print(json.dumps(_report(times, vocab, prompts, context.threads)), flush=True)


def _prompts(arguments: argparse.Namespace, vocab: Vocab) -> list[list[int]]:
    if arguments.prompts:
        prompts: list[list[int]] = json.loads(Path(arguments.prompts).read_text())
        chosen = prompts[: arguments.sequences]
        common = arguments.shared_prefix
        if len({tuple(one[:common]) for one in chosen}) > 1 or min(map(len, chosen)) <= common:
            raise SystemExit(f"--shared-prefix: the prompts do not share {common} tokens")
        return chosen
    if not 0 <= arguments.shared_prefix < arguments.prompt_tokens:
        raise SystemExit("--shared-prefix must be less than --prompt-tokens")
    chance = random.Random(arguments.seed)
    ordinary = [token for token in range(vocab.size) if vocab.piece(token)]
    count = arguments.prompt_tokens
    common = chance.choices(ordinary, k=arguments.shared_prefix)
    rest = count - len(common)
    return [common + chance.choices(ordinary, k=rest) for _ in range(arguments.sequences)]


@dataclass(frozen=True, slots=True)
class Loop:
    """The generation loop. The slots are empty before and after each run."""

    context: Context
    vocab: Vocab
    shared: int  # tokens of the common prefix of all prompts
    threads: Threads | None  # None: the number is constant

    def warm(self) -> None:
        """Compute each size once that the engine computes before its first call."""
        for size in self.context.trial_sizes:
            self._decode([Run(0, 0, [0] * size, asks=1)])
            self.context.keep(0, 0)

    def _decode(self, runs: list[Run]) -> dict[int, int]:
        if self.threads is not None:
            self.context.set_threads(self.threads.choose())
        return self.context.decode(runs)

    def run(self, prompts: list[list[int]], new: int) -> Times:
        """Compute all prompts, then all answers."""
        banned = np.fromiter(self.vocab.ends, np.intp)
        begin = time.perf_counter()
        tokens = self._prefill(prompts, banned)
        fed = time.perf_counter()
        answers = [[token] for token in tokens]
        for step in range(new - 1):
            asked = self._decode([
                Run(slot, len(prompts[slot]) + step, [token], asks=1)
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
                runs.append(
                    Run(slot, at, prompt[at : at + size], asks=int(at + size == len(prompt)))
                )
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
            self._decode([Run(0, at, part, asks=0)])
        if self.shared:
            for slot in range(1, len(prompts)):
                self.context.copy(0, slot)


def _greedy(context: Context, index: int, banned: NDArray[np.intp]) -> int:
    scores = context.logits(index)
    scores[banned] = -np.inf
    return int(scores.argmax())


def churn(context: Context, seed: int, steps: int) -> dict[str, float]:
    """Compute steps of random shapes; the resident memory after the first ones and at the end."""
    chance = random.Random(seed)
    _random_steps(context, chance, min(steps, _WARM_STEPS))
    before = _resident_mb()
    _random_steps(context, chance, steps)
    return {"before_mb": before, "after_mb": _resident_mb()}


def _random_steps(context: Context, chance: random.Random, steps: int) -> None:
    most = context.batch_tokens // context.slots
    for _ in range(steps):
        runs: list[Run] = []
        for slot in chance.sample(range(context.slots), chance.randint(1, context.slots)):
            size = 1 if chance.random() < 0.8 else chance.randint(1, min(most, _LONGEST_PIECE))
            if context.length(slot) + size > _MOST_TOKENS:
                context.keep(slot, 0)
            tokens = [chance.randrange(context.vocab_size) for _ in range(size)]
            runs.append(Run(slot, context.length(slot), tokens, asks=int(chance.random() < 0.8)))
        context.decode(runs)
    for slot in range(context.slots):
        context.keep(slot, 0)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _report(
    times: Times, vocab: Vocab, prompts: list[list[int]], threads: int
) -> dict[str, object]:
    tokens = sum(map(len, times.answers))
    text = "\n".join(Scan([]).feed(b"".join(map(vocab.piece, a))) for a in times.answers)
    wall_s = times.prefill_s + times.decode_s
    return {
        "tokens": tokens,
        "prompt_tokens": sum(map(len, prompts)),
        "sequences": len(prompts),
        "threads": threads,
        "wall_s": round(wall_s, 4),
        "prefill_s": round(times.prefill_s, 4),
        "decode_s": round(times.decode_s, 4),
        "tokens_per_s": round(tokens / wall_s, 2),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
