"""An engine without a model: it answers with the last user message, at a configurable rate.

For tests, demonstrations and simulation. It implements everything that drivers/llama does (slots,
width, window, grants, reuse, parking, seeds) in the kernel's process, on timers of the event loop.
"""

import asyncio
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import (
    Finish,
    Hardware,
    Message,
    Progress,
    Role,
    Sampling,
    TuneCandidate,
)  # fmt: skip
from llmasos.kernel.driver import (
    Admission,
    Beginning,
    Cause,
    Cut,
    Death,
    Engine,
    Facts,
    ImageFacts,
    Keep,
    Listener,
    Option,
    Prompt,
    Step,
    Tuning,
    Vectors,
    token_digest,
)

from .echo_calls import (
    TOKEN_BYTES,
    EchoCall,
    EchoPrompt,
    EchoSlot,
    EchoStore,
    piece,
    tokenize,
    valid,
)
from .echo_options import check_options
from .order import PromptOrder
from .pages import cut_answer, cut_text
from .prompts import LOST, KeptPrompts, last_messages
from .restart import REQUESTED, Backoff

_CONTEXT = limits.WINDOW_MAX
MEMORY_MB = 1024  # simulated memory that all echo engines share
_CAPABILITIES = frozenset({"tokenize", "seed", "template", "park", "exact_usage", "stop", "order"})
_memory_used: dict["EchoEngine", int] = {}  # MB


def probe(path: Path) -> ImageFacts:
    """The facts of the echo model. EINVAL for a file: echo has none."""
    if path.name:
        raise SyscallError(Errno.EINVAL, f"the echo driver cannot load {path}: it takes no file")
    return ImageFacts("echo", "Apache-2.0", _CONTEXT, 0)


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    check_options(options)


def engine(
    path: Path, options: Mapping[str, Option], log: Path, cache: Path | None = None
) -> Engine:
    """An engine that is not started. It logs nothing: `log` is unused."""
    check(options)
    return EchoEngine(dict(options))


def hardware() -> Sequence[Hardware]:
    """None: echo needs no hardware."""
    return ()


async def models(options: Mapping[str, Option]) -> Sequence[str]:
    raise SyscallError(Errno.ENOTSUP, "the echo driver has no endpoints")


async def tune(request: Tuning, tell: Callable[[Progress], None]) -> Sequence[TuneCandidate]:
    raise SyscallError(Errno.ENOTSUP, "the echo driver has no files to tune")


def _cut(text: str) -> list[Cut]:
    return cut_text(text, lambda piece: len(tokenize(piece)))


