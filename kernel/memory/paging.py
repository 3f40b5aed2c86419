"""Plans the window of a call, before any page moves.

While all pages of a process fit, its window only grows. After that a request recalls the pages that
it needs, placed just before it, and a call that does not fit compacts the window first. Pinned
pages and system prompts stay. The engine composes the prompt (composing.py), so its size is exact.
A request larger than the window is stored whole; a part of it is in the window, and a notice says
so.
"""

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..abi import limits
from ..abi.errors import TooBig
from ..abi.values import Generate, Message, Role
from ..driver import Cut, Engine, Facts, Prompt
from ..process.table import Process
from ..recall.ranking import Ranked, fill
from . import rows
from .composing import CallWindow, Composer, Outdated, message_key
from .layout import LINE_TOKENS, Use, kept_cuts, questions_of, recalled, trimmed, victims
from .memory import Memory
from .recall import RecallHit, Wanted, find
from .rows import NewPage, TurnRecord
from .table import KeptWindow, PageTable, Piece
from .vector_index import VectorIndex


@dataclass(frozen=True, slots=True)
class PagingPlan:
    """What a call will see and write. No page has moved yet."""

    prompt: Prompt
    fresh: Sequence[Message]
    max_tokens: int
    window: Sequence[Piece] = ()  # the part of the old window that stays
    kept: Sequence[Sequence[int]] = ()  # by new message: indexes of its pages in the window
    cuts: Sequence[Sequence[Cut]] = ()  # the new messages cut into pages
    recalled: Sequence[RecallHit] = ()
    evicted: Sequence[int] = ()
    # Tokens of the old pages in the window, by number.
    sizes: Mapping[int, int] = field(default_factory=dict[int, int])
    notices: Sequence[str] = ()
    pages: frozenset[int] = frozenset()  # ids of the stored pages in the prompt

    def turn(self, process: Process, call: int, answer: Sequence[Cut], author: str) -> TurnRecord:
        """The record to write when the call has answered.

        `author`: the caller, the author of all messages of the request; the answer's is the model.
        """
        requested = [(m.role, cuts) for m, cuts in zip(self.fresh, self.cuts, strict=True)]
        whole = [*((role, cuts, author) for role, cuts in requested)]
        whole.append((Role.ASSISTANT, answer, process.model))
        pages = [
            NewPage(c.text, c.tokens, role, by, message, speaker=_speaker(process, role))
            for message, (role, cuts, by) in enumerate(whole)
            for c in cuts
        ]
        return TurnRecord(
            call, pages, self.kept, [*(role for role, _ in requested), Role.ASSISTANT], self.window,
            {hit.page.number: hit.ranked.parts for hit in self.recalled}, self.evicted,
            "room for a request", self.sizes,
        )  # fmt: skip

    def seen(self, written: Sequence[int]) -> list[int]:
        """Numbers of the pages that the call saw. `written`: the turn's pages, if it was written.

        Pages of a request that were not in the window are left out.
        """
        found, at = list(self.sizes), 0
        for cuts, kept in zip(self.cuts, self.kept, strict=True):
            found += [written[at + index] for index in kept if written]
            at += len(cuts)
        return [*found, *written[at:]]


def _speaker(process: Process, role: Role) -> str:
    return process.app if role is Role.ASSISTANT else process.owner


