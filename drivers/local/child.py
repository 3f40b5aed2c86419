"""The process of an engine: reads commands, tokenizes texts, computes steps, ends with its kernel.

Four threads: a reader takes frames from the socket; the main thread does the text work that takes
time (SIGALRM limits the templates); one compiles grammars; the engine thread alone uses the
context. When the socket is closed the process exits at once, because a context must not be freed
while a step computes.
"""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any, NoReturn

from llmasos.drivers.child_runtime import (
    ParentConnection,
    exit_with_parent,
    lower_priority,
    start_thread,
)
from llmasos.drivers.frames import ANSWER, UP, Frame
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import SyscallError, TooBig
from llmasos.kernel.abi.values import Sampling
from llmasos.kernel.abi.wire import build
from llmasos.kernel.driver import Step

from . import frames
from .composing import TextRequests
from .context import Context, VectorContext, Vocab
from .embed import Embedder, window
from .engine import BatchEngine, EngineParts
from .frames import EngineSettings
from .grammar import Grammars
from .identity import fingerprint, identity
from .sampler import Bounds
from .shared_memory import SharedMemory
from .text import Texts

_SWITCH_S = 0.0005  # how long a text waits for the GIL of the engine thread
_SHORT_CHARS = 16_384  # tokenized in about 4 ms
_TEXTS = (frames.TOKENIZE, frames.CUT, frames.COMPOSE, frames.EXTEND)
_DROPS = (frames.FORGET, frames.PURGE)
_CAPABILITIES = (
    "tokenize", "seed", "template", "park", "exact_usage", "grammar", "logprobs", "bias", "stop",
    "embed", "share", "order", "deterministic",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that a library has loaded."""

    settings: EngineSettings
    vocab: Vocab
    template: str  # the chat template; empty: the file has none
    context: Callable[[], Context]  # called by the engine thread, which alone uses it
    vectors: Callable[[], VectorContext]  # creates a context for embeddings
    facts: Mapping[str, object]  # its placement and hardware, for UP
    library: str  # its name and version
    turn: int = limits.PROMPT_QUANTUM_TOKENS  # tokens of one prompt before the next prompt's turn


# Gets the values of LOAD, and a function that reports the progress, 0 to 1.
Load = Callable[[dict[str, Any], Callable[[float], None]], Loaded]


def main(fd: int, kernel_pid: int, load: Load) -> NoReturn:
    """Serve the kernel at this socket; `load` loads the model."""
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_S)
    exit_with_parent(kernel_pid)
    parent = ParentConnection(fd)
    texts: SimpleQueue[Frame] = SimpleQueue()
    commands: SimpleQueue[Frame] = SimpleQueue()
    ready_texts: list[TextRequests] = []
    checks: SimpleQueue[Frame] = SimpleQueue()
    queues = {kind: [texts] for kind in (frames.LOAD, *_TEXTS, frames.EMBED)}
    queues |= {frames.CHECK: [checks]} | {kind: [texts, commands] for kind in _DROPS}
    start_thread(frames.NAME, lambda: _read(parent, queues, commands, ready_texts))
    ready: SimpleQueue[SyscallError | BatchEngine] = SimpleQueue()
    try:
        _, values, memory = texts.get()
        file = fingerprint(values["path"])
        loaded = load(values, lambda done: parent.send([frames.LOADING, float(done)]))
        settings, vocab = loaded.settings, loaded.vocab
        requests = TextRequests(Texts(vocab, loaded.template))
        ready_texts.append(requests)
        grammars = Grammars(vocab)
        bounds = Bounds(vocab, grammars)
        parts = EngineParts(
            bounds, Embedder(loaded.vectors), requests.prompts,
            None if memory is None else SharedMemory(memory),
            identity(file, loaded.library, asdict(settings)),
        )  # fmt: skip
        start_thread(frames.NAME, lambda: _check(checks, grammars, parent))
        start_thread(frames.NAME, lambda: _compute(loaded, parts, commands, ready, parent))
        if isinstance(engine := ready.get(), SyscallError):
            raise engine
    except SyscallError as error:
        parent.send_error(0, error)
        os._exit(1)
    parent.send([UP, _facts(loaded, engine)])
    while True:
        frame = texts.get()
        if frame[0] == frames.EMBED:
            _embed(frame, requests.texts, commands, parent, window(settings))
        elif frame[0] in _DROPS:
            requests.drop(frame)
        else:
            _answer(frame, requests, parent)


def _read(
    parent: ParentConnection, queues: "dict[int, list[SimpleQueue[Frame]]]",
    commands: "SimpleQueue[Frame]", loaded: Sequence[TextRequests],
) -> None:  # fmt: skip
    """Queue each frame for its threads; those without one for the engine thread.

    Prompts are dropped by the thread that composes them, so that none is kept that was composed
    before the command; a call that was admitted before it has its prompt from here. A short text is
    tokenized here: while the engine computes, waking another thread takes longer than the work.
    """

    def handle(frame: Frame) -> None:
        if frame[0] == frames.TOKENIZE and loaded and len(frame[2]) <= _SHORT_CHARS:
            _answer(frame, loaded[0], parent)
            return
        if frame[0] == frames.ADMIT:
            frame[5] = loaded[0].prompt(frame[5], frame[4])
        for queue in queues.get(frame[0], [commands]):
            queue.put(frame)

    with contextlib.suppress(ConnectionError):
        parent.read(handle)
    os._exit(0)


def _compute(
    loaded: Loaded, parts: EngineParts, commands: "SimpleQueue[Frame]",
    ready: "SimpleQueue[SyscallError | BatchEngine]", parent: ParentConnection,
) -> None:  # fmt: skip
    """The engine thread. Its worker threads inherit the niceness: texts and the kernel go first."""
    lower_priority(loaded.settings.nice)
    try:
        engine = BatchEngine(loaded.context(), loaded.settings, commands, parts)
        engine.warm()
    except SyscallError as error:
        ready.put(error)
        return
    ready.put(engine)

    def report(steps: Sequence[Step]) -> None:
        parent.send([frames.STEPS, *map(frames.step_out, steps)])

    with contextlib.suppress(ConnectionError):
        engine.serve(report, parent.send)


def _answer(frame: Frame, requests: TextRequests, parent: ParentConnection) -> None:
    """Answer one text request, with REFUSED for an error."""
    number: int = frame[1]
    try:
        parent.send([ANSWER, number, *requests.answer(frame)])
    except SyscallError as error:
        parent.send_error(number, error)


def _check(checks: "SimpleQueue[Frame]", grammars: Grammars, parent: ParentConnection) -> None:
    """The grammar thread: a grammar that takes long to compile does not delay texts."""
    while True:
        _, number, values, domain = checks.get()
        try:
            grammars.matcher(build(Sampling, values), domain)
            parent.send([ANSWER, number, b"", []])
        except SyscallError as error:
            parent.send_error(number, error)


def _embed(
    frame: Frame, texts: Texts, commands: "SimpleQueue[Frame]", parent: ParentConnection, most: int
) -> None:
    """Tokenize a text; the engine thread computes the vector and answers."""
    _, number, text, name = frame
    try:
        tokens = texts.to_embed(text)
        if len(tokens) > most:
            message = f"{name} has {len(tokens)} tokens, an embedding takes at most {most}"
            raise TooBig(message, "split the text and embed the parts")
        commands.put([frames.EMBED, number, tokens])
    except SyscallError as error:
        parent.send_error(number, error)


def _facts(loaded: Loaded, engine: BatchEngine) -> dict[str, object]:
    settings, size = loaded.settings, engine.state_size
    lookup = ["lookup"] if engine.drafts.enabled else []
    return {
        "slots": settings.slots,
        "width": settings.width,
        "window": settings.window,
        "cells": settings.slots * settings.window,
        "os_pid": os.getpid(),
        **loaded.facts,
        "capabilities": [*_CAPABILITIES, *lookup],
        "vocab": loaded.vocab.size,
        "turn": loaded.turn if settings.chunk_s else settings.window,
        "deterministic": settings.deterministic,
        "parked_bytes": settings.parked_bytes,
        "kept_bytes": limits.KEPT_BYTES,
        "context_bytes": size.fixed,
        "token_bytes": size.token,
    }
