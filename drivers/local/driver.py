"""The kernel's side of the engine: starts the child process, sends it requests, restarts it.

Whatever ends the child (a bad model, a segfault, an abort, the OOM killer, a hang) ends the calls
in flight and nothing else: the listener gets `down` with the reason, and the child is restarted
(drivers/restart.py).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmasos.drivers.prompts import last_messages
from llmasos.drivers.restart import Restarter
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Message, Sampling, check_biased
from llmasos.kernel.driver import (
    Admission,
    Beginning,
    Cut,
    Death,
    Facts,
    Keep,
    Listener,
    Prompt,
    Vectors,
)

from . import frames
from .frames import EngineSettings
from .gguf import Header, read
from .link import EngineLink, Program, launch
from .parked import ParkedCalls

log = logging.getLogger(__name__)
# Errors of one engine that another one may not have. It is EINVAL that concerns the file.
_REFUSALS = (Errno.EIO, Errno.ENOMEM, Errno.ENOTSUP)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine that can load a file."""

    name: str
    program: Program
    prepare: Callable[[Path, Header], EngineSettings]  # ENOMEM: the file does not fit


@dataclass(frozen=True, slots=True)
class Choices:
    """The engines to try for a file, in this order; `note`: why not another one."""

    engines: Sequence[EngineChoice]
    note: str


# Gets the header of the file, and a function that reports the progress of a measurement, 0 to 1.
Choose = Callable[[Header, Callable[[float], None]], Awaitable[Choices]]


def only(choice: EngineChoice) -> Choose:
    """This engine, whatever the file is."""

    async def choose(_header: Header, _report: Callable[[float], None]) -> Choices:
        return Choices([choice], "")

    return choose


