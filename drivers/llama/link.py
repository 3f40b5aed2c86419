"""One running child that holds a model, and what is owed by it.

What every child of a driver has in common stands in drivers/process.py; here are the calls: what
was granted and not yet told, so that a hang of the engine thread is noticed while texts are still
answered.
"""

from asyncio.subprocess import Process
from dataclasses import asdict
from pathlib import Path

from llmasos.drivers import process as processes
from llmasos.drivers.frames import Frame
from llmasos.drivers.process import Line, Start, Watchdog
from llmasos.kernel.driver import Admission, Facts, Listener, Step

from . import frames
from .answers import Answers
from .options import SPIN


class Link(Line[Facts]):
    """The running child."""

    def __init__(self, process: Process, chosen: frames.Settings, listener: Listener) -> None:
        super().__init__(frames.NAME, process, chosen.hang_s, frames.facts_in)
        self._listener = listener
        self._owed: dict[int, int] = {}  # tokens granted and not yet told, by call
        self._parked: set[int] = set()
        self._cancelled: set[int] = set()
        self._steps = Watchdog(chosen.hang_s, self.hang)
        self._answers = Answers(listener)

    def take(self, frame: Frame) -> bool:
        match frame:
            case [frames.STEPS, *steps]:
                self._take_steps([frames.step_in(step) for step in steps])
            case [frames.LOADING, float(done)]:
                self._listener.loading(done)
            case _:
                return False
        return True

    def lost(self) -> None:
        self._steps.feed(work=False)
        self._answers.lost()

    # --- calls --------------------------------------------------------------------------------
    def admit(self, admission: Admission) -> None:
        tokens = frames.tokens_out(admission.prompt.tokens)
        head = [frames.ADMIT, admission.call, admission.slot, admission.history]
        self.send([*head, admission.domain, tokens, admission.sampling])
        self._owed[admission.call] = 0
        self._answers.admit(admission)

    def purge(self, domain: str) -> None:
        self.send([frames.PURGE, domain])

    def forget(self, history: int) -> None:
        self.send([frames.FORGET, history])

    def grant(self, call: int, tokens: int) -> None:
        if call in self._owed:
            self.send([frames.GRANT, call, tokens])
            self._owed[call] += tokens
            self._watch()

    def cancel(self, call: int) -> None:
        if call in self._owed:
            self.send([frames.CANCEL, call])
            self._cancelled.add(call)
            self._watch()
        self._answers.cancel(call)

    def park(self, call: int, keep: bool) -> None:
        if call in self._owed:
            self.send([frames.PARK, call, keep])
            self._parked.add(call)

    def unpark(self, call: int, slot: int) -> None:
        if call in self._owed:
            self.send([frames.UNPARK, call, slot])
            self._parked.discard(call)
            self._watch()

    def _take_steps(self, steps: list[Step]) -> None:
        for step in steps:
            if step.finish is not None or step.error is not None:
                self._owed.pop(step.call, None)
                self._parked.discard(step.call)
                self._cancelled.discard(step.call)
            elif step.call in self._owed:
                self._owed[step.call] -= step.tokens + step.fed + step.cached
        self._steps.feed(work=self._works())
        passed = self._answers.passed(steps)
        if passed:
            self._listener.stepped(passed)

    def _works(self) -> bool:
        """Something is owed by the engine thread."""
        if self._cancelled:
            return True
        return any(owed > 0 and call not in self._parked for call, owed in self._owed.items())

    def _watch(self) -> None:
        if self._works():
            self._steps.wake()


def environment() -> dict[str, str]:
    """Only what a child needs; and no debugger attached to it when it aborts."""
    return processes.environment(SPIN, GGML_NO_BACKTRACE="1")


async def launch(chosen: frames.Settings, log: Path, listener: Listener) -> Link:
    """Start a child; returns when it is up. DeviceFault with the reason when it does not come up.

    A cancel point: the child is ended before the cancellation goes on.
    """
    load = [frames.LOAD, asdict(chosen)]
    start = Start(frames.NAME, f"{__package__}.child", log, environment(), load)
    return await processes.launch(start, lambda process: Link(process, chosen, listener))
