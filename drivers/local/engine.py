"""The engine thread: one context, many sequences, one mixed batch a step.

Commands are executed between two steps; when no call has a grant the thread sleeps on its queue.
pace.py says how much of the prompts a step computes, within its time limit; slots.py finds the
prefix that a call reuses. When the library rejects a batch, its calls are retried one by one, and
only those that are rejected again end.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from llmasos.drivers.frames import Frame
from llmasos.drivers.order import PromptOrder
from llmasos.drivers.prompts import LOST, KeptPrompts
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Finish, Sampling
from llmasos.kernel.abi.wire import build
from llmasos.kernel.driver import Admission, Prompt, Step

from . import exact, frames
from .call_state import CallState
from .calls import EngineCall
from .context import Context, Exactness, Run, StateSize, Vocab
from .drafts import Drafts
from .embed import Embedder
from .lookup import ROWS
from .pace import StepPace, portions, recurring
from .parking import Parking
from .sampler import Bounds, sampler
from .shared_memory import ContextHeader, Region, SharedMemory
from .slots import Slots
from .text import Composed
from .threads import Threads


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What the engine uses besides the context."""

    bounds: Bounds
    embedder: Embedder
    prompts: KeptPrompts[Composed]
    memory: SharedMemory | None  # for the contexts of parked calls
    identity: ContextHeader  # of contexts that this engine saves


