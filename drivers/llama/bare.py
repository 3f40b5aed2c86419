"""The bare loop: what llama.cpp does with the same work when nothing stands in between.

    python -m llmasos.drivers.llama.bare --model FILE --sequences 16 --prompt-tokens 88 --new 48

The rival of `llmasos bench`, so it is as fast as it can be: one context with the engine's own
settings, all prompts fed in full batches first, then one batch a step for all sequences, greedy by
numpy, nobody served. One JSON line for each repeat. The end of an answer is never chosen, as with
`ignore_eos`, so both sides generate the same number of tokens.
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

from llmasos.drivers.stops import Scan

from . import gguf, options
from .cpp import Context, Model, Run, load
from .frames import Settings


@dataclass(frozen=True, slots=True)
class Times:
    """One repeat."""

    prefill_s: float
    decode_s: float
    answers: list[list[int]]


def main() -> None:
    arguments = _arguments()
    if not options.SPIN.keys() & os.environ.keys():
        # OpenMP reads its settings when it is loaded; both sides wait in the same way.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **options.SPIN})
    model_path = Path(arguments.model)
    chosen = options.settings(model_path, gguf.read(model_path), _options(arguments))
    model = load(chosen)
    prompts = _prompts(arguments, model)
    context = Context(model, chosen)
    _warm(context)
    for _ in range(arguments.repeats):
        times = run(context, model, prompts, arguments.new)
        print(json.dumps(_report(times, model, prompts, chosen)), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=88)
    parser.add_argument("--new", type=int, default=48, help="tokens to generate a sequence")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--batch", type=int, default=0, help="tokens of a prefill batch")
    parser.add_argument("--window", type=int, default=0, help="tokens a slot; 0: the default")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1, help="of the random prompts")
    parser.add_argument("--prompts", default="", help="a JSON file: a list of lists of token ids")
    parser.add_argument("--repeats", type=int, default=1)
    return parser.parse_args()


def _options(arguments: argparse.Namespace) -> dict[str, bool | int | float | str]:
    if arguments.nice:
        os.nice(arguments.nice)
    names = {"slots": arguments.sequences, "threads": arguments.threads}
    names |= {"batch": arguments.batch, "window": arguments.window}
    return {name: value for name, value in names.items() if value}


def _prompts(arguments: argparse.Namespace, model: Model) -> list[list[int]]:
    if arguments.prompts:
        prompts: list[list[int]] = json.loads(Path(arguments.prompts).read_text())
        return prompts[: arguments.sequences]
    chance = random.Random(arguments.seed)
    plain = [token for token in range(model.vocab.size) if model.vocab.piece(token)]
    count = arguments.prompt_tokens
    return [chance.choices(plain, k=count) for _ in range(arguments.sequences)]


def _warm(context: Context) -> None:
    context.decode([Run(0, 0, [0], asks=True)])
    context.keep(0, 0)


def run(context: Context, model: Model, prompts: list[list[int]], new: int) -> Times:
    """All prompts, then all answers; the slots are empty before and after."""
    banned = np.fromiter(model.vocab.ends, np.intp)
    begin = time.perf_counter()
    tokens = _prefill(context, prompts, banned)
    fed = time.perf_counter()
    answers = [[token] for token in tokens]
    ends = [len(prompt) for prompt in prompts]
    for step in range(new - 1):
        runs = [
            Run(slot, ends[slot] + step, [token], asks=True) for slot, token in enumerate(tokens)
        ]
        asked = context.decode(runs)
        tokens = [_greedy(context, asked[slot], banned) for slot in range(len(prompts))]
        for answer, token in zip(answers, tokens, strict=True):
            answer.append(token)
    done = time.perf_counter()
    for slot in range(len(prompts)):
        context.keep(slot, 0)
    return Times(fed - begin, done - fed, answers)


def _prefill(context: Context, prompts: list[list[int]], banned: NDArray[np.intp]) -> list[int]:
    """Full batches, one prompt after the other; returns the first token of each answer."""
    first: dict[int, int] = {}
    runs: list[Run] = []
    room = context.batch_tokens
    for slot, prompt in enumerate(prompts):
        at = 0
        while at < len(prompt):
            size = min(room, len(prompt) - at)
            runs.append(Run(slot, at, prompt[at : at + size], asks=at + size == len(prompt)))
            at, room = at + size, room - size
            if room == 0 or (at == len(prompt) and slot == len(prompts) - 1):
                for asked, index in context.decode(runs).items():
                    first[asked] = _greedy(context, index, banned)
                runs, room = [], context.batch_tokens
    return [first[slot] for slot in range(len(prompts))]


def _greedy(context: Context, index: int, banned: NDArray[np.intp]) -> int:
    scores = context.logits(index)
    scores[banned] = -np.inf
    return int(scores.argmax())


def _report(
    times: Times, model: Model, prompts: list[list[int]], chosen: Settings
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
