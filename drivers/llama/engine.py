"""The engine thread: one context, many sequences, one mixed batch a step.

Commands are taken between two steps; when nothing has a grant the thread sleeps on its queue. What
a step computes is chosen in batch.py, within the time that a step may take; where a call goes on
from is found in slots.py. A step that llama.cpp refuses costs only the calls that it refuses alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from llmasos.drivers.frames import Frame
from llmasos.kernel import limits
from llmasos.kernel.driver import Admission, Prompt, Step
from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.values import Finish, Sampling
from llmasos.kernel.wire import build

from . import exact, frames
from .batch import Pace, portions
from .calls import Call
from .cpp import Context, Run, Vocab
from .embed import Embedder
from .grammar import Grammars
from .sampler import Bounds, Candidates, sampler
from .slots import Slots
from .threads import Threads


@dataclass(frozen=True, slots=True)
class Sides:
    """What stands beside the context."""

    grammars: Grammars
    embedder: Embedder


class Engine:
    """Owns the context. Once it serves, only the engine thread touches it."""

    def __init__(
        self,
        context: Context,
        vocab: Vocab,
        settings: frames.Settings,
        commands: SimpleQueue[Frame],
        sides: Sides,
    ) -> None:
        self._commands = commands
        self._context = context
        self._vocab = vocab
        self._width, self._window = settings.width, settings.window
        self._chunk_s = settings.chunk_s
        # Of a deterministic engine: prompts are cut at multiples of this and computed alone.
        self._pieces = limits.PIECE_TOKENS if settings.deterministic else 0
        self._together = True  # answers are computed in one batch
        self._pace = Pace()
        self._threads = Threads(settings.threads) if settings.adaptive else None
        self._bounds = Bounds(vocab, settings.window, sides.grammars, Candidates(vocab.size))
        self._embedder = sides.embedder
        self._slots = Slots(context, pieces=self._pieces)
        self._calls: dict[int, Call] = {}
        self._ready: dict[int, Call] = {}  # with a grant, the oldest grant first
        self._parked_bytes, self._parked_most = 0, settings.parked_bytes
        self.context_bytes = self.token_bytes = 0  # of a saved context; known once it is warm
        self._steps: list[Step] = []

    def warm(self) -> None:
        """Compute one token and forget it: what aborts should abort before anybody calls."""
        token = self._vocab.begin or 0
        sizes = [1]
        if self._context.on_gpu:  # it loads the kernels of a shape when it first meets it
            sizes.append(min(self._context.batch_tokens, self._window - 1))
        for size in sizes:
            asked = self._context.decode([Run(0, 0, [token] * size, asks=True)])
            self._context.logits(asked[0])
            self._context.keep(0, 0)
        self._weigh(token)
        if self._pieces:
            # On a GPU the kernel of a product is chosen by its number of rows, and how attention
            # is split by the longest of all contexts: a short trial would not show that.
            self._together = not self._context.on_gpu and exact.in_company(self._context)

    def _weigh(self, token: int) -> None:
        """How many bytes a saved context takes."""
        sizes: list[int] = []
        for first in range(2):
            self._context.decode([Run(0, first, [token], asks=False)])
            sizes.append(len(self._context.save(0)))
        self._context.keep(0, 0)
        self.token_bytes = max(1, sizes[1] - sizes[0])
        self.context_bytes = max(0, sizes[0] - self.token_bytes)

    def serve(
        self,
        send: Callable[[Sequence[Step]], None],
        answer: Callable[[Frame], None],
    ) -> None:
        """Step for ever."""
        while True:
            self._take_commands()
            self._step()
            if self._steps:
                send(self._steps)
                self._steps = []
            if (vector := self._embedder.step()) is not None:
                answer(vector)

    # --- commands -----------------------------------------------------------------------------
    def _take_commands(self) -> None:
        """All that wait; sleeps for the first when there is nothing else to do."""
        busy = bool(self._steps) or self._embedder.busy
        idle = not busy and not any(call.runnable for call in self._ready.values())
        try:
            self._command(self._commands.get(block=idle))
            while True:
                self._command(self._commands.get_nowait())
        except Empty:
            return

    def _command(self, frame: Frame) -> None:
        match frame:
            case [frames.ADMIT, *fields]:
                self._admit(fields)
            case [frames.UNPARK, int(number), int(slot)] if number in self._calls:
                self._guard(self._calls[number], lambda call: self._unpark(call, slot))
            case [frames.PARK, int(number), bool(keep)] if number in self._calls:
                self._park(self._calls[number], keep)
            case [frames.GRANT, int(number), int(tokens)] if number in self._calls:
                call = self._calls[number]
                call.grant += max(0, tokens)
                self._ready.pop(number, None)  # prompts take turns, a grant each
                self._ready[number] = call
            case [frames.CANCEL, int(number)] if number in self._calls:
                call = self._calls[number]
                call.finish = Finish.CANCELLED
                self._report(call)
            case [(frames.FORGET | frames.PURGE) as kind, whose]:
                self._let_go(kind, whose)
            case [frames.EMBED, int(number), tokens]:
                self._embedder.take(number, tokens)
            case _:
                pass  # for a call that just ended

    def _admit(self, fields: list[Any]) -> None:
        number, slot_number, history, domain, data, values = fields
        tokens = frames.tokens_in(data)
        prompt = Prompt(tokens, ())
        sampling = build(Sampling, values)
        admission = Admission(number, slot_number, history, domain, prompt, sampling)
        try:
            slot = self._slots.free(slot_number)
            self._check_prompt(number, tokens)
            call = Call(admission, slot, sampler(admission.sampling, self._bounds))
        except DeviceFault as error:
            self._steps.append(Step(number, error=error))
            return
        self._slots.enter(slot, domain, history, tokens)
        slot.call = number
        self._calls[number] = call
        self._guard(call, self._begin)

    def _check_prompt(self, number: int, tokens: list[int]) -> None:
        if number in self._calls:
            raise DeviceFault(f"call {number} is admitted already")
        if not 0 < len(tokens) < self._window:
            words = f"a prompt of {len(tokens)} tokens, 1 to {self._window - 1} fit the window"
            raise DeviceFault(words)
        if min(tokens) < 0 or max(tokens) >= self._vocab.size:
            raise DeviceFault(f"a token id is not 0 to {self._vocab.size - 1}")

    def _begin(self, call: Call) -> None:
        """Go on from what there is, unless somebody is about to compute more of the same."""
        slot = call.slot
        if slot is None or call.begun:
            return
        leader = self._slots.leader(slot)
        other = self._calls.get(leader.call or 0) if leader is not None else None
        # A leader that was just admitted has its grant with the next command.
        if other is not None and (other.runnable or not call.runnable):
            return
        call.begin(self._slots.adopt(slot))
        self._report(call)  # the kernel counts what was cached before it grants more

    def _park(self, call: Call, keep: bool) -> None:
        """Free its slot. What cannot be saved is computed again later: this never ends the call."""
        slot = call.slot
        if slot is None:
            return
        call.saved = self._slots.saved(slot) if keep else None
        if call.saved is not None:
            self._parked_bytes += len(call.saved.state)
        if call.saved is None or self._parked_bytes > self._parked_most:
            self._forget_saved(call)
            call.drop(list(slot.tokens), tainted=slot.tainted)
        call.slot = None
        self._slots.clear(slot)

    def _unpark(self, call: Call, number: int) -> None:
        saved, admission = call.saved, call.admission
        if saved is None and not call.dropped:
            raise DeviceFault(f"call {admission.call} is not parked")
        slot = self._slots.free(number)
        self._slots.enter(slot, admission.domain, admission.history, [])
        if saved is not None:
            self._slots.load(slot, saved, len(saved.tokens))
        slot.tainted = slot.tainted or call.tainted
        call.dropped = False
        slot.prompt, slot.call = list(admission.prompt.tokens), admission.call
        call.slot = slot
        self._forget_saved(call)

    def _let_go(self, kind: int, whose: Any) -> None:
        """Of a process, or of a domain: then what parked calls had is for nobody but them."""
        if kind == frames.FORGET:
            self._slots.forget(whose)
            return
        self._slots.purge(whose)
        for call in self._calls.values():
            if call.admission.domain == whose:
                call.tainted = True
                if call.saved is not None:
                    call.saved.tainted = True

    def _forget_saved(self, call: Call) -> None:
        if call.saved is not None:
            self._parked_bytes -= len(call.saved.state)
            call.saved = None

    # --- one step -----------------------------------------------------------------------------
    def _step(self) -> None:
        chosen = self._chosen()
        for call in chosen:
            if call.held is not None and not call.left:
                call.say(call.held, self._vocab.piece(call.held), self._window)
        runs = self._runs([call for call in chosen if call.runnable and call.finish is None])
        if runs:
            self._compute(runs)
        for call in chosen:
            if call.admission.call in self._calls:
                self._report(call)

    def _chosen(self) -> list[Call]:
        """Who takes part in the step, the oldest grant first."""
        for call in [call for call in self._ready.values() if not call.begun]:
            if call.runnable:
                self._guard(call, self._begin)
        able = [call for call in self._ready.values() if call.begun and call.runnable]
        return able[: self._width]

    def _compute(self, runs: list[tuple[Call, Run]]) -> None:
        """One batch, or several where company would change bits."""
        if self._threads is not None and self._threads.choose() != self._context.threads:
            self._context.set_threads(self._threads.now)
        begun = time.monotonic()
        for batch in self._batches(runs):
            for call, index in self._decode(batch):
                self._choose(call, index)
        answers = sum(len(run.tokens) for call, run in runs if not call.feeds)
        fed = sum(len(run.tokens) for _, run in runs) - answers
        self._pace.learn(fed, answers, time.monotonic() - begun)

    def _batches(self, runs: list[tuple[Call, Run]]) -> list[list[tuple[Call, Run]]]:
        if not self._pieces:
            return [runs]
        answers = [(call, run) for call, run in runs if not call.feeds]
        pieces = [[(call, run)] for call, run in runs if call.feeds]
        return [*([answers] if self._together else [[one] for one in answers]), *pieces]

    def _runs(self, calls: list[Call]) -> list[tuple[Call, Run]]:
        """What each call computes in this step."""
        now = time.monotonic()
        answers = sum(call.decodes for call in calls)
        ready = [call.ready(now) for call in calls]
        stalls = answers > 0 and any(one.long for one in ready)
        room = self._pace.room(self._chunk_s, answering=stalls)
        room = min(room, self._context.batch_tokens - answers)
        runs: list[tuple[Call, Run]] = []
        for call, size in zip(calls, portions(ready, room), strict=True):
            if call.decodes:
                call.feeds = False
                runs.append((call, _run(call, [call.next or 0], asks=True)))
            elif size:
                call.feeds, call.fed_at = True, now
                tokens, asks = call.piece(size, self._pieces)
                runs.append((call, _run(call, tokens, asks=asks)))
        return runs

    def _decode(self, runs: list[tuple[Call, Run]]) -> list[tuple[Call, int]]:
        """Compute; returns the calls that may choose a token, and where their logits are."""
        if not runs:
            return []
        try:
            asked = self._context.decode([run for _, run in runs])
        except DeviceFault as error:
            return self._decode_one_by_one(runs, error)
        for call, run in runs:
            _computed(call, run)
        return [(call, asked[run.slot]) for call, run in runs if run.asks]

    def _decode_one_by_one(
        self, runs: list[tuple[Call, Run]], error: DeviceFault
    ) -> list[tuple[Call, int]]:
        """Find whose the fault is. Logits live until the next batch, so tokens are chosen here."""
        if len(runs) == 1:
            self._report(runs[0][0], error)
            return []
        for run in runs:
            for call, index in self._decode([run]):
                self._choose(call, index)
        return []

    def _choose(self, call: Call, index: int) -> None:
        try:
            token = call.sampler.choose(self._context, index)
        except DeviceFault as error:
            self._report(call, error)
            return
        piece = None if token in self._vocab.ends else self._vocab.piece(token)
        call.choose(token, piece, self._window)

    def _guard(self, call: Call, act: Callable[[Call], None]) -> None:
        """Let a fault end this call and no other."""
        try:
            act(call)
        except DeviceFault as error:
            self._report(call, error)

    def _report(self, call: Call, error: DeviceFault | None = None) -> None:
        """Note the call's step; end the call if it ended."""
        step = call.step(error)
        if step is not None:
            self._steps.append(step)
        number = call.admission.call
        if call.grant <= 0:
            self._ready.pop(number, None)
        if call.finish is None and error is None:
            return
        del self._calls[number]
        self._ready.pop(number, None)
        self._forget_saved(call)
        call.sampler.free()
        if call.slot is not None:
            self._slots.leave(call.slot)
            if error is not None:
                self._slots.clear(call.slot)


def _run(call: Call, tokens: Sequence[int], *, asks: bool) -> Run:
    slot = call.slot
    if slot is None:
        raise DeviceFault(f"call {call.admission.call} is parked")
    return Run(slot.number, len(slot.tokens), tokens, asks)


def _computed(call: Call, run: Run) -> None:
    slot = call.slot
    if slot is not None:
        prompt = len(slot.tokens) < len(call.admission.prompt.tokens)
        if slot.exact == len(slot.tokens) and call.feeds and prompt:
            slot.exact += len(run.tokens)
        slot.tokens.extend(run.tokens)
    if call.feeds:
        call.feed(len(run.tokens))
