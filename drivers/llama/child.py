"""The engine's process: reads commands, answers texts, computes steps, dies with its kernel.

    python -m llmasos.drivers.llama.child SOCKET_FD KERNEL_PID

Three threads: a reader cuts frames off the socket, the main thread does the text work that takes
time (its alarm limits the templates), the engine thread alone owns the context. The end of the
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

from llmasos.kernel.driver import Step
from llmasos.kernel.errors import SyscallError
from llmasos.kernel.values import Message, Role
from llmasos.kernel.wire import Frames

from . import frames
from .cpp import Context, Model, load
from .engine import Engine
from .text import Texts

_READ_BYTES = 1024 * 1024
_OOM_SCORE = "300"  # when memory runs out, the engine goes before the kernel does
_SWITCH_S = 0.0005  # how long a text waits for the engine thread's Python
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_SHORT_CHARS = 16_384  # about 4 ms
_CAPABILITIES = ("tokenize", "seed", "template", "park", "exact_usage")


class Door:
    """The socket. Two threads write, so each frame is encoded and sent under one lock."""

    __slots__ = ("_lock", "_socket")

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def send(self, frame: frames.Frame) -> None:
        with self._lock:
            self._socket.sendall(frames.encode(frame))

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
    _thread(lambda: _read(door, texts, commands, loaded))
    settings = frames.Settings(**texts.get()[1])
    ready: SimpleQueue[SyscallError | None] = SimpleQueue()
    try:
        model = load(settings)
        answers = Texts(model)
        loaded.append(answers)
        engine = Engine(Context(model, settings), model.vocab, settings, commands)
        _thread(lambda: _compute(engine, settings.nice, ready, door))
        if (fault := ready.get()) is not None:
            raise fault
    except SyscallError as error:
        door.send([frames.REFUSED, 0, int(error.errno), error.message, error.hint])
        os._exit(1)
    door.send([frames.UP, _facts(model, settings)])
    while True:
        _answer(texts.get(), answers, door)


def _read(
    door: Door, texts: "SimpleQueue[frames.Frame]", commands: "SimpleQueue[frames.Frame]",
    loaded: Sequence[Texts],
) -> None:  # fmt: skip
    """Texts to the main thread, the rest to the engine thread.

    A short text is tokenized here: beside an engine that computes, waking another thread for it
    takes longer than the work.
    """
    for_main = (frames.LOAD, frames.TOKENIZE, frames.COMPOSE)

    def take(frame: frames.Frame) -> None:
        if frame[0] == frames.TOKENIZE and loaded and len(frame[2]) <= _SHORT_CHARS:
            _answer(frame, loaded[0], door)
        else:
            (texts if frame[0] in for_main else commands).put(frame)

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
        engine.serve(door.send_steps)


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
        door.send([frames.REFUSED, number, int(error.errno), error.message, error.hint])


def _compose(frame: frames.Frame, texts: Texts) -> tuple[list[int], list[list[str | int]]]:
    _, _, pairs, raw, fresh = frame
    messages = [Message(Role(role), content) for role, content in pairs]
    tokens = texts.compose(messages, raw=raw)
    last = messages[len(messages) - fresh :]
    return tokens, [frames.cuts_out(texts.cuts(message.content)) for message in last]


def _facts(model: Model, settings: frames.Settings) -> dict[str, object]:
    return {
        "slots": settings.slots,
        "width": settings.width,
        "window": settings.window,
        "cells": settings.slots * settings.window,
        "os_pid": os.getpid(),
        "placement": _placement(model, settings),
        "capabilities": list(_CAPABILITIES),
        "vocab": model.vocab.size,
    }


def _placement(model: Model, settings: frames.Settings) -> str:
    threads = f"cpu: {settings.threads} threads"
    if not model.gpu:
        return f"{threads}, this build of llama.cpp has no GPU"
    if not settings.gpu_layers:
        return f"{threads}, gpu_layers is 0"
    return f"gpu: {settings.gpu_layers} layers; {threads}"


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
