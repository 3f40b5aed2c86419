"""The engine thread: one context, many sequences, one mixed batch a step.

Commands are taken between two steps; when nothing has a grant the thread sleeps on its queue. In a
step each answering call gives one token, and the prompts share the rest: BATCH_TOKENS when nobody
answers, CHUNK_TOKENS while somebody does, so a long prompt slows the others and does not stop
them. A step that llama.cpp refuses costs only the calls that it refuses alone.
"""

from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from llmasos.kernel import limits
from llmasos.kernel.driver import Admission, Prompt, Step
from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.values import Finish, Sampling
from llmasos.kernel.wire import build

from . import frames
from .calls import Call, Saved, Slot
from .cpp import Context, Run, Vocab
from .sampler import Bounds, sampler


class Engine:
    """Owns the context. Once it serves, only the engine thread touches it."""

    def __init__(
        self,
        context: Context,
        vocab: Vocab,
        settings: frames.Settings,
        commands: SimpleQueue[frames.Frame],
    ) -> None:
        self._commands = commands
        self._context = context
        self._vocab = vocab
        self._width, self._window = settings.width, settings.window
        self._batch = settings.batch
        self._bounds = Bounds(vocab.size, settings.window, vocab.ends)
        self._slots = [Slot(number) for number in range(settings.slots)]
        self._calls: dict[int, Call] = {}
        self._ready: dict[int, Call] = {}  # with a grant, the oldest grant first
        self._parked_bytes = 0
        self._steps: list[Step] = []

    def warm(self) -> None:
        """Compute one token and forget it: what aborts should abort before anybody calls."""
        token = self._vocab.begin or 0
        self._context.decode([Run(0, 0, [token], asks=True)])
        self._context.keep(0, 0)

    def serve(self, send: Callable[[Sequence[Step]], None]) -> None:
        """Step for ever."""
        while True:
            self._take_commands()
            self._step()
            if self._steps:
                send(self._steps)
                self._steps = []

    # --- commands -----------------------------------------------------------------------------
    def _take_commands(self) -> None:
        """All that wait; sleeps for the first when there is nothing else to do."""
        idle = not self._steps and not any(call.runnable for call in self._ready.values())
        try:
            self._command(self._commands.get(block=idle))
            while True:
                self._command(self._commands.get_nowait())
        except Empty:
            return

    def _command(self, frame: frames.Frame) -> None:
        match frame:
            case [frames.ADMIT, *fields]:
                self._admit(fields)
            case [frames.UNPARK, int(number), int(slot)] if number in self._calls:
                self._guard(self._calls[number], lambda call: self._unpark(call, slot))
            case [frames.PARK, int(number)] if number in self._calls:
                self._guard(self._calls[number], self._park)
            case [frames.GRANT, int(number), int(tokens)] if number in self._calls:
                call = self._calls[number]
                call.grant += max(0, tokens)
                self._ready.setdefault(number, call)
            case [frames.CANCEL, int(number)] if number in self._calls:
                call = self._calls[number]
                call.finish = Finish.CANCELLED
                self._report(call)
            case _:
                pass  # for a call that just ended

    def _admit(self, fields: list[Any]) -> None:
        number, slot_number, history, domain, data, values = fields
        tokens = frames.tokens_in(data)
        prompt = Prompt(tokens, ())
        sampling = build(Sampling, values)
        admission = Admission(number, slot_number, history, domain, prompt, sampling)
        try:
            slot = self._free_slot(slot_number)
            self._check_prompt(number, tokens)
            call = Call(admission, slot, sampler(admission.sampling, self._bounds))
        except DeviceFault as error:
            self._steps.append(Step(number, error=error))
            return
        call.reuse(self._keep(slot, history, tokens))
        slot.history, slot.call = history, number
        self._calls[number] = call
        self._report(call)  # the kernel counts what was cached before it grants more

    def _free_slot(self, number: int) -> Slot:
        if not 0 <= number < len(self._slots):
            raise DeviceFault(f"slot {number} of {len(self._slots)}")
        slot = self._slots[number]
        if slot.call is not None:
            raise DeviceFault(f"slot {number} is taken by call {slot.call}")
        return slot

    def _check_prompt(self, number: int, tokens: list[int]) -> None:
        if number in self._calls:
            raise DeviceFault(f"call {number} is admitted already")
        if not 0 < len(tokens) < self._window:
            words = f"a prompt of {len(tokens)} tokens, 1 to {self._window - 1} fit the window"
            raise DeviceFault(words)
        if min(tokens) < 0 or max(tokens) >= self._vocab.size:
            raise DeviceFault(f"a token id is not 0 to {self._vocab.size - 1}")

    def _keep(self, slot: Slot, history: int, tokens: list[int]) -> int:
        """Keep of the slot what the prompt begins with, if it is the same history."""
        same = 0
        if slot.history == history:
            # The last one is computed again: its logits are gone.
            most = min(len(slot.tokens), len(tokens) - 1)
            while same < most and slot.tokens[same] == tokens[same]:
                same += 1
        kept = self._context.keep(slot.number, same)
        del slot.tokens[kept:]
        return kept

    def _clear(self, slot: Slot) -> None:
        self._context.keep(slot.number, 0)
        slot.tokens, slot.history, slot.call = [], None, None

    def _park(self, call: Call) -> None:
        slot = call.slot
        if slot is None:
            return
        state = self._context.save(slot.number) if slot.tokens else bytearray()
        parked = self._parked_bytes + len(state)
        if parked > limits.PARKED_BYTES:
            words = f"parked contexts would take {parked} of {limits.PARKED_BYTES} bytes"
            raise DeviceFault(words, "let other stopped processes end")
        self._parked_bytes = parked
        call.saved, call.slot = Saved(state, slot.tokens), None
        self._clear(slot)

    def _unpark(self, call: Call, number: int) -> None:
        saved = call.saved
        if saved is None:
            raise DeviceFault(f"call {call.admission.call} is not parked")
        slot = self._free_slot(number)
        self._clear(slot)
        if saved.tokens:
            self._context.load(number, saved.state)
        slot.tokens, slot.history = saved.tokens, call.admission.history
        slot.call = call.admission.call
        call.slot = slot
        self._forget_saved(call)

    def _forget_saved(self, call: Call) -> None:
        if call.saved is not None:
            self._parked_bytes -= len(call.saved.state)
            call.saved = None

    # --- one step -----------------------------------------------------------------------------
    def _step(self) -> None:
        chosen = [call for call in self._ready.values() if call.runnable][: self._width]
        for call in chosen:
            if call.held is not None:
                call.say(call.held, self._vocab.piece(call.held), self._window)
        going = [call for call in chosen if call.runnable and call.finish is None]
        runs = self._runs(going)
        for call, index in self._decode(runs):
            self._choose(call, index)
        for call in chosen:
            if call.admission.call in self._calls:
                self._report(call)

    def _runs(self, calls: list[Call]) -> list[tuple[Call, Run]]:
        """What each call computes in this step."""
        answering = [call for call in calls if call.decodes]
        prompts = sorted((call for call in calls if not call.decodes), key=lambda call: call.left)
        room = limits.CHUNK_TOKENS if answering else self._batch
        room = min(room, max(self._batch, len(self._slots)) - len(answering))
        runs = [(call, _run(call, [call.next or 0], asks=True)) for call in answering]
        for index, call in enumerate(prompts):
            share = max(1, room // (len(prompts) - index))
            size = min(call.left, call.grant, share, room)
            if size > 0 and call.slot is not None:
                first = len(call.slot.tokens)
                tokens = call.admission.prompt.tokens[first : first + size]
                runs.append((call, _run(call, tokens, asks=size == call.left)))
                room -= size
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
            call.slot.call = None
            if error is not None:
                self._clear(call.slot)


def _run(call: Call, tokens: Sequence[int], *, asks: bool) -> Run:
    slot = call.slot
    if slot is None:
        raise DeviceFault(f"call {call.admission.call} is parked")
    return Run(slot.number, len(slot.tokens), tokens, asks)


def _computed(call: Call, run: Run) -> None:
    if call.slot is not None:
        call.slot.tokens.extend(run.tokens)
    if not call.decodes:
        call.feed(len(run.tokens))
