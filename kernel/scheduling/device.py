"""A device and the calls on it: executes the decisions of decide(), charges the reported steps.

Event-driven: a new call, the end of a step, a signal, and a device that comes up or goes down each
run the scheduler once. Nothing here waits for a device; a call's handler waits on the bounded
stream of its own call.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from ..abi import limits
from ..abi.errors import DeviceFault, Errno, SyscallError, TooBig, os_message
from ..abi.values import Delta, DeviceInfo, Finish, Progress
from ..driver import Admission, Death, Engine, Facts, Step
from ..process.table import Process
from ..storage.threads import FairThreads
from .contexts import Clear, Drop
from .moves import Admit, Grant, Order, Park
from .quarantine import Quarantine, SuspectCall
from .scheduler import DeviceState, decide
from .work import Mounting, Rate, Work

_LOGS = "`llmasos daemon logs` shows the details"
Report = Callable[["Device", str, str], None]  # called with a device's new state and the reason


class Device:
    """One mounted engine. Also its Listener."""

    def __init__(
        self, mounting: Mounting, engine: Engine, quarantine: Quarantine, report: Report
    ) -> None:
        self.name, self.driver, self._model = mounting.name, mounting.driver, mounting.model
        self.engine, self._remark = engine, mounting.remark
        self.options = mounting.options
        self.pinned = mounting.pin  # never unloaded automatically
        self.users = 0  # calls that use it now
        self.embeds = FairThreads(1, limits.EMBED_TURNS)  # by owner
        self.used = time.monotonic()  # when the last use ended
        self._quarantine = quarantine
        self.facts: Facts | None = None
        self.state = "loading"
        self.note = ""
        self.restarts = 0
        self._death: Death | None = None  # the last one, while the engine is down
        self._died_at = 0.0  # monotonic seconds
        self._demanded = False  # a failed engine is being started because a call needs it
        self.loaded = 0.0  # share of the model's file that has been read
        self._progress = Progress("load", 0.0, self.name)
        self.changed = asyncio.Event()  # set and replaced at each change of state or of `loaded`
        self._report = report
        self._table = DeviceState(0, 0, 0)
        self._work: dict[int, Work] = {}
        self._rate = Rate()
        self.refusal: SyscallError | None = None  # why it did not start

    # --- called by the driver -------------------------------------------------------------------
    def loading(self, done: float, stage: str = "load") -> None:
        self._progress = Progress(stage, done, self.name)
        if stage == "load":
            self.loaded = done
        self._notify()

    def up(self, facts: Facts) -> None:
        if self.state == "unmounted":  # unmounted while it was loading
            return
        self.facts, self._death, self._demanded = facts, None, False
        self._table.slots, self._table.width = facts.slots, facts.width
        self._table.cells, self._table.can_park = facts.cells, "park" in facts.capabilities
        self._table.turn, self._table.ordered = facts.turn, "order" in facts.capabilities
        self._table.parked_bytes = facts.parked_bytes
        contexts = self._table.contexts
        contexts.kept_bytes, contexts.token_bytes = facts.kept_bytes, facts.token_bytes
        contexts.context_bytes, contexts.block_tokens = facts.context_bytes, facts.block_tokens
        self._set_state("up", "")
        self.schedule()

    def stepped(self, steps: Sequence[Step]) -> None:
        now = time.monotonic()
        running_weight = self._table.running_weight()
        for step in steps:
            work = self._work.get(step.call)
            if work is not None:
                self._charge(work, step, now, running_weight)
                if work.done:
                    running_weight = self._table.running_weight()
        self._rate.add(sum([step.tokens for step in steps]), now)
        self.schedule()
        for step in steps:
            work = self._work.get(step.call) if step.text else None
            if work is not None and work.deliver is not None:
                work.deliver()

    def down(self, death: Death) -> None:
        if self.state == "unmounted":
            return
        self.restarts += 1
        self._death, self._died_at, self._demanded = death, time.monotonic(), False
        works = list(self._work.values())
        resident = [work for work in works if work.claim.slot is not None]
        parked = [work for work in works if work.claim.parked]
        lost = [work for work in parked if work.claim.call not in death.kept]
        self._quarantine.died(self._suspects(resident), self._suspects(parked), death)
        for work in works if death.failed else [*resident, *lost]:
            message = f"the engine of {self.name} died: {death.reason}"
            self._end(work, error=DeviceFault(message, self._hint(work, death)))
        self.apply_quarantine()
        self._table.lost()
        self._set_state("failed" if death.failed else "restarting", death.reason)

    def _suspects(self, works: Sequence[Work]) -> list[SuspectCall]:
        return [SuspectCall(work.hash, self.name, work.process.owner) for work in works]

    def _hint(self, work: Work, death: Death) -> str:
        poison = self._quarantine.poison(work.hash)
        if poison is not None:
            return f"this call was alone in the engine, as before: {poison.hint}"
        if death.failed:
            return self._fault().hint
        alone = ", and this call then runs alone" if self._quarantine.is_suspect(work.hash) else ""
        return f"retry: the engine restarts automatically{alone}"

    def apply_quarantine(self) -> None:
        """Apply the current marks to waiting calls: poison ends a call, a suspect runs alone."""
        for work in list(self._work.values()):
            poison = self._quarantine.poison(work.hash)
            if work.claim.slot is None and poison is not None:
                if work.claim.parked:
                    self.engine.cancel(work.claim.call)
                self._end(work, error=poison)
            elif work.claim.slot is None:
                work.claim.exclusive = self._quarantine.is_suspect(work.hash)

    def _set_state(self, state: str, note: str) -> None:
        self.state, self.note = state, note
        self._notify()
        self._report(self, state, note)

    def _notify(self) -> None:
        """Wake all that wait for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def _charge(self, work: Work, step: Step, now: float, running_weight: float) -> None:
        claim = work.claim
        self._table.advance(claim, step, now, running_weight)
        if step.cached:
            work.cached = step.cached
        if step.tokens:
            work.first = work.first or now
            work.tokens += step.tokens
            work.drafted, work.accepted = work.drafted + step.drafted, work.accepted + step.accepted
            work.unread += step.tokens
            work.process.generated += step.tokens
            work.process.rate = work.tokens / max(now - work.first, 1e-3) if work.tokens > 1 else 0
        if step.text and not work.forgot:
            work.texts.append(step.text)
            work.logprobs += step.logprobs
        # Without text there is nothing to read, so the reader cannot be slow.
        claim.slow_reader = bool(work.texts) and work.unread >= limits.STREAM_TOKENS
        if step.finish is not None or step.error is not None:
            work.cuts, work.lost = step.cuts, step.lost
            self._end(work, finish=step.finish, error=step.error)
            cancelled = step.finish is Finish.CANCELLED and not work.tokens
            ran = not cancelled and not step.lost
            if claim.exclusive and ran and self._quarantine.ended(work.hash):
                self.apply_quarantine()

    # --- called by the kernel -------------------------------------------------------------------
    async def load(self) -> SyscallError | None:
        """Start the engine; returns the error when it did not start."""
        try:
            await self.engine.start(self)
        except SyscallError as error:
            return error
        except OSError as error:
            return DeviceFault(f"{self.name} did not start: {os_message(error)}", _LOGS)
        return None

    def fail(self, refusal: SyscallError) -> None:
        """The engine did not start: calls that wait for it get this error."""
        self.refusal = refusal
        self.close(refusal.message)

    async def wait_up(self, report: Callable[[Progress], None] | None = None) -> Facts:
        """The facts, once the engine is up. EIO with the reason when it has failed.

        `report` is called with the progress of the load, at most once every PROGRESS_S.
        """
        reported = -limits.PROGRESS_S
        self._demand()
        while self.facts is None or self.state != "up":
            if self.state == "unmounted" or (self.state == "failed" and not self._demanded):
                raise self._fault()
            now = time.monotonic()
            if report is not None and now - reported >= limits.PROGRESS_S:
                reported = now
                report(self._progress)
            await self.changed.wait()
        return self.facts

    def _demand(self) -> None:
        """A call needs it: start a failed engine now, unless it died less than DEMAND_S ago."""
        due = time.monotonic() - self._died_at >= limits.DEMAND_S
        if self.state == "failed" and self._death is not None and due and not self._demanded:
            self._demanded = True
            self.engine.retry()

    async def restart(self) -> None:
        """End the engine, if it is up, and start it at once; returns when it is up. EBUSY, EIO."""
        if self.state == "loading":
            hint = "wait until it is loaded: `llmasos devices` shows the progress"
            raise SyscallError(Errno.EBUSY, f"{self.name} is loading", hint)
        expected = self.restarts + (self.state == "up")  # value of `restarts` after this restart
        self._set_state("restarting", "on request")
        await self.engine.restart()
        while self.state != "up":
            if self.state == "unmounted" or self.restarts > expected:
                raise self._fault()
            await self.changed.wait()

    @property
    def retry_s(self) -> float:
        """Seconds until a dead engine is started again; 0 when it is not dead."""
        if self._death is None:
            return 0.0
        return max(0.0, self._died_at + self._death.retry_s - time.monotonic())

    def _fault(self) -> SyscallError:
        if self.refusal is not None:
            return self.refusal
        if self._death is None or self.state == "unmounted":
            return DeviceFault(self.note, f"`llmasos mount {self.name}` starts it")
        times = "once" if self._death.deaths == 1 else f"{self._death.deaths} times in a row"
        return DeviceFault(
            f"the engine of {self.name} failed {times}, the last time: {self.note}; "
            f"it is started again in {self.retry_s:.0f} s",
            f"`llmasos devices restart {self.name}` starts it now, "
            "`llmasos daemon logs` shows the details",
        )

    def submit(self, work: Work) -> None:
        """Queue a call. E2BIG when it can never fit, EPOISON when it is quarantined."""
        if self.state in ("failed", "unmounted"):
            raise self._fault()
        cells = self._table.cells
        if work.claim.cells > cells:
            raise TooBig(
                f"the call needs {work.claim.cells} tokens, all slots of {self.name} hold {cells}",
                f"request fewer tokens, or mount {self.name} with more slots or a larger window",
            )
        work.hash = self._quarantine.hash(self._model, work.prompt, work.sampling)
        poison = self._quarantine.poison(work.hash)
        if poison is not None:
            raise poison
        work.claim.exclusive = self._quarantine.is_suspect(work.hash)
        self._work[work.claim.call] = work
        self._table.add(work.claim)
        self.schedule()

    def cancel(self, call: int) -> None:
        """End a call at the next step; a waiting call ends now."""
        work = self._work.get(call)
        if work is None:
            return
        if work.claim.slot is None and not work.claim.parked:
            self._end(work, finish=Finish.CANCELLED)
            self.schedule()
        else:
            self.engine.cancel(call)

    def withdraw(self, work: Work) -> None:
        """A page of its prompt was forgotten: discard the answer so far, and cancel the call."""
        work.forgot, work.cuts = True, ()
        work.texts.clear()
        work.logprobs = []
        self.cancel(work.claim.call)

    def apply_stopped(self, process: Process) -> None:
        """Apply the process's `stopped` flag to its calls."""
        for work in self._work.values():
            if work.process is process and process.stopped:
                work.claim.stopped = True
            elif work.process is process:
                self._table.resume(work.claim)
        self.schedule()

    def forget(self, process: int) -> None:
        """The process has ended: drop what is kept of its contexts."""
        self._table.contexts.forget(process)
        self.engine.forget(process)

    def purge(self, domain: str) -> None:
        """Pages of the domain were forgotten: drop contexts that may hold them."""
        self._table.purge(domain)
        self.engine.purge(domain)

    def renice(self, process: Process) -> None:
        for work in self._work.values():
            if work.process is process:
                work.claim.weight = process.weight

    def close(self, reason: str, state: str = "failed") -> None:
        """End all calls; the device is unmounted or has failed."""
        for work in list(self._work.values()):
            hint = f"`llmasos mount {self.name}` mounts it again"
            self._end(work, error=DeviceFault(reason, hint))
        self._set_state(state, reason)

    def take(self, work: Work) -> Delta | None:
        """Everything in the stream of a call; None when it is empty. Never waits."""
        if not work.texts:
            return None
        work.sent = True
        delta = Delta("".join(work.texts), work.unread, work.logprobs)
        work.texts.clear()
        work.logprobs = []
        work.unread = 0
        if work.claim.slow_reader:
            work.claim.slow_reader = False
            self.schedule()
        return delta

    def schedule(self) -> None:
        """Execute the decisions of decide()."""
        if self.state != "up":
            return
        for decision in decide(self._table, time.monotonic()):
            match decision:
                case Admit(call):
                    self._admit(self._work[call], decision)
                case Park(call, keep):
                    work = self._work[call]
                    work.process.running = False
                    self._table.park(work.claim, keep=keep)
                    self.engine.park(call, keep=keep)
                case Drop() | Clear():
                    self._give_up(decision)
                case Order(calls, once):
                    self._table.order = decision
                    self.engine.order(calls, once)
                case Grant(call, tokens):
                    self._table.grant(self._work[call].claim, tokens)
                    self.engine.grant(call, tokens)

    def _give_up(self, context: Drop | Clear) -> None:
        if isinstance(context, Drop):
            self._table.contexts.drop(context.number)
            self.engine.drop(context.number)
        else:
            self._table.contexts.clear(context.slot)
            self.engine.clear(context.slot)

    def _admit(self, work: Work, move: Admit) -> None:
        parked = work.claim.parked
        self._table.admit(work.claim, move)
        work.process.running = True
        if parked:
            self.engine.unpark(move.call, move.slot, move.save)
            return
        work.admitted = time.monotonic()
        pid, domain = work.process.pid, work.process.domain
        prompt, sampling = work.prompt, work.sampling
        self.engine.admit(
            Admission(move.call, move.slot, pid, domain, prompt, sampling, move.save, move.share)
        )

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
            retry_s=round(self.retry_s, 1),
            pinned=self.pinned, loaded=self.loaded if self.state == "loading" else 1.0,
            deterministic=facts.deterministic if facts else False, on=facts.on if facts else "",
            sent_bytes=self.engine.sent_bytes,
        )  # fmt: skip
