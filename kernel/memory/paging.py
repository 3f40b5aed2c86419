"""What a call will see: the plan of a turn, made before anything moves.

As long as all of a process fits, its window only grows. Afterwards a request brings back the pages
that it needs (recall), just before itself, and a call that does not fit compacts the window first.
Pinned pages and system prompts stay. The prompt is composed by the engine, so its size is exact; a
request that is larger than the window is stored whole and stands there in part, never cut unsaid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .. import limits
from ..driver import Cut, Engine, Facts, Prompt
from ..errors import TooBig
from ..process import Process
from ..values import Generate, Message, Role
from .fuse import Ranked, fill
from .layout import (
    LINE_TOKENS,
    Stored,
    Use,
    kept_cuts,
    messages,
    questions_of,
    recalled,
    trimmed,
    victims,
)
from .meaning import Meaning
from .memory import Memory
from .recall import Hit, Wanted, find
from .rows import Turn, Written
from .table import Piece, Table, without


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call will see, and what it will write. Nothing has moved yet."""

    prompt: Prompt
    fresh: Sequence[Message]
    max_tokens: int
    window: Sequence[Piece] = ()  # what stays of the old one
    kept: Sequence[Sequence[int]] = ()  # pieces of the new messages that are in the window
    cuts: Sequence[Sequence[Cut]] = ()  # the new messages as pages
    back: Sequence[Hit] = ()
    evicted: Sequence[int] = ()
    sizes: Mapping[int, int] = field(
        default_factory=dict[int, int]
    )  # tokens of the old pages in it
    notices: Sequence[str] = ()
    pages: frozenset[int] = frozenset()  # ids of the stored pages in the prompt

    def turn(self, process: Process, call: int, answer: Sequence[Cut], author: str) -> Turn:
        """What the call leaves behind when it has answered. `author`: who called, with messages of
        whatever roles; what the model said is the model's."""
        said = [(m.role, cuts) for m, cuts in zip(self.fresh, self.cuts, strict=True)]
        whole = [*((role, cuts, author) for role, cuts in said)]
        whole.append((Role.ASSISTANT, answer, process.model))
        pages = [
            Written(c.text, c.tokens, role, by, message, speaker=_speaker(process, role))
            for message, (role, cuts, by) in enumerate(whole)
            for c in cuts
        ]
        return Turn(
            call, pages, self.kept, [*(role for role, _ in said), Role.ASSISTANT], self.window,
            {hit.page.number: hit.ranked.parts for hit in self.back}, self.evicted,
            "room for a request", self.sizes,
        )  # fmt: skip

    def seen(self, written: Sequence[int]) -> list[int]:
        """Numbers of the pages that the call saw; `written` are those of the turn, if it was kept.

        Of a request larger than the window, not all are among them.
        """
        found, at = list(self.sizes), 0
        for cuts, kept in zip(self.cuts, self.kept, strict=True):
            found += [written[at + index] for index in kept if written]
            at += len(cuts)
        return [*found, *written[at:]]


def _speaker(process: Process, role: Role) -> str:
    return process.app if role is Role.ASSISTANT else process.owner


