"""What is left of the engine's speed after the whole path: ours against the bare loop.

Both sides do the same work on the same file with the same threads: sixteen private prompts of
exactly 88 tokens, 48 greedy tokens each. Ours goes through SDK and socket and is timed from its
first call (the spawns) to its last token; the bare loop is a child process, timed after its load.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from llmasos import AsyncLLMasOS
from llmasos.kernel import values as v
from llmasos.userland.line import Line

from .figures import Bar, Missing, Suite, Take
from .rig import MODEL, Rig, RigError, daemon

SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 16, 88, 48
WORDS = tuple(re.findall("[a-z]+", "the ship left at dawn and nobody knew where it would go next"))
BARE = "llmasos.drivers.llama.bare"
BARS = (
    Bar("throughput.vs_bare", f"{SEQUENCES} processes, SDK to engine and back, over the bare loop",
        "x", "higher", 0.85),
)  # fmt: skip


class BareMissing(Exception):
    """The bare loop did not run."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the ratio, once."""

    rate: float  # generated tokens a second
    digest: str  # of what was said


def prompt(client: Line, repeat: int, index: int) -> str:
    """A text of exactly PROMPT_TOKENS tokens that shares no beginning with another."""
    words = [f"{chr(65 + index)}{repeat}:", *(WORDS * 8)[index : index + PROMPT_TOKENS]]
    while len(tokens(client, " ".join(words))) > PROMPT_TOKENS:
        words.pop()
    while len(tokens(client, " ".join(words))) < PROMPT_TOKENS:
        words.append("and")
    if len(tokens(client, " ".join(words))) != PROMPT_TOKENS:
        raise RigError(f"no text of {PROMPT_TOKENS} tokens was found for {MODEL}")
    return " ".join(words)


def tokens(client: Line, text: str) -> list[int]:
    return client.call("tokenize", v.Tokenize(MODEL, text), v.Tokens).tokens


async def _answer(client: AsyncLLMasOS, text: str, new: int, answers: dict[str, str]) -> None:
    process = await client.spawn(MODEL, app="bench", keep=False)
    reply = await process.generate(text, raw=True, temperature=0, ignore_eos=True, max_tokens=new)
    used = reply.usage
    if (used.prompt_tokens, used.completion_tokens) != (PROMPT_TOKENS, new):
        raise RigError(f"{used.prompt_tokens} tokens were fed, {used.completion_tokens} generated")
    answers[text] = reply.text


async def _all(path: Path, prompts: Sequence[str], new: int) -> Side:
    answers: dict[str, str] = {}
    async with AsyncLLMasOS(socket=path) as client:
        begun = time.perf_counter()
        async with anyio.create_task_group() as group:
            for text in prompts:
                group.start_soon(_answer, client, text, new, answers)
        took = time.perf_counter() - begun
    said = "\n".join(answers[text] for text in prompts)
    digest = hashlib.sha256(said.encode()).hexdigest()
    return Side(round(len(prompts) * new / took, 2), digest)


def ours(rig: Rig, prompts: Sequence[str], new: int) -> Side:
    """Through SDK and socket."""
    try:
        return anyio.run(_all, rig.socket, prompts, new)
    except ExceptionGroup as group:  # one of the sixteen failed, the others were cancelled
        raise RigError(str(group.exceptions[0])) from group


def bare(path: str, prompts: Sequence[Sequence[int]], new: int) -> Side:
    """The bare loop, in a process of its own. BareMissing when it cannot run."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(prompts, file)
        file.flush()
        line = [
            sys.executable, "-m", BARE, "--model", path, "--sequences", str(len(prompts)),
            "--prompts", file.name, "--new", str(new), "--threads", str(os.cpu_count() or 1),
        ]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise BareMissing((done.stderr.strip().splitlines() or ["no message"])[-1])
    said = json.loads(done.stdout.splitlines()[-1])
    if said["tokens"] != len(prompts) * new:
        raise RigError(f"the bare loop made {said['tokens']} tokens, not {len(prompts) * new}")
    return Side(round(said["tokens"] / said["wall_s"], 2), said["text_sha256"])


def take(tiny: bool) -> Take:
    repeats, sequences, new = (1, 2, 4) if tiny else (3, SEQUENCES, NEW_TOKENS)
    mine, theirs, missing = list[Side](), list[Side](), list[Missing]()
    with daemon() as rig, rig.client() as client:
        path = file_of(client)
        ours(rig, [prompt(client, 9, index) for index in range(sequences)], 4)  # warm
        for repeat in range(repeats):
            texts = [prompt(client, repeat, index) for index in range(sequences)]
            mine.append(ours(rig, texts, new))
            try:
                theirs.append(bare(path, [tokens(client, text) for text in texts], new))
            except BareMissing as error:
                missing = [Missing(f"bare llama_decode loop ({error})", "make setup")]
        digest = rig.digest()
    pairs = list(zip(mine, theirs, strict=False))
    facts = {
        "model": digest,
        "threads": os.cpu_count(),
        "ours_tokens_a_second": [side.rate for side in mine],
        "bare_tokens_a_second": [side.rate for side in theirs],
        "same_text": [one.digest == other.digest for one, other in pairs],
    }
    ratios = [round(one.rate / other.rate, 4) for one, other in pairs]
    return Take({"throughput.vs_bare": ratios}, facts, missing)


def file_of(client: Line) -> str:
    images = client.call("images", v.Nothing(), v.Images).images
    return next(image.path for image in images if image.name == MODEL)


SUITE = Suite("throughput", BARS, take)
