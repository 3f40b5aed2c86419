"""The connection to one running engine child, with the tokens outstanding per call.

drivers/process.py has the part common to all child processes. Here are the calls: the tokens that
were granted and not yet reported, so that a hang of the engine thread is detected while the text
thread still answers.
"""

from asyncio.subprocess import Process
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmasos.drivers import process as processes
from llmasos.drivers.frames import Frame
from llmasos.drivers.process import ChildConnection, Start
from llmasos.drivers.watchdog import Watchdog
from llmasos.kernel.driver import Admission, Facts, Listener, Step

from . import frames
from .answers import Answers
from .parked import ParkedCalls
from .shared_memory import Region


@dataclass(frozen=True, slots=True)
class Program:
    """The child process of an engine."""

    module: str
    environment: Mapping[str, str]


class EngineLink(ChildConnection[Facts]):
    """The running engine child."""

    def __init__(
        self,
        process: Process,
        chosen: frames.EngineSettings,
        listener: Listener,
        calls: ParkedCalls,
    ) -> None:
        super().__init__(frames.NAME, process, chosen.hang_s, frames.facts_in)
        self._listener = listener
        self._outstanding: dict[int, int] = {}  # tokens granted and not yet reported, by call
        self._parked: set[int] = set()
        self._parked_calls = calls  # those whose state is known
        self._cancelled: set[int] = set()
        self._step_watchdog = Watchdog(process.pid, chosen.hang_s, self.hang)
        self._answers = Answers(listener)

    def handle_frame(self, frame: Frame) -> bool:
        match frame:
            case [frames.STEPS, *steps]:
                self._handle_steps([frames.step_in(step) for step in steps])
            case [frames.PARKED, int(call), *fields]:
                if call in self._parked and call in self._outstanding:
                    self._parked_calls.parked([call, *fields])
            case [frames.SHARED, int(call), int(offset), int(size), _]:
                self._parked_calls.shared(call, Region(offset, size))
            case [frames.LOADING, float(done)]:
                self._listener.loading(done)
            case _:
                return False
        return True

    def disconnected(self) -> None:
        self._step_watchdog.reset(work=False)
        for call, parked in self._parked_calls.items():
            if call in self._outstanding:  # not if this process died while it loaded
                parked.granted = self._outstanding[call]
                parked.text = self._answers.text(call)
        self._answers.disconnected()

    # --- calls --------------------------------------------------------------------------------
    def admit(self, admission: Admission) -> None:
        prompt = admission.prompt.kept or frames.tokens_out(admission.prompt.tokens)
        head = [frames.ADMIT, admission.call, admission.slot, admission.history]
        contexts = [admission.save, admission.share]
        self.send([*head, admission.domain, prompt, admission.sampling, *contexts])
        self._outstanding[admission.call] = 0
        self._answers.admit(admission)

    def restore(self) -> None:
        """Continue the calls that the last process had parked."""
        for call, parked in self._parked_calls.items():
            self.send(parked.restore())
            self._outstanding[call] = parked.granted
            self._parked.add(call)
            self._answers.restore(call, parked.text)
            if parked.cancelled:
                self.cancel(call)

    def purge(self, domain: str) -> None:
        self.send([frames.PURGE, domain])

    def forget(self, history: int) -> None:
        self.send([frames.FORGET, history])

    def grant(self, call: int, tokens: int) -> None:
        if call in self._outstanding:
            self.send([frames.GRANT, call, tokens])
            self._outstanding[call] += tokens
            self._watch()

    def cancel(self, call: int) -> None:
        if call in self._outstanding:
            self.send([frames.CANCEL, call])
            self._cancelled.add(call)
            self._watch()
        self._answers.cancel(call)

    def park(self, call: int, keep: bool) -> None:
        if call in self._outstanding:
            self.send([frames.PARK, call, keep])
            self._parked.add(call)
            if not keep:
                self._parked_calls.drop_context(call)

    def unpark(self, call: int, slot: int, save: int) -> None:
        if call in self._outstanding:
            self.send([frames.UNPARK, call, slot, save])
            self._parked.discard(call)
            self._parked_calls.drop(call)
            self._watch()

    def _handle_steps(self, steps: list[Step]) -> None:
        for step in steps:
            # After a step of it, its state is another one.
            self._parked_calls.drop(step.call)
            if step.finish is not None or step.error is not None:
                self._outstanding.pop(step.call, None)
                self._parked.discard(step.call)
                self._cancelled.discard(step.call)
            elif step.call in self._outstanding:
                self._outstanding[step.call] -= step.tokens + step.fed + step.cached
        self._step_watchdog.reset(work=self._is_busy())
        released = self._answers.released(steps)
        if released:
            self._listener.stepped(released)

    def _is_busy(self) -> bool:
        """Whether a step of the engine thread is outstanding."""
        if self._cancelled:
            return True
        return any(
            tokens > 0 and call not in self._parked for call, tokens in self._outstanding.items()
        )

    def _watch(self) -> None:
        if self._is_busy():
            self._step_watchdog.arm()


async def launch(
    chosen: frames.EngineSettings, program: Program, log: Path, listener: Listener,
    calls: ParkedCalls,
) -> EngineLink:  # fmt: skip
    """Start a child; returns when it is up. DeviceFault with the reason when it fails to start.

    When cancelled, it ends the child first.
    """
    shared = [] if calls.memory is None else [calls.memory.fd]
    load = [frames.LOAD, asdict(chosen), shared[0] if shared else None]
    start = Start(frames.NAME, program.module, log, program.environment, load, shared)
    return await processes.launch(
        start, lambda process: EngineLink(process, chosen, listener, calls)
    )