class LocalEngine:
    """One mounted model. `choose`: the engines for its file.

    They are tried in order. The one that was up once is kept: a restart does not change it.
    """

    def __init__(self, path: Path, choose: Choose, log: Path) -> None:
        self._path, self._choose, self._log = path, choose, log
        self._kept: EngineChoice | None = None  # the engine that was up
        self._note = ""  # why this engine
        self._child = Restarter(frames.NAME, self._launch)
        self.parked = ParkedCalls()
        self._trained = 0  # tokens of its training context; set when its file is read

    async def start(self, listener: Listener) -> None:
        """Load; returns after `listener.up`."""
        self._listener = listener
        self.parked.open()
        try:
            await self._child.start(self._up, self._down)
        except BaseException:
            self.parked.close()
            raise

    def _up(self, link: EngineLink) -> None:
        link.restore()
        self._listener.up(self._facts(link))

    def _down(self, death: Death) -> None:
        """Parked calls are kept for the next process, unless the engine has failed."""
        if death.failed:
            self.parked.clear()
        self.parked.free_unused()
        self._listener.down(replace(death, kept=self.parked.numbers))

    def _facts(self, link: EngineLink) -> Facts:
        facts = link.facts
        return replace(facts, trained=self._trained, placement=facts.placement + self._note)

    async def _launch(self) -> EngineLink:
        header = await asyncio.to_thread(read, self._path)
        self._trained = header.facts.context
        if self._kept is not None:
            return await self._start_child(self._kept, header)
        choices = await self._choose(header, lambda done: self._listener.loading(done, "measure"))
        refusals: list[SyscallError] = []
        notes = [choices.note]
        for choice in choices.engines:
            try:
                link = await self._start_child(choice, header)
            except SyscallError as error:
                if error.errno not in _REFUSALS:
                    raise
                log.warning("%s cannot load %s: %s", choice.name, self._path, error.message)
                refusals.append(error)
                notes = [*notes, f"not {choice.name}: {error.message}"]
            else:
                self._kept = choice
                self._note = "".join(f"; {text}" for text in notes if text)
                return link
        raise _refused(choices.engines, refusals)

    async def _start_child(self, choice: EngineChoice, header: Header) -> EngineLink:
        chosen = choice.prepare(self._path, header)
        return await launch(chosen, choice.program, self._log, self._listener, self.parked)

    async def stop(self) -> None:
        """End the child. Calls in flight get no further step."""
        await self._child.stop()
        self.parked.close()

    @property
    def sent_bytes(self) -> int:
        return self._child.current.sent_bytes if self._child.current is not None else 0

    def retry(self) -> None:
        self._child.retry()

    async def restart(self) -> None:
        await self._child.restart()

    # --- texts --------------------------------------------------------------------------------
    async def tokenize(self, text: str) -> Sequence[int]:
        """The tokens of a text. Names of control tokens in it are ordinary text."""
        [tokens] = await self._child.running.ask([frames.TOKENIZE, 0, text])
        return frames.tokens_in(tokens)

    async def cut(self, text: str) -> Sequence[Cut]:
        [lengths] = await self._child.running.ask([frames.CUT, 0, text])
        return frames.lengths_in(text, lengths)

    async def compose(
        self, messages: Sequence[Message], *, raw: bool, fresh: int, keep: Keep | None = None
    ) -> Prompt:
        """`raw`: contents are joined verbatim, names of control tokens become those tokens."""
        last = last_messages(messages, fresh)
        kept = [] if keep is None else _kept(keep)
        request = [frames.COMPOSE, 0, _pairs(messages), raw, fresh, kept]
        return _prompt(await self._child.running.ask(request), last, keep)

    async def extend(
        self, beginning: Beginning, messages: Sequence[Message], *, fresh: int, keep: Keep
    ) -> Prompt | None:
        last = last_messages(messages, fresh)
        first = [beginning.prompt, beginning.messages, beginning.answered]
        request = [frames.EXTEND, 0, first, _pairs(messages), fresh, _kept(keep)]
        values = await self._child.running.ask(request)
        return _prompt(values, last, keep) if values else None

    async def check(self, sampling: Sampling, domain: str = "") -> None:
        """Compile the grammar in the child, before the call gets a slot. EINVAL, ETIMEDOUT.

        ENOTSUP for lookup that this mount does not offer.
        """
        check_biased(sampling.bias, self._child.running.facts.vocab)
        if sampling.lookup and "lookup" not in self._child.running.facts.capabilities:
            why = "it is deterministic, or its model cannot drop computed tokens"
            raise SyscallError(
                Errno.ENOTSUP, f"this mount does not support lookup: {why}", "leave it out"
            )
        if sampling.grammar is None and sampling.schema is None:
            return
        try:
            async with asyncio.timeout(limits.GRAMMAR_S):
                await self._child.running.ask([frames.CHECK, 0, sampling, domain])
        except TimeoutError:
            message = f"the grammar was not compiled within {limits.GRAMMAR_S:g} s"
            raise SyscallError(Errno.ETIMEDOUT, message, "use a smaller grammar") from None

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One request per text: each answer resets the watchdog; cancelling stops the rest."""
        vectors: list[bytes] = []
        tokens = 0
        for index, text in enumerate(texts):
            name = f"text {index + 1} of {len(texts)}"
            vector, [count] = await self._child.running.ask([frames.EMBED, 0, text, name])
            vectors.append(vector)
            tokens += count
        return Vectors(len(vectors[0]) // 4 if vectors else 0, vectors, tokens)

    # --- commands: dropped while the engine is down, unless they concern parked calls ---------
    def forget(self, history: int) -> None:
        if (link := self._child.current) is not None:
            link.forget(history)

    def purge(self, domain: str) -> None:
        self.parked.purge(domain)
        if (link := self._child.current) is not None:
            link.purge(domain)
        else:
            self.parked.free_unused()

    def admit(self, admission: Admission) -> None:
        if (link := self._child.current) is not None:
            link.admit(admission)

    def grant(self, call: int, tokens: int) -> None:
        if (link := self._child.current) is not None:
            link.grant(call, tokens)

    def cancel(self, call: int) -> None:
        self.parked.cancel(call)  # in case that the process ends before it
        if (link := self._child.current) is not None:
            link.cancel(call)

    def park(self, call: int, *, keep: bool) -> None:
        if (link := self._child.current) is not None:
            link.park(call, keep)

    def unpark(self, call: int, slot: int, save: int = 0) -> None:
        if (link := self._child.current) is not None:
            link.unpark(call, slot, save)

    def order(self, calls: Sequence[int], once: int) -> None:
        if (link := self._child.current) is not None:
            link.send([frames.ORDER, list(calls), once])

    def drop(self, number: int) -> None:
        if (link := self._child.current) is not None:
            link.send([frames.DROP, number])

    def clear(self, slot: int) -> None:
        if (link := self._child.current) is not None:
            link.send([frames.CLEAR, slot])


def _refused(engines: Sequence[EngineChoice], refusals: Sequence[SyscallError]) -> SyscallError:
    """The error of the last engine, with those of the others. ENOMEM if memory may help one."""
    last = refusals[-1]
    if len(refusals) == 1:
        return last
    words = [f"{one.name}: {error.message}" for one, error in zip(engines, refusals, strict=True)]
    if any(error.errno is Errno.ENOMEM for error in refusals):
        return SyscallError(Errno.ENOMEM, "; ".join(words), last.hint)
    return DeviceFault("; ".join(words), last.hint)


def _pairs(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in messages]


def _kept(keep: Keep) -> list[Any]:
    return [keep.number, keep.history, keep.domain]


def _prompt(values: Sequence[Any], last: Sequence[Message], keep: Keep | None) -> Prompt:
    """The prompt of an answer to COMPOSE or EXTEND. `last`: the messages that were cut."""
    count, digest, tokens, lengths = values
    cuts = [frames.lengths_in(m.content, flat) for m, flat in zip(last, lengths, strict=True)]
    number = 0 if keep is None else keep.number
    return Prompt(frames.tokens_in(tokens), cuts, count=count, kept=number, digest=digest)
