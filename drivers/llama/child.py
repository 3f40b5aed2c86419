"""The engine's process: reads commands, answers texts, computes steps, dies with its kernel.

    python -m llmasos.drivers.llama.child SOCKET_FD KERNEL_PID

Four threads: a reader cuts frames off the socket, the main thread does the text work that takes
time (its alarm limits the templates), one compiles grammars, the engine thread alone owns the
context. The end of the
socket is the end of the process: at once, as a context must not be freed while a step computes.
"""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Sequence
from queue import SimpleQueue
from typing import NoReturn

from llmasos.drivers.door import Door, lower, outermost, thread, tie_to
from llmasos.drivers.frames import ANSWER, UP, Frame
from llmasos.kernel import limits
from llmasos.kernel.driver import Step
from llmasos.kernel.errors import SyscallError, TooBig
from llmasos.kernel.values import Message, Role, Sampling
from llmasos.kernel.wire import build

from . import frames
from .cpp import Context, Model, load
from .embed import Embedder, window
from .engine import Engine, Sides
from .grammar import Grammars
from .placement import Placement, place
from .text import Texts

_SWITCH_S = 0.0005  # how long a text waits for the engine thread's Python
_SHORT_CHARS = 16_384  # about 4 ms
_CAPABILITIES = (
    "tokenize", "seed", "template", "park", "exact_usage", "grammar", "logprobs", "bias", "stop",
    "embed", "share", "deterministic",
)  # fmt: skip


def main(fd: int, kernel_pid: int) -> NoReturn:
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_S)
    tie_to(kernel_pid)
    door = Door(fd)
    texts: SimpleQueue[Frame] = SimpleQueue()
    commands: SimpleQueue[Frame] = SimpleQueue()
    loaded: list[Texts] = []
    checks: SimpleQueue[Frame] = SimpleQueue()
    queues = dict.fromkeys((frames.LOAD, frames.TOKENIZE, frames.COMPOSE, frames.EMBED), texts)
    queues[frames.CHECK] = checks
    thread(frames.NAME, lambda: _read(door, queues, commands, loaded))
    ready: SimpleQueue[SyscallError | None] = SimpleQueue()
    try:
        placement = place(frames.Settings(**texts.get()[1]))
        settings = placement.settings
        model = load(settings, lambda done: door.send([frames.LOADING, float(done)]))
        answers = Texts(model)
        loaded.append(answers)
        sides = Sides(Grammars(model.vocab), Embedder(model, settings))
        engine = Engine(Context(model, settings), model.vocab, settings, commands, sides)
        thread(frames.NAME, lambda: _check(checks, sides.grammars, door))
        thread(frames.NAME, lambda: _compute(engine, settings.nice, ready, door))
        if (fault := ready.get()) is not None:
            raise fault
    except SyscallError as error:
        door.refuse(0, error)
        os._exit(1)
    door.send([UP, _facts(model, placement, engine)])
    while True:
        frame = texts.get()
        if frame[0] == frames.EMBED:
            _embed(frame, answers, commands, door, window(settings))
        else:
            _answer(frame, answers, door)


def _read(
    door: Door, queues: "dict[int, SimpleQueue[Frame]]",
    commands: "SimpleQueue[Frame]", loaded: Sequence[Texts],
) -> None:  # fmt: skip
    """Each frame to its thread, those without one to the engine thread.

    A short text is tokenized here: beside an engine that computes, waking another thread for it
    takes longer than the work.
    """

    def take(frame: Frame) -> None:
        if frame[0] == frames.TOKENIZE and loaded and len(frame[2]) <= _SHORT_CHARS:
            _answer(frame, loaded[0], door)
        else:
            queues.get(frame[0], commands).put(frame)

    with contextlib.suppress(ConnectionError):
        door.read(take)
    os._exit(0)


def _compute(
    engine: Engine, nice: int, ready: "SimpleQueue[SyscallError | None]", door: Door
) -> None:
    """The engine thread. Its computing threads inherit the niceness: texts and kernel go first."""
    lower(nice)
    try:
        engine.warm()
    except SyscallError as error:
        ready.put(error)
        return
    ready.put(None)

    def tell(steps: Sequence[Step]) -> None:
        door.send([frames.STEPS, *map(frames.step_out, steps)])

    with contextlib.suppress(ConnectionError):
        engine.serve(tell, door.send)


def _answer(frame: Frame, texts: Texts, door: Door) -> None:
    """One text request; a refusal is an answer, too."""
    number: int = frame[1]
    try:
        if frame[0] == frames.COMPOSE:
            tokens, cuts = _compose(frame, texts)
        else:
            tokens, cuts = texts.tokenize(frame[2]), []
        door.send([ANSWER, number, frames.tokens_out(tokens), cuts])
    except SyscallError as error:
        door.refuse(number, error)


def _check(checks: "SimpleQueue[Frame]", grammars: Grammars, door: Door) -> None:
    """The thread of the grammars: one that takes long to compile holds up no text."""
    while True:
        _, number, values = checks.get()
        try:
            grammars.matcher(build(Sampling, values))
            door.send([ANSWER, number, b"", []])
        except SyscallError as error:
            door.refuse(number, error)


def _embed(
    frame: Frame, texts: Texts, commands: "SimpleQueue[Frame]", door: Door, most: int
) -> None:
    """Tokenize here; the engine thread computes and answers."""
    _, number, text, name = frame
    try:
        tokens = texts.to_embed(text)
        if len(tokens) > most:
            words = f"{name} has {len(tokens)} tokens, a vector is made of at most {most}"
            raise TooBig(words, "embed it in parts")
        commands.put([frames.EMBED, number, tokens])
    except SyscallError as error:
        door.refuse(number, error)


def _compose(frame: Frame, texts: Texts) -> tuple[list[int], list[list[str | int]]]:
    _, _, pairs, raw, fresh = frame
    messages = [Message(Role(role), content) for role, content in pairs]
    tokens = texts.compose(messages, raw=raw)
    last = messages[len(messages) - fresh :]
    return tokens, [frames.cuts_out(texts.cuts(message.content)) for message in last]


def _facts(model: Model, placement: Placement, engine: Engine) -> dict[str, object]:
    settings = placement.settings
    return {
        "slots": settings.slots,
        "width": settings.width,
        "window": settings.window,
        "cells": settings.slots * settings.window,
        "os_pid": os.getpid(),
        **placement.facts(),
        "capabilities": list(_CAPABILITIES),
        "vocab": model.vocab.size,
        "turn": limits.PROMPT_QUANTUM_TOKENS if settings.chunk_s else settings.window,
        "deterministic": settings.deterministic,
        "parked_bytes": settings.parked_bytes,
        "context_bytes": engine.context_bytes,
        "token_bytes": engine.token_bytes,
    }


if __name__ == "__main__":
    outermost(frames.NAME, lambda: main(int(sys.argv[1]), int(sys.argv[2])))
