"""The kernel's side of the engine: starts the child, speaks with it, and outlives it.

Whatever ends the child (a bad model, a segfault, an abort, the OOM killer, a hang) ends the calls
in flight and nothing else: the listener hears `down` with the reason, and the child is started
again (drivers/restart.py).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmasos.drivers.restart import Restarter
from llmasos.kernel import limits
from llmasos.kernel.driver import Admission, Facts, Listener, Option, Prompt, Vectors
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.values import Message, Sampling, check_biased

from . import frames
from .gguf import read
from .link import Link, launch
from .options import check_memory, settings


class LlamaEngine:
    """One mounted model."""

    def __init__(self, path: Path, options: Mapping[str, Option], log: Path) -> None:
        self._path, self._log = path, log
        self._options = dict(options)
        self._child = Restarter(frames.NAME, self._launch)
        self._trained = 0  # tokens; known once its file was read

    async def start(self, listener: Listener) -> None:
        """Load; returns after `listener.up`."""
        self._listener = listener
        await self._child.start(lambda link: listener.up(self._facts(link)), listener.down)

    def _facts(self, link: Link) -> Facts:
        return replace(link.facts, trained=self._trained)

    async def _launch(self) -> Link:
        header = await asyncio.to_thread(read, self._path)
        self._trained = header.facts.context
        chosen = settings(self._path, header, self._options)
        check_memory(chosen, header)
        return await launch(chosen, self._log, self._listener)

    async def stop(self) -> None:
        """End the child: ask, then kill. Calls in flight get no further step."""
        await self._child.stop()

    def retry(self) -> None:
        self._child.retry()

    async def restart(self) -> None:
        await self._child.restart()

    # --- texts --------------------------------------------------------------------------------
    async def tokenize(self, text: str) -> Sequence[int]:
        """The tokens of a plain text: names of control tokens are text, too."""
        tokens, _ = await self._child.running.ask([frames.TOKENIZE, 0, text])
        return frames.tokens_in(tokens)

    async def compose(self, messages: Sequence[Message], *, raw: bool, fresh: int) -> Prompt:
        """`raw`: joined as they are; names of control tokens then are those tokens."""
        if not 0 <= fresh <= len(messages):
            words = f"{fresh} of {len(messages)} messages to be cut"
            raise SyscallError(Errno.EINVAL, words, "fresh counts the last messages")
        pairs = [[message.role, message.content] for message in messages]
        tokens, cuts = await self._child.running.ask([frames.COMPOSE, 0, pairs, raw, fresh])
        return Prompt(frames.tokens_in(tokens), [frames.cuts_in(flat) for flat in cuts])

    async def check(self, sampling: Sampling) -> None:
        """Grammars are compiled once here, in the child, before the call gets a slot. ETIMEDOUT."""
        check_biased(sampling.bias, self._child.running.facts.vocab)
        if sampling.grammar is None and sampling.schema is None:
            return
        try:
            async with asyncio.timeout(limits.GRAMMAR_S):
                await self._child.running.ask([frames.CHECK, 0, sampling])
        except TimeoutError:
            words = f"the grammar was not compiled within {limits.GRAMMAR_S:g} s"
            raise SyscallError(Errno.ETIMEDOUT, words, "make it smaller, or try later") from None

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One request a text: each answer is a sign of life, and who leaves leaves the rest."""
        vectors: list[bytes] = []
        tokens = 0
        for index, text in enumerate(texts):
            name = f"text {index + 1} of {len(texts)}"
            vector, [count] = await self._child.running.ask([frames.EMBED, 0, text, name])
            vectors.append(vector)
            tokens += count
        return Vectors(len(vectors[0]) // 4 if vectors else 0, vectors, tokens)

    # --- commands: dropped while the engine is down -------------------------------------------
    def forget(self, history: int) -> None:
        if (link := self._child.line) is not None:
            link.forget(history)

    def purge(self, domain: str) -> None:
        if (link := self._child.line) is not None:
            link.purge(domain)

    def admit(self, admission: Admission) -> None:
        if (link := self._child.line) is not None:
            link.admit(admission)

    def grant(self, call: int, tokens: int) -> None:
        if (link := self._child.line) is not None:
            link.grant(call, tokens)

    def cancel(self, call: int) -> None:
        if (link := self._child.line) is not None:
            link.cancel(call)

    def park(self, call: int, *, keep: bool) -> None:
        if (link := self._child.line) is not None:
            link.park(call, keep)

    def unpark(self, call: int, slot: int) -> None:
        if (link := self._child.line) is not None:
            link.unpark(call, slot)
