"""The kernel's side of the engine: starts the child, speaks with it, and outlives it.

Whatever ends the child (a bad model, a segfault, an abort, the OOM killer, a hang) ends the calls
in flight and nothing else: the listener hears `down` with the reason, and the child is started
again after a growing pause, until it has died too often. Nothing here polls: the pauses and the
watch for hangs are timers of the event loop.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmasos.kernel import limits
from llmasos.kernel.driver import Admission, Listener, Option, Prompt, Vectors
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError, TooBig
from llmasos.kernel.values import Message, Sampling

from . import frames
from .gguf import read
from .link import Link, launch
from .options import check_memory, settings


class LlamaEngine:
    """One mounted model."""

    def __init__(self, path: Path, options: Mapping[str, Option], log: Path) -> None:
        self._path, self._log = path, log
        self._options = dict(options)
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._deaths: deque[float] = deque()

    async def start(self, listener: Listener) -> None:
        """Load; returns after `listener.up`."""
        self._listener = listener
        link = await self._launch()
        listener.up(link.facts)
        self._task = asyncio.create_task(self._supervise(link))

    async def _launch(self) -> Link:
        header = await asyncio.to_thread(read, self._path)
        chosen = settings(self._path, header, self._options)
        check_memory(chosen, header)
        self._link = await launch(chosen, self._log, self._listener)
        return self._link

    async def _supervise(self, link: Link) -> None:
        """Wait for its death, tell it, start it again."""
        while True:
            reason = await asyncio.shield(link.ended)
            self._link = None
            final = self._count_death()
            self._listener.down(reason, final=final)
            while not final:
                await asyncio.sleep(self._pause())
                try:
                    link = await self._launch()
                    break
                except SyscallError as error:
                    final = self._count_death()
                    if final:
                        self._listener.down(error.message, final=True)
            if final:
                return
            self._listener.up(link.facts)

    def _count_death(self) -> bool:
        """True when it died too often to be started again."""
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > limits.CRASHES_S:
            self._deaths.popleft()
        return len(self._deaths) > limits.CRASHES

    def _pause(self) -> float:
        doubled: float = limits.RESTART_FIRST_S * 2 ** (len(self._deaths) - 1)
        return min(limits.RESTART_LAST_S, doubled)

    async def stop(self) -> None:
        """End the child: ask, then kill. Calls in flight get no further step."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._link is not None:
            await self._link.close()
            self._link = None

    # --- texts --------------------------------------------------------------------------------
    async def tokenize(self, text: str) -> Sequence[int]:
        """The tokens of a plain text: names of control tokens are text, too."""
        tokens, _ = await self._up().ask([frames.TOKENIZE, 0, text])
        return frames.tokens_in(tokens)

    async def compose(self, messages: Sequence[Message], *, raw: bool, fresh: int) -> Prompt:
        """`raw`: joined as they are; names of control tokens then are those tokens."""
        if not 0 <= fresh <= len(messages):
            words = f"{fresh} of {len(messages)} messages to be cut"
            raise SyscallError(Errno.EINVAL, words, "fresh counts the last messages")
        pairs = [[message.role, message.content] for message in messages]
        tokens, cuts = await self._up().ask([frames.COMPOSE, 0, pairs, raw, fresh])
        return Prompt(frames.tokens_in(tokens), [frames.cuts_in(flat) for flat in cuts])

    async def check(self, sampling: Sampling) -> None:
        """Grammars are compiled once here, in the child, before the call gets a slot. ETIMEDOUT."""
        for token in sampling.bias:
            if not 0 <= int(token) < self._up().facts.vocab:
                last = self._up().facts.vocab - 1
                raise SyscallError(Errno.EINVAL, f"bias of token {token}: 0 to {last} exist")
        if sampling.grammar is None and sampling.schema is None:
            return
        try:
            async with asyncio.timeout(limits.GRAMMAR_S):
                await self._up().ask([frames.CHECK, 0, sampling])
        except TimeoutError:
            words = f"the grammar was not compiled within {limits.GRAMMAR_S:g} s"
            raise SyscallError(Errno.ETIMEDOUT, words, "make it smaller, or try later") from None

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One request a text: each answer is a sign of life, and who leaves leaves the rest."""
        vectors: list[bytes] = []
        tokens = 0
        for index, text in enumerate(texts):
            name = f"text {index + 1} of {len(texts)}"
            vector, [count] = await self._up().ask([frames.EMBED, 0, text, name])
            vectors.append(vector)
            tokens += count
            _check_reply(len(texts), len(vector))
        return Vectors(len(vectors[0]) // 4 if vectors else 0, vectors, tokens)

    def _up(self) -> Link:
        if self._link is None:
            raise DeviceFault("the engine is down", "it is being started again: try later")
        return self._link

    # --- commands: dropped while the engine is down -------------------------------------------
    def forget(self, history: int) -> None:
        if self._link is not None:
            self._link.forget(history)

    def admit(self, admission: Admission) -> None:
        if self._link is not None:
            self._link.admit(admission)

    def grant(self, call: int, tokens: int) -> None:
        if self._link is not None:
            self._link.grant(call, tokens)

    def cancel(self, call: int) -> None:
        if self._link is not None:
            self._link.cancel(call)

    def park(self, call: int) -> None:
        if self._link is not None:
            self._link.park(call)

    def unpark(self, call: int, slot: int) -> None:
        if self._link is not None:
            self._link.unpark(call, slot)


def _check_reply(texts: int, size: int) -> None:
    """E2BIG when so many vectors of so many bytes are more than a reply holds."""
    most = (limits.FRAME_BYTES - 1024) // (size + 8)
    if texts > most:
        words = f"{texts} vectors of {size} bytes are more than a reply holds ({most})"
        raise TooBig(words, "embed fewer texts a call")
