"""A device and the calls on it: performs what decide() says, charges what the steps report.

Event-driven: a call that comes, a step that ends, a signal, a device that comes or goes each cause
one turn. Nothing here waits for a device; a call's handler sleeps on the call's own bounded stream.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from . import limits
from .decide import Admit, Claim, Grant, Park, Table, decide
from .driver import Admission, Cut, Engine, Facts, Option, Prompt, Step
from .errors import DeviceFault, SyscallError, TooBig
from .process import Process
from .suspect import Suspects
from .values import Delta, DeviceInfo, Finish, Logprob, Progress, Sampling, Usage


@dataclass(slots=True)
class Work:
    """One generate on a device: its claim, its bounded stream, its account."""

    claim: Claim
    process: Process
    prompt: Prompt
    sampling: Sampling
    asked: float  # monotonic seconds
    pages: frozenset[int] = frozenset()  # ids of the stored pages in its prompt
    forgot: bool = False  # one of these was forgotten: nothing of its answer is kept or shown
    sent: bool = False  # somebody has read a part of its answer
    hash: bytes = b""  # of what it makes the engine do
    admitted: float = 0.0
    first: float = 0.0  # first answer token
    ended: float = 0.0
    cached: int = 0
    tokens: int = 0
    unread: int = 0  # tokens in the stream
    texts: list[str] = field(default_factory=list[str])
    logprobs: list[Logprob] = field(default_factory=list[Logprob])
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    finish: Finish | None = None
    cuts: Sequence[Cut] = ()
    error: SyscallError | None = None

    @property
    def done(self) -> bool:
        return self.finish is not None or self.error is not None

    def usage(self) -> Usage:
        admitted = self.admitted or self.ended
        first = self.first or self.ended
        return Usage(
            prompt_tokens=self.prompt.size,
            cached_tokens=self.cached,
            completion_tokens=self.tokens,
            queue_s=round(admitted - self.asked, 6),
            prefill_s=round(first - admitted, 6),
            decode_s=round(self.ended - first, 6),
        )


Tell = Callable[["Device", str, str], None]  # a device's new state, and why


@dataclass(frozen=True, slots=True)
class Mounting:
    """What is mounted, and how."""

    name: str  # of the image
    driver: str
    model: str  # another word when the model's file is another
    pin: bool = False
    remark: str = ""  # what `devices` says of it while all is well
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])


class Device:
    """One mounted engine. Also its Listener."""

    def __init__(self, what: Mounting, engine: Engine, suspects: Suspects, tell: Tell) -> None:
        self.name, self.driver, self._model = what.name, what.driver, what.model
        self.engine, self._remark = engine, what.remark
        self.options = what.options
        self.pinned = what.pin  # never unloaded by itself
        self.users = 0  # calls that need it now
        self.used = time.monotonic()  # when the last of them left
        self._suspects = suspects
        self.facts: Facts | None = None
        self.state = "loading"
        self.note = ""
        self.restarts = 0
        self.loaded = 0.0  # share of the model's file that has been read
        self.changed = asyncio.Event()  # set and replaced at each change of state or of `loaded`
        self._tell = tell
        self._table = Table(0, 0, 0)
        self._work: dict[int, Work] = {}
        self._rate = Rate()
        self.refusal: SyscallError | None = None  # why it did not start

    # --- what the driver tells ------------------------------------------------------------------
    def loading(self, done: float) -> None:
        self.loaded = done
        self._news()

    def up(self, facts: Facts) -> None:
        if self.state == "unmounted":  # while it was loading
            return
        self.facts = facts
        self._table.slots, self._table.width = facts.slots, facts.width
        self._table.cells, self._table.can_park = facts.cells, "park" in facts.capabilities
        self._table.turn = facts.turn
        self._become("up", "")
        self.turn()

    def stepped(self, steps: Sequence[Step]) -> None:
        now = time.monotonic()
        for step in steps:
            work = self._work.get(step.call)
            if work is not None:
                self._charge(work, step, now)
        self._rate.add(sum(step.tokens for step in steps), now)
        self.turn()

    def down(self, reason: str, *, final: bool) -> None:
        self.restarts += 1
        works = list(self._work.values())
        inside = [work for work in works if work.claim.slot is not None]
        parked = [work for work in works if work.claim.parked]
        self._suspects.died([w.hash for w in inside], [w.hash for w in parked], reason)
        for work in works if final else [*inside, *parked]:
            words = f"the engine of {self.name} died: {reason}"
            self._end(work, error=DeviceFault(words, self._hint(work, final)))
        self._judge()
        self._table.last.clear()
        self._become("failed" if final else "restarting", reason)

    def _hint(self, work: Work, final: bool) -> str:
        poison = self._suspects.poison(work.hash)
        if poison is not None:
            return f"it was alone in the engine, as before: {poison.hint}"
        alone = ", and this call then runs alone" if self._suspects.suspect(work.hash) else ""
        return self._remount() if final else f"ask again: the engine restarts by itself{alone}"

    def _judge(self) -> None:
        """What is held against those who wait has changed."""
        for work in list(self._work.values()):
            poison = self._suspects.poison(work.hash)
            if work.claim.slot is None and poison is not None:
                self._end(work, error=poison)
            elif work.claim.slot is None:
                work.claim.alone = self._suspects.suspect(work.hash)

    def _become(self, state: str, note: str) -> None:
        self.state, self.note = state, note
        self._news()
        self._tell(self, state, note)

    def _news(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _remount(self) -> str:
        return f"`llmasos daemon logs`, then `llmasos unmount {self.name}` and mount it again"

    def _charge(self, work: Work, step: Step, now: float) -> None:
        claim = work.claim
        spent = step.fed + step.tokens
        self._table.charge(claim, spent)
        claim.granted -= spent + step.cached
        if step.cached:
            work.cached = step.cached
        claim.prompt = max(0, claim.prompt - step.fed - step.cached)
        if step.tokens:
            work.first = work.first or now
            work.tokens += step.tokens
            work.unread += step.tokens
            work.process.generated += step.tokens
            work.process.rate = work.tokens / max(now - work.first, 1e-3) if work.tokens > 1 else 0
        if step.text and not work.forgot:
            work.texts.append(step.text)
            work.logprobs += step.logprobs
        # Without a text there is nothing to read, so nobody could be behind.
        claim.behind = bool(work.texts) and work.unread >= limits.STREAM_TOKENS
        if step.finish is not None or step.error is not None:
            work.cuts = step.cuts
            self._end(work, finish=step.finish, error=step.error)
            told = work.tokens > 0 or step.finish is not Finish.CANCELLED
            if claim.alone and told and self._suspects.ended(work.hash):
                self._judge()
        elif step.text:
            work.ready.set()

    # --- what the kernel asks -------------------------------------------------------------------
    async def load(self) -> SyscallError | None:
        """Start the engine; returns why it did not."""
        try:
            await self.engine.start(self)
        except SyscallError as error:
            return error
        except OSError as error:
            return DeviceFault(f"{self.name} did not start: {error}", self._remount())
        return None

    def fail(self, refusal: SyscallError) -> None:
        """It did not start: who waits for it hears why."""
        self.refusal = refusal
        self.close(refusal.message)

    async def wait_up(self, tell: Callable[[Progress], None] | None = None) -> Facts:
        """The facts, once the engine is up. EIO with the reason when it has failed.

        `tell` hears how far the load is, but not more often than every PROGRESS_S.
        """
        told = -limits.PROGRESS_S
        while self.facts is None or self.state != "up":
            if self.state in ("failed", "unmounted"):
                raise self._fault()
            now = time.monotonic()
            if tell is not None and now - told >= limits.PROGRESS_S:
                told = now
                tell(Progress("load", self.loaded, self.name))
            await self.changed.wait()
        return self.facts

    def _fault(self) -> SyscallError:
        if self.refusal is not None:
            return self.refusal
        return DeviceFault(f"the engine of {self.name} failed: {self.note}", self._remount())

    def submit(self, work: Work) -> None:
        """Take a call in. E2BIG at once when it can never fit, EPOISON when it may not."""
        if self.state in ("failed", "unmounted"):
            raise self._fault()
        cells = self._table.cells
        if work.claim.cells > cells:
            raise TooBig(
                f"{work.claim.cells} tokens are needed and all of {self.name} holds {cells}",
                f"ask for fewer, or mount {self.name} with more slots or a larger window",
            )
        work.hash = self._suspects.hash(self._model, work.prompt, work.sampling)
        poison = self._suspects.poison(work.hash)
        if poison is not None:
            raise poison
        work.claim.alone = self._suspects.suspect(work.hash)
        self._work[work.claim.call] = work
        self._table.add(work.claim)
        self.turn()

    def cancel(self, call: int) -> None:
        """End a call at the next step; one that waits ends now."""
        work = self._work.get(call)
        if work is None:
            return
        if work.claim.slot is None and not work.claim.parked:
            self._end(work, finish=Finish.CANCELLED)
            self.turn()
        else:
            self.engine.cancel(call)

    def withdraw(self, work: Work) -> None:
        """A page of its prompt was forgotten: end the call, at the next step where it computes."""
        work.forgot, work.cuts = True, ()
        work.texts.clear()
        work.logprobs = []
        self.cancel(work.claim.call)

    def stop(self, process: Process) -> None:
        """Follow the process's stopped flag."""
        for work in self._work.values():
            if work.process is process and process.stopped:
                work.claim.stopped = True
            elif work.process is process:
                self._table.go_on(work.claim)
        self.turn()

    def forget(self, process: int) -> None:
        """The process is gone: its slots are free for others first."""
        self._table.forget(process)
        self.engine.forget(process)

    def purge(self, domain: str) -> None:
        """Pages of the domain were forgotten: so are contexts that may hold them."""
        self.engine.purge(domain)

    def renice(self, process: Process) -> None:
        for work in self._work.values():
            if work.process is process:
                work.claim.weight = process.weight

    def close(self, reason: str, state: str = "failed") -> None:
        """The device goes: its calls end."""
        for work in list(self._work.values()):
            self._end(work, error=DeviceFault(reason, "mount it again"))
        self._become(state, reason)

    def take(self, work: Work) -> Delta | None:
        """What the stream holds, at once; None when it is empty."""
        if not work.texts:
            return None
        work.sent = True
        delta = Delta("".join(work.texts), work.unread, work.logprobs)
        work.texts.clear()
        work.logprobs = []
        work.unread = 0
        if work.claim.behind:
            work.claim.behind = False
            self.turn()
        return delta

    def turn(self) -> None:
        """Perform what decide() says."""
        if self.state != "up":
            return
        for decision in decide(self._table):
            work = self._work[decision.call]
            match decision:
                case Admit(call, slot):
                    self._admit(work, call, slot)
                case Park(call, slot):
                    work.claim.slot, work.claim.parked, work.process.running = None, True, False
                    self._table.last.pop(slot, None)
                    self.engine.park(call)
                case Grant(call, tokens):
                    self._table.grant(work.claim, tokens)
                    self.engine.grant(call, tokens)

    def _admit(self, work: Work, call: int, slot: int) -> None:
        work.claim.slot = slot
        work.process.running = True
        self._table.enter(slot, work.process.pid)
        if work.claim.parked:
            work.claim.parked = False
            self.engine.unpark(call, slot)
            return
        work.admitted = time.monotonic()
        pid, domain = work.process.pid, work.process.domain
        self.engine.admit(Admission(call, slot, pid, domain, work.prompt, work.sampling))

    def _end(
        self, work: Work, *, finish: Finish | None = None, error: SyscallError | None = None
    ) -> None:
        work.finish, work.error, work.ended = finish, error, time.monotonic()
        work.process.running, work.process.rate = False, 0.0
        self._table.drop(work.claim.call)
        del self._work[work.claim.call]
        work.ready.set()

    def info(self) -> DeviceInfo:
        facts = self.facts
        busy = sum(w.claim.slot is not None for w in self._work.values())
        return DeviceInfo(
            name=self.name, driver=self.driver, image=self.name, state=self.state,
            slots=facts.slots if facts else 0, busy=busy, waiting=len(self._work) - busy,
            window=facts.window if facts else 0, width=facts.width if facts else 0,
            os_pid=facts.os_pid if facts else 0, restarts=self.restarts,
            placement=facts.placement if facts else "",
            capabilities=sorted(facts.capabilities) if facts else [],
            rate=round(self._rate.value(time.monotonic()), 1), note=self.note or self._remark,
            pinned=self.pinned, loaded=self.loaded if self.state == "loading" else 1.0,
            deterministic=facts.deterministic if facts else False, on=facts.on if facts else "",
        )  # fmt: skip


class Rate:
    """Tokens a second over the last seconds, by exponential decay."""

    _SPAN_S = 4.0

    def __init__(self) -> None:
        self._tokens = 0.0
        self._at = 0.0

    def value(self, now: float) -> float:
        return self._left(now) * 0.6931 / self._SPAN_S  # ln 2: the mean life of a token's count

    def add(self, tokens: int, now: float) -> None:
        self._tokens = self._left(now) + tokens
        self._at = now

    def _left(self, now: float) -> float:
        return self._tokens * math.exp2((self._at - now) / self._SPAN_S)