class BatchEngine:
    """Owns the context. After `serve` is called, only the engine thread uses it."""

    def __init__(
        self,
        context: Context,
        settings: frames.EngineSettings,
        commands: SimpleQueue[Frame],
        parts: EngineParts,
    ) -> None:
        self._commands = commands
        self._context = context
        self._vocab: Vocab = parts.bounds.vocab
        self._width, self._window = settings.width, settings.window
        self._chunk_s = settings.chunk_s
        # Of a deterministic engine; of others, pieces of any size share a batch with answers.
        self._exactness = context.exactness if settings.deterministic else Exactness()
        self._pace = StepPace()
        self.drafts = Drafts(context, settings.window)
        self._threads = Threads(settings.threads) if settings.adaptive else None
        self._bounds = parts.bounds
        self._embedder = parts.embedder
        self._prompts = parts.prompts
        self._slots = Slots(context, self._exactness)
        self._calls: dict[int, EngineCall] = {}
        self._ready: dict[int, EngineCall] = {}  # calls with a grant, the oldest grant first
        self._order = PromptOrder()
        self._parking = Parking(self._slots, settings.parked_bytes, parts.memory, parts.identity)
        self.state_size = StateSize(0, 0)  # set by warm()
        self._steps: list[Step] = []

    def warm(self) -> None:
        """Compute a trial batch and drop it: a model that aborts does so before the first call."""
        token = self._vocab.begin or 0
        for size in self._context.trial_sizes:
            begun = time.monotonic()
            asked = self._context.decode([Run(0, 0, [token] * size, asks=min(size, ROWS))])
            self._context.logits(asked[0])
            self._pace.begin(size, time.monotonic() - begun)
            self._context.keep(0, 0)
        if not self._exactness.piece_tokens:
            self.drafts.enable()
        self.state_size = self._context.state_size()
        exactness = self._exactness
        if exactness.piece_tokens and exactness.answers_together:
            together = exact.batches_are_exact(self._context)
            if not (together or exactness.alone):
                raise SyscallError(
                    Errno.ENOTSUP,
                    "the results of this file depend on what is computed beside them",
                    "mount it without deterministic, or with `--engine llama`",
                )
            self._exactness = replace(exactness, answers_together=together)

    def serve(
        self,
        send: Callable[[Sequence[Step]], None],
        answer: Callable[[Frame], None],
    ) -> None:
        """Execute commands and compute steps; never returns."""
        while True:
            self._execute_commands()
            # Calls that began: while the step is computed, the kernel orders them for the next one.
            self._send(send, answer)
            self._step()
            self._parking.copy()
            self._send(send, answer)
            if self._embedder.busy:
                self._adapt_threads()
                if (vector := self._embedder.step(self._context.threads)) is not None:
                    answer(vector)

    def _send(
        self, send: Callable[[Sequence[Step]], None], answer: Callable[[Frame], None]
    ) -> None:
        if self._steps:
            send(self._steps)
            self._steps = []
        for notice in self._parking.notices:
            answer(notice)
        self._parking.notices.clear()

    # --- commands -----------------------------------------------------------------------------
    def _execute_commands(self) -> None:
        """Execute all queued commands; waits for the first one when there is no other work."""
        busy = bool(self._steps) or self._embedder.busy or self._parking.busy
        idle = not busy and not any(map(self._computes, self._ready.values()))
        try:
            self._execute(self._commands.get(block=idle))
            while True:
                self._execute(self._commands.get_nowait())
        except Empty:
            return

    def _execute(self, frame: Frame) -> None:
        match frame:
            case [frames.ADMIT, *fields]:
                self._admit(fields)
            case [frames.RESTORE, *fields]:
                self._restore(fields)
            case [frames.ORDER, calls, int(once)]:
                self._order.set(calls, once)
            case [(frames.FORGET | frames.PURGE | frames.DROP | frames.CLEAR) as kind, which]:
                self._drop_contexts(kind, which)
            case [frames.EMBED, int(number), tokens]:
                self._embedder.take(number, tokens)
            case [kind, int(number), *fields] if number in self._calls:
                self._command(kind, self._calls[number], fields)
            case _:
                pass  # a command for a call that has ended

    def _command(self, kind: int, call: EngineCall, fields: list[Any]) -> None:
        """Execute a command for an admitted call."""
        match [kind, *fields]:
            case [frames.UNPARK, int(slot), int(save)]:
                self._guard(call, lambda call: self._unpark(call, slot, save))
            case [frames.PARK, bool(keep)]:
                self._parking.park(call, keep=keep)
            case [frames.GRANT, int(tokens)]:
                call.grant += max(0, tokens)
                # To the end of the queue: with more calls than a step takes, they take turns.
                self._ready.pop(call.admission.call, None)
                self._ready[call.admission.call] = call
            case [frames.CANCEL]:
                call.finish = Finish.CANCELLED
                self._report(call)
            case _:
                pass

    def _admit(self, fields: list[Any]) -> None:
        """`fields`: of ADMIT, with the Prompt, or None when it is not kept."""
        number, slot_number, history, domain, prompt, values, save, share = fields
        if prompt is None:
            self._steps.append(Step(number, error=DeviceFault(LOST), lost=True))
            return
        tokens = list(prompt.tokens)
        sampling = build(Sampling, values)
        admission = Admission(number, slot_number, history, domain, prompt, sampling, save, share)
        try:
            slot = self._slots.free_slot(slot_number)
            self._check_prompt(number, tokens)
            call = EngineCall(admission, slot, sampler(admission.sampling, self._bounds, domain))
        except DeviceFault as error:
            self._steps.append(Step(number, error=error))
            return
        call.saves += self._slots.enter(slot, domain, history, tokens, save)
        call.lookup = self.drafts.lookup(tokens, sampling)
        slot.call = number
        self._calls[number] = call
        self._guard(call, self._begin)

    def _check_prompt(self, number: int, tokens: list[int]) -> None:
        if number in self._calls:
            raise DeviceFault(f"call {number} is already admitted")
        if not 0 < len(tokens) < self._window:
            message = f"the prompt has {len(tokens)} tokens; 1 to {self._window - 1} fit the window"
            raise DeviceFault(message)
        if min(tokens) < 0 or max(tokens) >= self._vocab.size:
            raise DeviceFault(
                f"a token id is out of range: the vocabulary has 0 to {self._vocab.size - 1}"
            )

    def _begin(self, call: EngineCall) -> None:
        """Reuse the longest computed prefix, unless another call is computing a longer one."""
        slot = call.slot
        if slot is None or call.begun:
            return
        leader = self._slots.leader(slot)
        other = self._calls.get(leader.call or 0) if leader is not None else None
        if other is not None and self._waits(call, other):
            return
        call.begin(self._slots.adopt(slot, call.admission.share))
        self._report(call)  # the kernel counts the cached tokens before it grants more

    def _waits(self, call: EngineCall, leader: EngineCall) -> bool:
        """Whether a call that has not begun waits for the one that computes a part of its prompt.

        Not if the order has this one only: then nobody would compute that part.
        """
        if not call.runnable:  # its leader may get its grant with the next command
            return True
        ordered = self._order.has(leader.admission.call)
        return leader.runnable and (ordered or not self._order.has(call.admission.call))

    def _computes(self, call: EngineCall) -> bool:
        """Whether a step computes something for a call, once it has begun."""
        return call.runnable and (call.decodes or self._order.has(call.admission.call))

    def _restore(self, fields: list[Any]) -> None:
        """A call that the last process of the engine had parked; `fields`: of RESTORE."""
        number, history, domain, tokens, values, encoded, region, grant, tainted = fields
        state = CallState.decode(encoded)
        sampling, prompt = build(Sampling, values), Prompt(frames.tokens_in(tokens), ())
        admission = Admission(number, 0, history, domain, prompt, sampling)
        try:
            call = EngineCall(admission, None, sampler(sampling, self._bounds, domain))
            call.lookup = self.drafts.lookup(prompt.tokens, sampling)
            call.resume(state, self._vocab, self._window)
        except DeviceFault as error:
            self._parking.free(Region(*region) if region else None)
            self._steps.append(Step(number, error=error))
            return
        call.grant, call.tainted = grant, call.tainted or tainted
        self._calls[number] = call
        if grant > 0:
            self._ready[number] = call
        self._parking.attach(call, Region(*region) if region else None, state.bytes)

    def _unpark(self, call: EngineCall, number: int, save: int) -> None:
        self._parking.check(call)
        saved, admission = call.saved, call.admission
        if saved is None and not call.dropped:
            raise DeviceFault(f"call {admission.call} is not parked")
        slot = self._slots.free_slot(number)
        call.saves += self._slots.enter(slot, admission.domain, admission.history, [], save)
        self._parking.load(call, slot)
        slot.tainted = slot.tainted or call.tainted
        slot.prompt, slot.call = list(admission.prompt.tokens), admission.call
        call.slot = slot
        call.recompute = call.left if call.dropped else 0
        call.dropped = False
        self._parking.drop(call)
        self._report(call)  # before it is fed: the kernel orders what is computed again

    def _drop_contexts(self, kind: int, which: Any) -> None:
        """DROP a saved context, CLEAR an idle slot, FORGET a process, or PURGE a domain.

        After a purge, the contexts of calls in flight are not shared with other calls.
        """
        if kind == frames.DROP:
            self._slots.store.drop(which)
            return
        if kind == frames.CLEAR:
            self._slots.clear_idle(which)
            return
        if kind == frames.FORGET:
            self._slots.forget(which)
            return
        self._slots.purge(which)
        for call in self._calls.values():
            if call.admission.domain == which:
                self._parking.purge(call)

    # --- one step -----------------------------------------------------------------------------
    def _step(self) -> None:
        chosen = self._chosen()
        for call in chosen:
            if call.pending is not None and not call.left:
                call.emit(call.pending, self._vocab.piece(call.pending), self._window)
        runs = self._runs([call for call in chosen if call.runnable and call.finish is None])
        if runs:
            self._compute(runs)
        for call in chosen:
            if call.admission.call in self._calls:
                self._report(call)

    def _chosen(self) -> list[EngineCall]:
        """The calls of this step, the oldest grant first."""
        for call in [call for call in self._ready.values() if not call.begun]:
            if call.runnable:
                self._guard(call, self._begin)
        able = [call for call in self._ready.values() if call.begun and self._computes(call)]
        return able[: self._width]

    def _compute(self, runs: list[tuple[EngineCall, Run]]) -> None:
        """Compute the step: one batch, or several where one would change results."""
        self._adapt_threads()
        begun = time.monotonic()
        for batch in self._batches(runs):
            for call, index in self._decode(batch):
                self._sample(call, index)
        answers = sum(len(run.tokens) for call, run in runs if not call.feeds)
        fed = sum(len(run.tokens) for _, run in runs) - answers
        took_s = time.monotonic() - begun
        self._pace.learn(fed, answers, took_s)
        if not fed:
            self.drafts.learn(answers, took_s)

    def _adapt_threads(self) -> None:
        if self._threads is not None and self._threads.choose() != self._context.threads:
            self._context.set_threads(self._threads.now)

    def _batches(self, runs: list[tuple[EngineCall, Run]]) -> list[list[tuple[EngineCall, Run]]]:
        if not self._exactness.alone:
            return [runs]
        answers = [(call, run) for call, run in runs if not call.feeds]
        pieces = [[(call, run)] for call, run in runs if call.feeds]
        together = self._exactness.answers_together
        return [*([answers] if together else [[one] for one in answers]), *pieces]

    def _runs(self, calls: list[EngineCall]) -> list[tuple[EngineCall, Run]]:
        """What each call computes in this step."""
        decoding = [call for call in calls if call.decodes]
        feeding = [call for call in calls if not call.decodes]
        feeding.sort(key=lambda call: self._order.place(call.admission.call))
        stalls = bool(decoding) and any(call.long for call in feeding)
        room = self._pace.room(self._chunk_s, answering=stalls)
        room = recurring(min(room, self._context.batch_tokens - len(decoding)), len(decoding))
        runs: list[tuple[EngineCall, Run]] = []
        self.drafts.choose(decoding, feeding=bool(feeding))
        for call in decoding:
            call.feeds = False
            answer = [call.next or 0, *call.draft]
            runs.append((call, _run(call, answer, asks=len(answer))))
        sizes = portions([min(call.left, call.grant) for call in feeding], room)
        for call, size in zip(feeding, sizes, strict=True):
            if size:
                call.feeds = True
                self._order.fed(call.admission.call)
                tokens, asks = call.piece(size, self._exactness)
                runs.append((call, _run(call, tokens, asks=int(asks))))
        return runs

    def _decode(self, runs: list[tuple[EngineCall, Run]]) -> list[tuple[EngineCall, int]]:
        """Compute one batch; the calls to sample, with the indexes of their logits."""
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
        self, runs: list[tuple[EngineCall, Run]], error: DeviceFault
    ) -> list[tuple[EngineCall, int]]:
        """Find the call at fault. Logits are valid until the next batch, so sample here."""
        if len(runs) == 1:
            self._report(runs[0][0], error)
            return []
        for run in runs:
            for call, index in self._decode([run]):
                self._sample(call, index)
        return []

    def _sample(self, call: EngineCall, index: int) -> None:
        """Sample after each computed token, until a token is not the drafted one."""
        draft = call.take_draft()
        for at in range(len(draft) + 1):
            try:
                token = call.sampler.choose(self._context, index + at)
            except DeviceFault as error:
                self._report(call, error)
                return
            piece = None if token in self._vocab.ends else self._vocab.piece(token)
            call.choose(token, piece, self._window)
            right = at < len(draft) and token == draft[at]
            call.accepted += right and piece is not None
            if call.finish is not None or not right:
                self._slots.remove_last(call.slot, len(draft) - at)
                return

    def _guard(self, call: EngineCall, act: Callable[[EngineCall], None]) -> None:
        """Run `act`; a DeviceFault ends this call only."""
        try:
            act(call)
        except DeviceFault as error:
            self._report(call, error)

    def _report(self, call: EngineCall, error: DeviceFault | None = None) -> None:
        """Queue the step of the call; remove the call if it ended."""
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
        if call.admission.prompt.kept and error is None:
            self._prompts.answered(call.admission.prompt.kept, call.answer)
        self._parking.drop(call)
        if call.slot is not None:
            self._slots.leave(call.slot)
            if error is not None or not call.begun:
                self._slots.clear(call.slot)


def _run(call: EngineCall, tokens: Sequence[int], *, asks: int) -> Run:
    slot = call.slot
    if slot is None:
        raise DeviceFault(f"call {call.admission.call} is parked")
    return Run(slot.number, len(slot.tokens), tokens, asks)


def _computed(call: EngineCall, run: Run) -> None:
    slot = call.slot
    if slot is not None:
        prompt = len(slot.tokens) < len(call.admission.prompt.tokens)
        if slot.exact == len(slot.tokens) and call.feeds and prompt:
            slot.exact += len(run.tokens)
        slot.tokens.extend(run.tokens)
    if call.feeds:
        call.feed(len(run.tokens))