class Pager:
    """Makes plans."""

    def __init__(self, memory: Memory, meaning: Meaning) -> None:
        self._memory, self._meaning = memory, meaning

    async def prepare(
        self, process: Process, request: Generate, engine: Engine, facts: Facts
    ) -> Plan:
        """Lay out a call; changes nothing. E2BIG with the numbers when it cannot be."""
        table = await self._memory.opened(process)
        held = await self._memory.stored(table, table.resident())
        draft = _Draft(process, table, held, request, facts)
        prompt = await engine.compose(draft.said(), raw=request.raw, fresh=len(request.messages))
        draft.take(prompt)
        if table.tokens > facts.window // 2:
            self._meaning.want(process.owner)
        if draft.fits(prompt.size) and not draft.absent():
            return draft.plan(prompt)
        if request.overflow == "error" and not draft.fits(prompt.size):
            raise draft.too_big(prompt.size)
        await self._bring(table, draft)
        return await self._fitted(table, draft, engine, prompt.size)

    async def _bring(self, table: Table, draft: "_Draft") -> None:
        """What comes back: pinned pages, and those that the request needs."""
        draft.back = await self._pinned(table)
        if draft.absent() and draft.request.recall and not draft.request.raw:
            draft.back += await self._recalled(table, draft)

    async def _pinned(self, table: Table) -> list[Hit]:
        """Pinned pages that are not in the window."""
        here = table.resident()
        numbers = [n for n, mark in table.marks.items() if mark.pinned and n not in here]
        held = await self._memory.stored(table, sorted(numbers))
        return [Hit(p, Ranked(p.id, 0.0, p.tokens, {"pinned": 1.0})) for p in held.values()]

    async def _recalled(self, table: Table, draft: "_Draft") -> list[Hit]:
        """Pages outside the window that the request needs."""
        room = min(int(draft.window * limits.RECALL_SHARE), draft.most_back())
        if room <= 0:
            return []
        skip = draft.here() | {hit.page.number for hit in draft.back}
        best: dict[int, Hit] = {}
        notes: list[str] = []
        for question in questions_of(draft.request.messages):
            wanted = Wanted(question, count=limits.BACK, skip=skip)
            found = await find(self._memory, self._meaning, table, wanted)
            for hit in found.hits:
                if hit.ranked.score < found.clear:
                    break
                known = best.get(hit.page.id)
                if known is None or known.ranked.score < hit.ranked.score:
                    best[hit.page.id] = hit
            notes += [found.note] if found.note and not self._meaning.off else []
        draft.notices = list(dict.fromkeys(notes))
        ranked = sorted((hit.ranked for hit in best.values()), key=lambda one: -one.score)
        chosen = fill(ranked, room, LINE_TOKENS)
        if not chosen:  # the best alone may be larger than the share
            chosen = fill(ranked[:1], draft.most_back(), LINE_TOKENS)
        return [best[one.page] for one in chosen]

    async def _fitted(self, table: Table, draft: "_Draft", engine: Engine, size: int) -> Plan:
        """Compact until the call fits, as the engine counts. E2BIG when nothing more can go."""
        size += sum(hit.page.tokens + LINE_TOKENS for hit in draft.back)
        for _ in range(limits.COMPOSE_TRIES):
            over = size + draft.reserve - draft.window
            if over > 0:
                whole = not draft.evicted
                draft.shrink(over)
                if whole and draft.evicted:  # what has just left may be what the request needs
                    await self._bring(table, draft)
            prompt = await engine.compose(draft.said(), raw=draft.request.raw, fresh=0)
            size = prompt.size
            if draft.fits(size):
                return draft.plan(prompt)
        raise draft.too_big(size)