class EchoEngine:
    """The engine."""

    def __init__(self, options: Mapping[str, Option]) -> None:
        slots = int(options.get("slots", limits.SLOTS))
        self._width = int(options.get("width", slots))
        self._window = int(options.get("window", limits.WINDOW_TOKENS))
        rate = float(options.get("rate", 0))
        self._interval_s = 1 / rate if rate else 0.0
        self._seed = int(options.get("seed", 0))
        self._die_after = int(options.get("die_after", 0))
        self._hang_after = int(options.get("hang_after", 0))
        self._poison = str(options.get("poison", "")).encode()
        self._load_s = float(options.get("load_s", 0))
        self._memory = int(options.get("memory", 0))
        self._parked_bytes = int(options.get("parked_bytes", limits.PARKED_BYTES))
        self._kept_bytes = int(options.get("kept_bytes", limits.KEPT_BYTES))
        self._slots = [EchoSlot() for _ in range(slots)]
        self._store = EchoStore()
        self._order = PromptOrder()
        self.prompts = KeptPrompts[EchoPrompt]()
        self._calls: dict[int, EchoCall] = {}
        self._ready: dict[int, EchoCall] = {}  # with a grant, the oldest grant first
        self._steps: list[Step] = []  # to be reported with the next step
        self._generated = 0  # answer tokens since the engine was created
        self._timer: asyncio.Handle | None = None
        self._up = False
        self._up_since = 0.0  # monotonic seconds
        self._backoff = Backoff()
        self._listener: Listener | None = None

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        free = MEMORY_MB - sum(_memory_used.values())
        if self._memory > free:
            message = f"{self._memory} MB are needed, {free} MB of {MEMORY_MB} are free"
            raise SyscallError(Errno.ENOMEM, message, "mount it with less memory")
        _memory_used[self] = self._memory
        try:
            for tenth in range(10 if self._load_s else 0):
                listener.loading(tenth / 10)
                await asyncio.sleep(self._load_s / 10)
        except asyncio.CancelledError:
            del _memory_used[self]
            raise
        self._come_up()

    def _come_up(self) -> None:
        self._timer, self._up, self._up_since = None, True, time.monotonic()
        slots, window = len(self._slots), self._window
        facts = Facts(slots, self._width, window, slots * window, 0, "echo: no model",
                      _CAPABILITIES, trained=_CONTEXT, parked_bytes=self._parked_bytes,
                      kept_bytes=self._kept_bytes, token_bytes=TOKEN_BYTES)  # fmt: skip
        if self._listener is not None:
            self._listener.up(facts)

    async def stop(self) -> None:
        self._up = False
        _memory_used.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def sent_bytes(self) -> int:
        return 0

    def retry(self) -> None:
        if not self._up and self._timer is not None:
            self._timer.cancel()
            self._come_up()

    async def restart(self) -> None:
        self._backoff.reset()
        if self._up:
            self._go_down(Death(REQUESTED, Cause.OUTSIDE))
        self.retry()

    async def tokenize(self, text: str) -> Sequence[int]:
        self._check_up()
        return tokenize(text)

    async def cut(self, text: str) -> Sequence[Cut]:
        self._check_up()
        return _cut(text)

    async def compose(
        self, messages: Sequence[Message], *, raw: bool, fresh: int, keep: Keep | None = None
    ) -> Prompt:
        self._check_up()
        cuts = [_cut(message.content) for message in last_messages(messages, fresh)]
        prompt = EchoPrompt(messages, raw)
        return self._kept(prompt, cuts, keep) if keep is not None else Prompt(prompt.tokens, cuts)

    async def extend(
        self, beginning: Beginning, messages: Sequence[Message], *, fresh: int, keep: Keep
    ) -> Prompt | None:
        """Tokenizes the whole conversation: it costs little here."""
        self._check_up()
        cuts = [_cut(message.content) for message in last_messages(messages, fresh)]
        found = self.prompts.find(beginning, keep.domain)
        if found is None:
            return None
        whole = [*found.prompt.messages[: beginning.messages]]
        if beginning.answered:
            whole.append(Message(Role.ASSISTANT, found.answer or ""))
        return self._kept(EchoPrompt([*whole, *messages], found.prompt.raw), cuts, keep)

    def _kept(self, prompt: EchoPrompt, cuts: Sequence[Sequence[Cut]], keep: Keep) -> Prompt:
        self.prompts.put(keep, prompt, prompt.bytes)
        digest = token_digest(prompt.tokens)
        return Prompt((), cuts, count=len(prompt.tokens), kept=keep.number, digest=digest)

    def _check_up(self) -> None:
        if not self._up:
            raise DeviceFault("the engine is down", "it is being restarted; try again later")

    async def check(self, sampling: Sampling, domain: str = "") -> None:
        """ENOTSUP for a grammar, a schema, logprobs, bias and lookup."""
        for name, requested in (("grammar", sampling.grammar), ("schema", sampling.schema),
                            ("logprobs", sampling.logprobs), ("bias", sampling.bias),
                            ("lookup", sampling.lookup)):  # fmt: skip
            if requested:
                raise SyscallError(Errno.ENOTSUP, f"the echo engine does not support {name}")

    async def embed(self, texts: Sequence[str]) -> Vectors:
        raise SyscallError(Errno.ENOTSUP, "the echo engine does not support embeddings")

    # --- commands -----------------------------------------------------------------------------
    def forget(self, history: int) -> None:
        self.prompts.forget(history)
        self._store.forget(history)
        for slot in self._slots:
            if slot.history == history and slot.call is None:
                slot.tokens, slot.history = (), None

    def purge(self, domain: str) -> None:
        self.prompts.purge(domain)
        self._store.purge(domain)
        for slot in self._slots:
            if slot.call is None and slot.domain == domain:
                slot.tokens, slot.history = (), None
        for call in self._calls.values():
            call.not_reusable |= call.admission.domain == domain

    def admit(self, admission: Admission) -> None:
        if not self._up:
            return
        if admission.prompt.kept:
            found = self.prompts.get(admission.prompt.kept, admission.domain)
            if found is None:
                self._queue(Step(admission.call, error=DeviceFault(LOST), lost=True))
                return
            prompt = replace(admission.prompt, tokens=found.prompt.tokens)
            admission = replace(admission, prompt=prompt)
        fault = self._fault(admission)
        if fault:
            self._queue(Step(admission.call, error=DeviceFault(fault)))
            return
        call = EchoCall(admission, zlib.crc32(f"{self._seed}:{admission.sampling.seed}".encode()))
        read = b"".join(map(piece, admission.prompt.tokens)) if self._poison else b""
        call.crashes = bool(self._poison) and self._poison in read
        slot = self._slots[admission.slot]
        saved = self._store.save(admission.save, slot)
        number, call.cached = self._store.find(admission.history, call.to_feed)
        if (same := slot.common(admission.history, call.to_feed)) >= call.cached:
            number, call.cached = 0, same
        call.tokens = list(call.to_feed[: call.cached])
        call.grant = -call.cached
        slot.history, slot.domain, slot.call = admission.history, admission.domain, admission.call
        self._calls[admission.call] = call
        self._queue(Step(admission.call, cached=call.cached, source=number, saved=saved))

    def _fault(self, admission: Admission) -> str:
        count = len(admission.prompt.tokens)
        if not 0 <= admission.slot < len(self._slots):
            return f"no slot {admission.slot}: the engine has {len(self._slots)} slots"
        if self._slots[admission.slot].call is not None or admission.call in self._calls:
            return f"slot {admission.slot} or call {admission.call} is in use"
        if not 0 < count < self._window:
            return f"the prompt has {count} tokens; 1 to {self._window - 1} fit the window"
        invalid = "the prompt contains an invalid token id"
        return "" if all(map(valid, admission.prompt.tokens)) else invalid

    def grant(self, call: int, tokens: int) -> None:
        known = self._calls.get(call)
        if known is not None:
            known.grant += max(0, tokens)
            self._ready.setdefault(call, known)
            self._schedule()

    def cancel(self, call: int) -> None:
        known = self._calls.get(call)
        if known is not None:
            known.finish = Finish.CANCELLED
            self._queue(self._end(known, "", 0, 0))

    def park(self, call: int, *, keep: bool) -> None:
        known = self._calls.get(call)
        if known is not None and (known.slot is not None or (known.parked and not known.dropped)):
            if known.slot is not None:
                self._slots[known.slot] = EchoSlot()
            known.slot, known.parked = None, True
            if not keep or self._parked() > self._parked_bytes:
                known.drop()

    def _parked(self) -> int:
        """Simulated bytes of the contexts of parked calls."""
        parked = (call for call in self._calls.values() if call.parked)
        return TOKEN_BYTES * sum(len(call.tokens) for call in parked)

    def order(self, calls: Sequence[int], once: int) -> None:
        self._order.set(calls, once)
        self._schedule()

    def drop(self, number: int) -> None:
        self._store.drop(number)

    def clear(self, slot: int) -> None:
        if self._slots[slot].call is None:
            self._slots[slot] = EchoSlot()

    def unpark(self, call: int, slot: int, save: int = 0) -> None:
        known = self._calls.get(call)
        if known is None or known.slot is not None:
            return
        if not 0 <= slot < len(self._slots) or self._slots[slot].call is not None:
            fault = DeviceFault(f"slot {slot} is in use or does not exist")
            self._queue(self._end(known, "", 0, 0, fault))
            return
        saved = self._store.save(save, self._slots[slot])
        known.slot, known.parked = slot, False
        history, domain = known.admission.history, known.admission.domain
        self._slots[slot] = EchoSlot(history=history, domain=domain, call=call)
        recompute = known.left if known.dropped else 0
        known.dropped = False
        self._queue(Step(call, recompute=recompute, saved=saved))

    # --- steps --------------------------------------------------------------------------------
    def _queue(self, step: Step) -> None:
        self._steps.append(step)
        self._schedule()

    def _schedule(self) -> None:
        """Schedule the next step, if there is work."""
        busy = self._steps or any(map(self._computes, self._ready.values()))
        if not self._up or self._timer is not None or not busy:
            return
        if self._hang_after and self._generated >= self._hang_after:
            return
        loop = asyncio.get_running_loop()
        if self._interval_s:
            self._timer = loop.call_later(self._interval_s, self._step)
        else:
            self._timer = loop.call_soon(self._step)

    def _computes(self, call: EchoCall) -> bool:
        """Whether a step computes something for the call."""
        return call.runnable and (not call.left or self._order.has(call.admission.call))

    def _step(self) -> None:
        self._timer = None
        chosen = [call for call in self._ready.values() if self._computes(call)][: self._width]
        decoding = sum(1 for call in chosen if not call.left)
        room = limits.CHUNK_TOKENS if decoding else limits.BATCH_TOKENS
        for call in sorted(chosen, key=self._place):
            fed = min(call.left, call.grant, room)
            room -= fed
            step = self._advance(call, fed)
            if step is not None:
                self._steps.append(step)
        if any(call.crashes and not call.left for call in chosen):
            self._crash()
            return
        steps, self._steps = self._steps, []
        if self._listener is not None:
            self._listener.stepped(steps)
        if self._die_after and self._generated >= self._die_after:
            self._die_after = 0  # once
            self._crash()
        self._schedule()

    def _place(self, call: EchoCall) -> tuple[int, int]:
        """Sorts the calls of a step: those that generate first, then prompts in their order."""
        return (self._order.place(call.admission.call) + 1 if call.left else 0), call.left

    def _advance(self, call: EchoCall, fed: int) -> Step | None:
        """Feed a part of the prompt or generate one token."""
        first = len(call.tokens)
        if fed:
            self._order.fed(call.admission.call)
        call.tokens.extend(call.to_feed[first : first + fed])
        call.grant -= fed
        text, tokens = "", 0
        if not call.left and call.grant > 0:
            text, tokens = call.generate(self._window)
            self._generated += tokens
        if call.grant <= 0:
            self._ready.pop(call.admission.call, None)
        if call.finish is not None:
            return self._end(call, text, tokens, fed)
        if not fed and not tokens:
            return None
        return Step(call.admission.call, text, tokens, fed)

    def _end(
        self, call: EchoCall, text: str, tokens: int, fed: int, error: DeviceFault | None = None
    ) -> Step:
        """The last step of the call; frees its slot."""
        number = call.admission.call
        del self._calls[number]
        self._ready.pop(number, None)
        if call.slot is not None:
            slot = self._slots[call.slot]
            slot.call, slot.tokens = None, () if call.not_reusable else call.tokens
        rest = call.scan.flush()
        whole = "".join([*call.texts, rest])
        if error is None and call.admission.prompt.kept:
            self.prompts.answered(call.admission.prompt.kept, whole)
        return Step(
            number,
            text=text + rest,
            tokens=tokens,
            fed=fed,
            finish=None if error else call.finish,
            error=error,
            cuts=cut_answer(whole, call.chars_after),
        )

    def _crash(self) -> None:
        self._backoff.died(time.monotonic() - self._up_since)
        self._go_down(
            self._backoff.applied(Death("the echo engine crashed, as its options request"))
        )

    def _go_down(self, death: Death) -> None:
        """Drop all calls and contexts, and come up again after the pause."""
        self._up = False
        if self._timer is not None:
            self._timer.cancel()
        self._calls, self._ready, self._steps = {}, {}, []
        self.prompts.clear()
        self._store.clear()
        self._order = PromptOrder()
        self._slots = [EchoSlot() for _ in self._slots]
        if self._listener is not None:
            self._listener.down(death)
        self._timer = asyncio.get_running_loop().call_later(death.retry_s, self._come_up)