class Pager:
    """Makes the plans of calls."""

    def __init__(self, memory: Memory, vectors: VectorIndex) -> None:
        self._memory, self._vectors = memory, vectors
        self._composer = Composer(memory)
        self._lost: set[int] = set()  # pids whose next prompt goes to the engine as tokens

    async def prepare(
        self, process: Process, request: Generate, engine: Engine, facts: Facts
    ) -> PagingPlan:
        """Plan a call; changes nothing. E2BIG with the numbers when it cannot fit."""
        compose = self._composer.compose
        if process.pid in self._lost:
            self._lost.discard(process.pid)
            compose = self._composer.compose_once
        while True:
            epoch = self._memory.forgets
            table = await self._memory.opened(process)
            view = CallWindow(process, table, epoch, raw=request.raw)
            draft = _Draft(view, request, facts, partial(compose, engine=engine))
            with suppress(Outdated):
                return await self._planned(draft)

    def lost(self, process: Process) -> None:
        """The engine no longer had the prompt of the process's call.

        The next one is not kept by the engine, so it cannot be lost again: each call has an end.
        """
        self._lost.add(process.pid)

    def written(
        self, process: Process, plan: PagingPlan, turn: TurnRecord, numbers: Sequence[int]
    ) -> None:
        """A turn was written under these page numbers: note which messages the engine keeps."""
        table = self._memory.tables.get(process.pid)
        kept = table.kept if table is not None else None
        if table is None or kept is None or kept.prompt != plan.prompt.kept or not numbers:
            return
        if not all(plan.cuts):  # an empty message is in the prompt, and has no page in the window
            return
        ids = {hit.page.number: hit.page.id for hit in plan.recalled}
        for number in numbers:  # as they were written: a page may be replaced already
            found = table.at(number)
            if found is None:
                return
            ids[number] = found.page(number)
        keys = [message_key(piece, ids) for piece in rows.pieces(turn, numbers, 0)]
        has_answer = sum(map(len, plan.cuts)) < len(numbers)
        table.kept = KeptWindow(kept.prompt, kept.raw, [*kept.keys, *keys], has_answer)

    async def _planned(self, draft: "_Draft") -> PagingPlan:
        """The plan of a draft. Outdated; E2BIG."""
        table, request = draft.view.table, draft.request
        prompt = await draft.compose(fresh=len(request.messages))
        draft.set_cuts(prompt)
        if table.tokens > draft.window // 2:
            self._vectors.ensure_indexing()
        if draft.fits(prompt.size) and not draft.has_pages_outside():
            return draft.plan(prompt)
        if request.overflow == "error" and not draft.fits(prompt.size):
            raise draft.too_big(prompt.size)
        await self._add_recalled(table, draft)
        if draft.fits(prompt.size) and not draft.recalled:
            return draft.plan(prompt)
        return await self._compacted(table, draft, prompt.size)

    async def _add_recalled(self, table: PageTable, draft: "_Draft") -> None:
        """Recall pinned pages that are not in the window, and pages that the request needs."""
        draft.recalled = await self._pinned(table)
        if draft.has_pages_outside() and draft.request.recall and not draft.request.raw:
            draft.recalled += await self._recalled(table, draft)

    async def _pinned(self, table: PageTable) -> list[RecallHit]:
        """The pinned pages that are not in the window."""
        here = table.resident()
        numbers = [n for n, mark in table.marks.items() if mark.pinned and n not in here]
        stored = await self._memory.stored(table, sorted(numbers))
        return [RecallHit(p, Ranked(p.id, 0.0, p.tokens, {"pinned": 1.0})) for p in stored.values()]

    async def _recalled(self, table: PageTable, draft: "_Draft") -> list[RecallHit]:
        """The pages outside the window that the request needs."""
        room = min(int(draft.window * limits.RECALL_SHARE), draft.recall_room())
        if room <= 0:
            return []
        skip = draft.resident() | {hit.page.number for hit in draft.recalled}
        best: dict[int, RecallHit] = {}
        notes: list[str] = []
        for question in questions_of(draft.request.messages):
            wanted = Wanted(question, count=limits.BACK, skip=skip)
            found = await find(self._memory, self._vectors, table, wanted)
            for hit in found.hits:
                if hit.ranked.score < found.threshold:
                    break
                known = best.get(hit.page.id)
                if known is None or known.ranked.score < hit.ranked.score:
                    best[hit.page.id] = hit
            notes += [found.note] if found.note and not self._vectors.device.disabled else []
        draft.notices = list(dict.fromkeys(notes))
        ranked = sorted((hit.ranked for hit in best.values()), key=lambda one: -one.score)
        chosen = fill(ranked, room, LINE_TOKENS)
        if not chosen:  # the best page may be larger than the share
            chosen = fill(ranked[:1], draft.recall_room(), LINE_TOKENS)
        return [best[one.page] for one in chosen]

    async def _compacted(self, table: PageTable, draft: "_Draft", size: int) -> PagingPlan:
        """Compact until the call fits by the engine's count. E2BIG when nothing more can leave."""
        size += sum(hit.page.tokens + LINE_TOKENS for hit in draft.recalled)
        for _ in range(limits.COMPOSE_TRIES):
            over = size + draft.reserve - draft.window
            if over > 0:
                first = not draft.evicted
                draft.shrink(over)
                if first and draft.evicted:  # the request may need a page that was just evicted
                    await self._add_recalled(table, draft)
            prompt = await draft.compose(fresh=0)
            size = prompt.size
            if draft.fits(size):
                return draft.plan(prompt)
        raise draft.too_big(size)