class _Draft:
    """A plan that is being made."""

    def __init__(
        self, process: Process, table: Table, held: Mapping[int, Stored], request: Generate,
        facts: Facts,
    ) -> None:  # fmt: skip
        window = facts.window
        self.request, self.window, self._trained = request, window, facts.trained
        self._process, self._table, self._held = process, table, held
        wanted = request.sampling.max_tokens
        self.reserve = wanted or min(limits.MAX_TOKENS, window // 4)
        gone = table.resident() - set(held)
        self.pieces = without(table.window, gone)
        self.evicted: list[int] = []
        self.back: list[Hit] = []
        self.cuts: Sequence[Sequence[Cut]] = ()
        self.kept: list[list[int]] = []
        self.notices: list[str] = []

    def take(self, prompt: Prompt) -> None:
        """The new messages as the engine cut them."""
        self.cuts = prompt.cuts
        self.kept = [list(range(len(cuts))) for cuts in prompt.cuts]

    def here(self) -> frozenset[int]:
        """Pages that are in the window, and stay."""
        return frozenset(self._table.resident().difference(self.evicted))

    def absent(self) -> bool:
        """Whether there are pages outside the window."""
        table = self._table
        gone = sum(1 for mark in table.marks.values() if mark.page == 0)
        return sum(one.count for one in table.ranges) - gone > len(self.here())

    def fits(self, size: int) -> bool:
        return size + self.reserve <= self.window

    def most_back(self) -> int:
        """Tokens that pages may take which come back: what the rest needs anyhow stays free."""
        back = sum(hit.page.tokens + LINE_TOKENS for hit in self.back)
        fresh = sum(cut.tokens for cuts in self.cuts for cut in cuts)
        fixed = sum(self._held[number].tokens for number in self._fixed())
        beside = 2 * LINE_TOKENS * len(self.cuts)
        return self.window - self.reserve - fresh - fixed - back - beside

    def _fixed(self) -> set[int]:
        """Pages that never leave by themselves."""
        system = {n for p in self.pieces if p.role is Role.SYSTEM for n in p.pages}
        return system | {n for p in self.pieces for n in p.numbers() if self._table.pinned(n)}

    def said(self) -> list[Message]:
        """The conversation as it would be sent now."""
        new = list(self.request.messages)
        if self.cuts:
            new = trimmed(new, self.cuts, self.kept)
        block = recalled([hit.page for hit in self.back])
        if block:
            at = next((i for i, m in enumerate(new) if m.role is Role.USER), 0)
            new[at] = Message(new[at].role, f"{block}\n{new[at].content}")
        return [*messages(self.pieces, self._held), *new]

    def shrink(self, over: int) -> None:
        """Free so many tokens at least: old pages, then what came back, then of the request.

        E2BIG when nothing of the request would be left.
        """
        size = self.window - self.reserve + over
        sizes = {n: self._held[n].tokens for p in self.pieces for n in p.numbers()}
        least = max(over, int(self.window * limits.COMPACT_SHARE)) if not self.evicted else over
        leaving = victims(self.pieces, sizes, self._uses(), self._fixed(), least)
        self.evicted += leaving
        self.pieces = without(self.pieces, set(leaving))
        over -= sum(sizes[number] for number in leaving)
        while over > 0 and self.back and not self._table.pinned(self.back[-1].page.number):
            over -= self.back.pop().page.tokens + LINE_TOKENS
        if over > 0:
            self._trim(over)
            if not any(self.kept):
                raise self.too_big(size)

    def _uses(self) -> dict[int, Use]:
        now = self._table.messages
        uses: dict[int, Use] = {}
        for piece in self.pieces:
            for number in piece.numbers():
                mark = self._table.marks.get(number)
                uses[number] = Use(now - piece.message, mark.uses if mark is not None else 0)
        return uses

    def _trim(self, over: int) -> None:
        """A request that is too large by itself stands there in part."""
        if self.request.overflow == "error" or self.request.raw:
            return
        here = sum(self.cuts[i][j].tokens for i, kept in enumerate(self.kept) for j in kept)
        fixed = {i for i, m in enumerate(self.request.messages) if m.role is Role.SYSTEM}
        self.kept = kept_cuts(self.cuts, fixed, here - over)
        whole = sum(len(cuts) for cuts in self.cuts)
        tokens = sum(cut.tokens for cuts in self.cuts for cut in cuts)
        self.notices[:] = [
            f"the request has {tokens} tokens, the window {self.window}: "
            f"{sum(map(len, self.kept))} of its {whole} pages are in the window, the others "
            f"are stored beside it"
        ]

    def plan(self, prompt: Prompt) -> Plan:
        room = self.window - prompt.size
        wanted = self.request.sampling.max_tokens
        back = {hit.page.number: hit.page.tokens for hit in self.back}
        sizes = {n: self._held[n].tokens for p in self.pieces for n in p.numbers()}
        pages = {self._held[n].id for p in self.pieces for n in p.numbers()}
        pages.update(hit.page.id for hit in self.back)
        return Plan(
            prompt, self.request.messages, wanted or min(limits.MAX_TOKENS, room), self.pieces,
            self.kept, self.cuts, self.back, self.evicted, sizes | back, self.notices,
            frozenset(pages),
        )  # fmt: skip

    def too_big(self, prompt: int) -> TooBig:
        process, window = self._process, self.window
        wanted = self.request.sampling.max_tokens
        before = sum(self._held[n].tokens for p in self.pieces for n in p.numbers())
        needs = prompt + (wanted or limits.MAX_TOKENS)
        asked = f" and {wanted} are asked for" if wanted else ""
        return TooBig(
            f"the prompt has {prompt} tokens ({before} of them earlier pages of process "
            f"{process.pid}){asked}; the window has {window}",
            "; ".join(filter(None, ["say less", self._pins(), self._larger(needs)])),
        )

    def _pins(self) -> str:
        """What could be unpinned of what the prompt holds, if anything."""
        pages = [*(self._held[n] for p in self.pieces for n in p.numbers())]
        pages += [hit.page for hit in self.back]
        pinned = [page for page in pages if self._table.pinned(page.number)]
        if not pinned:
            return ""
        tokens, pid = sum(page.tokens for page in pinned), self._process.pid
        held = f"pinned pages take {tokens} tokens"
        return f"{held}: `llmasos mem pin {pid} {min(page.number for page in pinned)} --off`"

    def _larger(self, needs: int) -> str:
        """The commands for a window that is large enough, if the model can have it."""
        model, larger = self._process.model, -(-needs // limits.PAGE_TOKENS) * limits.PAGE_TOKENS
        most = min(self._trained or limits.WINDOW_MAX, limits.WINDOW_MAX)
        if larger > most:
            return f"no window is large enough: {needs} tokens are needed, {model} can have {most}"
        commands = f"`llmasos unmount {model}`, `llmasos mount {model} --set window={larger}`"
        return f"or give the model a larger window: {commands}"
