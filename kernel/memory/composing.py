"""Composes the prompt of a call from the window of its process and the request.

An engine keeps the prompt that it composed last for a process (kernel/driver.py). While a window
begins with the messages of that prompt, their texts are neither read from the database nor sent
again: the engine extends the prompt. `KeptWindow` in the page table says which messages these are,
by the ids of their pages. A page id has one text for ever, so equal ids are equal texts.
"""

from collections.abc import Mapping, Sequence
from itertools import count

from ..abi.values import Message
from ..driver import Beginning, Engine, Keep, Prompt
from ..process.table import Process
from .layout import Stored, messages
from .memory import Memory
from .table import KeptWindow, MessageKey, PageTable, Piece, without

_NUMBERS = count(1)  # of prompts of all owners: none is given twice while this kernel runs


class Outdated(Exception):
    """A page of the window was forgotten or replaced meanwhile: begin again."""


class CallWindow:
    """The window of a call while it is planned: which pages it has, without their texts."""

    def __init__(self, process: Process, table: PageTable, epoch: int, *, raw: bool) -> None:
        self.process, self.table, self.raw = process, table, raw
        self.epoch = epoch  # of memory.forgets, before anything was read
        resident = table.resident()
        ids = {number: table.page(number) for number in resident}
        self.ids = {n: page for n, page in ids.items() if page is not None and n in table.sizes}
        self.sizes = {number: table.sizes[number] for number in self.ids}
        self.pieces = without(table.window, resident - self.ids.keys())
        self.texts: dict[int, Stored] = {}  # those that were read

    def numbers(self) -> list[int]:
        """Numbers of its pages, in order."""
        return [number for piece in self.pieces for number in piece.numbers()]

    def drop(self, numbers: set[int]) -> None:
        self.pieces = without(self.pieces, numbers)

    def keys(self) -> list[MessageKey]:
        return [message_key(piece, self.ids) for piece in self.pieces]


def message_key(piece: Piece, ids: Mapping[int, int]) -> MessageKey:
    """Identifies the text of a message in the window."""
    pages, recalled = (
        tuple((n, ids[n]) for n in numbers) for numbers in (piece.pages, piece.recalled)
    )
    return piece.role, pages, recalled


class Composer:
    """Composes prompts."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def compose(
        self, window: CallWindow, new: Sequence[Message], engine: Engine, *, fresh: int
    ) -> Prompt:
        """The prompt of a window and new messages, which the engine keeps if it can.

        Outdated: it was not composed, because a page was forgotten or replaced.
        """
        process, table = window.process, window.table
        keep = Keep(next(_NUMBERS), process.pid, process.domain)
        beginning = _beginning(table.kept, window)
        prompt: Prompt | None = None
        if beginning is not None:
            first = beginning.messages + beginning.answered
            rest = await self._messages(window, first)
            prompt = await engine.extend(beginning, [*rest, *new], fresh=fresh, keep=keep)
        if prompt is None:
            whole = [*await self._messages(window), *new]
            prompt = await engine.compose(whole, raw=window.raw, fresh=fresh, keep=keep)
        table.kept = KeptWindow(prompt.kept, window.raw, window.keys()) if prompt.kept else None
        return prompt

    async def compose_once(
        self, window: CallWindow, new: Sequence[Message], engine: Engine, *, fresh: int
    ) -> Prompt:
        """The same, but the engine keeps nothing: the tokens of the prompt come back."""
        whole = [*await self._messages(window), *new]
        return await engine.compose(whole, raw=window.raw, fresh=fresh)

    async def _messages(self, window: CallWindow, first: int = 0) -> list[Message]:
        """The messages of a window from `first` on. Outdated.

        Nothing may wait between this and the request to the engine: a page that is forgotten after
        the check is purged from the engine after that request.
        """
        numbers = [n for piece in window.pieces[first:] for n in piece.numbers()]
        missing = [number for number in numbers if number not in window.texts]
        if missing:
            found = await self._memory.stored(window.table, missing)
            if any(page.id != window.ids[number] for number, page in found.items()):
                raise Outdated
            window.texts |= found
            window.drop({number for number in missing if number not in found})
        if self._memory.forgets != window.epoch:
            raise Outdated
        return messages(window.pieces[first:], window.texts)


def _beginning(kept: KeptWindow | None, window: CallWindow) -> Beginning | None:
    """What a window has in common with the kept prompt; None: nothing."""
    if kept is None or kept.raw != window.raw:
        return None
    same = 0
    for one, other in zip(kept.keys, window.keys(), strict=False):
        if one != other:
            break
        same += 1
    if not same:
        return None
    answered = kept.answered and same == len(kept.keys)
    return Beginning(kept.prompt, min(same, len(kept.keys) - kept.answered), answered)