class Compose(Protocol):
    """Composes a window and new messages."""

    def __call__(
        self, window: CallWindow, new: Sequence[Message], *, fresh: int
    ) -> Awaitable[Prompt]: ...


class _Draft:
    """A plan under construction."""

    def __init__(self, view: CallWindow, request: Generate, facts: Facts, compose: Compose) -> None:
        window = facts.window
        self.view, self._compose = view, compose
        self.request, self.window, self._trained = request, window, facts.trained
        self._process, self._table = view.process, view.table
        wanted = request.sampling.max_tokens
        self.reserve = wanted or min(limits.MAX_TOKENS, window // 4)
        self.evicted: list[int] = []
        self.recalled: list[RecallHit] = []
        self.cuts: Sequence[Sequence[Cut]] = ()
        self.kept: list[list[int]] = []
        self.notices: list[str] = []

    async def compose(self, *, fresh: int) -> Prompt:
        """The prompt as the plan is now. Outdated."""
        return await self._compose(self.view, self._new_messages(), fresh=fresh)

    def set_cuts(self, prompt: Prompt) -> None:
        """Take over the new messages as the engine cut them into pages."""
        self.cuts = prompt.cuts
        self.kept = [list(range(len(cuts))) for cuts in prompt.cuts]

    def resident(self) -> frozenset[int]:
        """Numbers of the pages in the window that are not evicted."""
        return frozenset(self._table.resident().difference(self.evicted))

    def has_pages_outside(self) -> bool:
        """Whether there are pages outside the window."""
        table = self._table
        erased = sum(1 for mark in table.marks.values() if mark.page == 0)
        return sum(one.count for one in table.ranges) - erased > len(self.resident())

    def fits(self, size: int) -> bool:
        return size + self.reserve <= self.window

    def recall_room(self) -> int:
        """Tokens that recalled pages may take: the window minus all that has to be in it."""
        recalled_sizes = sum(hit.page.tokens + LINE_TOKENS for hit in self.recalled)
        fresh = sum(cut.tokens for cuts in self.cuts for cut in cuts)
        fixed = sum(self.view.sizes[number] for number in self._fixed())
        template_tokens = 2 * LINE_TOKENS * len(self.cuts)
        return self.window - self.reserve - fresh - fixed - recalled_sizes - template_tokens

    def _fixed(self) -> set[int]:
        """Numbers of the pages that compaction never evicts."""
        system = {n for p in self.view.pieces if p.role is Role.SYSTEM for n in p.pages}
        return system | {n for n in self.view.numbers() if self._table.pinned(n)}

    def _new_messages(self) -> list[Message]:
        """The messages after the window, as the engine gets them."""
        new = list(self.request.messages)
        if self.cuts:
            new = trimmed(new, self.cuts, self.kept)
        block = recalled([hit.page for hit in self.recalled])
        if block:
            at = next((i for i, m in enumerate(new) if m.role is Role.USER), 0)
            new[at] = Message(new[at].role, f"{block}\n{new[at].content}")
        return new

    def shrink(self, over: int) -> None:
        """Free at least `over` tokens: old pages first, then recalled pages, then the request's.

        E2BIG when no page of the request would be left.
        """
        size = self.window - self.reserve + over
        sizes = self.view.sizes
        least = max(over, int(self.window * limits.COMPACT_SHARE)) if not self.evicted else over
        evicted = victims(self.view.pieces, sizes, self._uses(), self._fixed(), least)
        self.evicted += evicted
        self.view.drop(set(evicted))
        over -= sum(sizes[number] for number in evicted)
        while over > 0 and self.recalled and not self._table.pinned(self.recalled[-1].page.number):
            over -= self.recalled.pop().page.tokens + LINE_TOKENS
        if over > 0:
            self._trim(over)
            if not any(self.kept):
                raise self.too_big(size)

    def _uses(self) -> dict[int, Use]:
        now = self._table.messages
        uses: dict[int, Use] = {}
        for piece in self.view.pieces:
            for number in piece.numbers():
                mark = self._table.marks.get(number)
                uses[number] = Use(now - piece.message, mark.uses if mark is not None else 0)
        return uses

    def _trim(self, over: int) -> None:
        """Keep a part of a request that does not fit the window by itself."""
        if self.request.overflow == "error" or self.request.raw:
            return
        kept_tokens = sum(self.cuts[i][j].tokens for i, kept in enumerate(self.kept) for j in kept)
        fixed = {i for i, m in enumerate(self.request.messages) if m.role is Role.SYSTEM}
        self.kept = kept_cuts(self.cuts, fixed, kept_tokens - over)
        whole = sum(len(cuts) for cuts in self.cuts)
        tokens = sum(cut.tokens for cuts in self.cuts for cut in cuts)
        others = "are not read" if self._process.single else "are stored outside it"
        self.notices[:] = [
            f"the request has {tokens} tokens, the window {self.window}: "
            f"{sum(map(len, self.kept))} of its {whole} pages are in the window, the others "
            f"{others}"
        ]

    def plan(self, prompt: Prompt) -> PagingPlan:
        room = self.window - prompt.size
        wanted = self.request.sampling.max_tokens
        recalled_sizes = {hit.page.number: hit.page.tokens for hit in self.recalled}
        sizes = {number: self.view.sizes[number] for number in self.view.numbers()}
        pages = {self.view.ids[number] for number in sizes}
        pages.update(hit.page.id for hit in self.recalled)
        return PagingPlan(
            prompt, self.request.messages, wanted or min(limits.MAX_TOKENS, room), self.view.pieces,
            self.kept, self.cuts, self.recalled, self.evicted, sizes | recalled_sizes, self.notices,
            frozenset(pages),
        )  # fmt: skip

    def too_big(self, prompt: int) -> TooBig:
        process, window = self._process, self.window
        wanted = self.request.sampling.max_tokens
        before = sum(self.view.sizes[number] for number in self.view.numbers())
        needs = prompt + (wanted or limits.MAX_TOKENS)
        answer = f" and {wanted} are requested for the answer" if wanted else ""
        return TooBig(
            f"the prompt has {prompt} tokens ({before} of them earlier pages of process "
            f"{process.pid}){answer}; the window has {window}",
            "; ".join(filter(None, ["shorten the request", self._pins(), self._larger(needs)])),
        )

    def _pins(self) -> str:
        """A hint to unpin pages of the prompt; empty when none is pinned."""
        sizes = {number: self.view.sizes[number] for number in self.view.numbers()}
        sizes |= {hit.page.number: hit.page.tokens for hit in self.recalled}
        pinned = {number: size for number, size in sizes.items() if self._table.pinned(number)}
        if not pinned:
            return ""
        taken = f"pinned pages take {sum(pinned.values())} tokens"
        return f"{taken}: `llmasos mem pin {self._process.pid} {min(pinned)} --off`"

    def _larger(self, needs: int) -> str:
        """A hint with the commands for a larger window, if the model supports one."""
        model, larger = self._process.model, -(-needs // limits.PAGE_TOKENS) * limits.PAGE_TOKENS
        most = min(self._trained or limits.WINDOW_MAX, limits.WINDOW_MAX)
        if larger > most:
            return f"the call needs {needs} tokens, a window of {model} has at most {most}"
        commands = f"`llmasos unmount {model}`, `llmasos mount {model} --set window={larger}`"
        return f"or mount the model with a larger window: {commands}"
