"""The engine's process: reads commands, answers texts, computes steps, dies with its kernel.

    python -m llmasos.drivers.llama.child SOCKET_FD KERNEL_PID

Four threads: a reader cuts frames off the socket, the main thread does the text work that takes
time (its alarm limits the templates), one compiles grammars, the engine thread alone owns the
context. The end of the
socket is the end of the process: at once, as a context must not be freed while a step computes.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

from llmasos.kernel import limits
from llmasos.kernel.driver import Step
from llmasos.kernel.errors import SyscallError, TooBig
from llmasos.kernel.values import Message, Role, Sampling
from llmasos.kernel.wire import Frames, build

from . import frames
from .cpp import Context, Model, load
from .embed import Embedder, window
from .engine import Engine, Sides
from .grammar import Grammars
from .placement import Placement, place
from .text import Texts

_READ_BYTES = 1024 * 1024
_OOM_SCORE = "300"  # when memory runs out, the engine goes before the kernel does
_SWITCH_S = 0.0005  # how long a text waits for the engine thread's Python
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_SHORT_CHARS = 16_384  # about 4 ms
_CAPABILITIES = (
    "tokenize", "seed", "template", "park", "exact_usage", "grammar", "logprobs", "bias", "stop",
    "embed", "share", "deterministic",
)  # fmt: skip


class Door:
    """The socket. Two threads write, so each frame is encoded and sent under one lock."""

    __slots__ = ("_lock", "_socket")

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def send(self, frame: frames.Frame) -> None:
        with self._lock:
            self._socket.sendall(frames.encode(frame))

    def refuse(self, number: int, error: SyscallError) -> None:
        self.send([frames.REFUSED, number, int(error.errno), error.message, error.hint])

    def send_steps(self, steps: Sequence[Step]) -> None:
        self.send([frames.STEPS, *map(frames.step_out, steps)])

    def read(self, take: Callable[[frames.Frame], None]) -> None:
        """Hand over every frame until the kernel is gone."""
        cutter = Frames(frames.FRAME_BYTES)
        while data := self._socket.recv(_READ_BYTES):
            for body in cutter.feed(data):
                take(frames.decode(body))


def main(fd: int, kernel_pid: int) -> NoReturn:
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_S)
    _tie_to(kernel_pid)
    # The kernel decides when the engine ends: a ctrl-C in the terminal is meant for the kernel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    door = Door(fd)
    texts: SimpleQueue[frames.Frame] = SimpleQueue()
    commands: SimpleQueue[frames.Frame] = SimpleQueue()
    loaded: list[Texts] = []
    checks: SimpleQueue[frames.Frame] = SimpleQueue()
    queues = dict.fromkeys((frames.LOAD, frames.TOKENIZE, frames.COMPOSE, frames.EMBED), texts)
    queues[frames.CHECK] = checks
    _thread(lambda: _read(door, queues, commands, loaded))
    ready: SimpleQueue[SyscallError | None] = SimpleQueue()
    try:
        placement = place(frames.Settings(**texts.get()[1]))
        settings = placement.settings
        model = load(settings, lambda done: door.send([frames.LOADING, float(done)]))
        answers = Texts(model)
        loaded.append(answers)
        sides = Sides(Grammars(model.vocab), Embedder(model, settings))
        engine = Engine(Context(model, settings), model.vocab, settings, commands, sides)
        _thread(lambda: _check(checks, sides.grammars, door))
        _thread(lambda: _compute(engine, settings.nice, ready, door))
        if (fault := ready.get()) is not None:
            raise fault
    except SyscallError as error:
        door.refuse(0, error)
        os._exit(1)
    door.send([frames.UP, _facts(model, placement)])
    while True:
        frame = texts.get()
        if frame[0] == frames.EMBED:
            _embed(frame, answers, commands, door, window(settings))
        else:
            _answer(frame, answers, door)


def _read(
    door: Door, queues: "dict[int, SimpleQueue[frames.Frame]]",
    commands: "SimpleQueue[frames.Frame]", loaded: Sequence[Texts],
) -> None:  # fmt: skip
    """Each frame to its thread, those without one to the engine thread.

    A short text is tokenized here: beside an engine that computes, waking another thread for it
    takes longer than the work.
    """

    def take(frame: frames.Frame) -> None:
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
    if nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    try:
        engine.warm()
    except SyscallError as error:
        ready.put(error)
        return
    ready.put(None)
    with contextlib.suppress(ConnectionError):
        engine.serve(door.send_steps, door.send)


def _answer(frame: frames.Frame, texts: Texts, door: Door) -> None:
    """One text request; a refusal is an answer, too."""
    number: int = frame[1]
    try:
        if frame[0] == frames.COMPOSE:
            tokens, cuts = _compose(frame, texts)
        else:
            tokens, cuts = texts.tokenize(frame[2]), []
        door.send([frames.ANSWER, number, frames.tokens_out(tokens), cuts])
    except SyscallError as error:
        door.refuse(number, error)


def _check(checks: "SimpleQueue[frames.Frame]", grammars: Grammars, door: Door) -> None:
    """The thread of the grammars: one that takes long to compile holds up no text."""
    while True:
        _, number, values = checks.get()
        try:
            grammars.matcher(build(Sampling, values))
            door.send([frames.ANSWER, number, b"", []])
        except SyscallError as error:
            door.refuse(number, error)


def _embed(
    frame: frames.Frame, texts: Texts, commands: "SimpleQueue[frames.Frame]", door: Door, most: int
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


def _compose(frame: frames.Frame, texts: Texts) -> tuple[list[int], list[list[str | int]]]:
    _, _, pairs, raw, fresh = frame
    messages = [Message(Role(role), content) for role, content in pairs]
    tokens = texts.compose(messages, raw=raw)
    last = messages[len(messages) - fresh :]
    return tokens, [frames.cuts_out(texts.cuts(message.content)) for message in last]


def _facts(model: Model, placement: Placement) -> dict[str, object]:
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
    }


def _tie_to(kernel_pid: int) -> None:
    """Die when the kernel does, however it dies."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
        # A core file would hold the texts of everybody, and take seconds to write.
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != kernel_pid:
        os._exit(0)  # it died before the tie was made


def _thread(body: Callable[[], None]) -> None:
    threading.Thread(target=_outermost, args=(body,), daemon=True).start()


def _outermost(body: Callable[[], None]) -> None:
    """A bug ends the process. Its message might hold a person's text, so only its place is told."""
    try:
        body()
    except BaseException as error:
        traceback.print_tb(error.__traceback__)
        sys.stderr.write(f"{type(error).__name__} in a thread of the engine\n")
        sys.stderr.flush()
        os._exit(70)


if __name__ == "__main__":
    _outermost(lambda: main(int(sys.argv[1]), int(sys.argv[2])))
