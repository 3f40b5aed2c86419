"""What becomes of an engine whose child process dies, hangs or dies too often."""

import os
import signal

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Message, Role
from llmasos.kernel.driver import Cause
from tests.drivers.rig import PLENTY, Rig

# Long enough for a step on a busy machine: what computes must not count as hanging.
HANG_S = 3


async def a_dead_engine_is_reported_and_comes_back(death: signal.Signals, small: Rig) -> None:
    downs, ups, pid = len(small.ear.downs), small.ear.ups, small.facts.os_pid
    number = small.admit(await small.prompt(), max_tokens=200, ignore_eos=True)
    small.engine.grant(number, PLENTY)
    await small.say(number, 2)
    os.kill(pid, death)
    with pytest.raises(DeviceFault):
        await small.engine.compose([Message(Role.USER, "hi " * 50_000)], raw=False, fresh=1)
    await small.ear.until(lambda: len(small.ear.downs) > downs)
    told = small.ear.downs[-1]
    assert death.name in told.reason
    assert told.cause is (Cause.OUTSIDE if death is signal.SIGKILL else Cause.CRASH)
    assert not told.failed
    small.engine.grant(number, 1)
    small.engine.cancel(number)
    await small.ear.until(lambda: small.ear.ups > ups)
    assert small.facts.os_pid != pid
    assert (await small.run(await small.prompt())).last.error is None
    assert all(step.finish is None for step in small.ear.steps(number))


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until every thread of our child has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


async def a_hanging_engine_is_killed(rig: Rig) -> None:
    """Mounted with `hang_s` HANG_S."""
    tokens = await rig.prompt()
    freeze(rig.facts.os_pid)
    rig.engine.grant(rig.admit(tokens), PLENTY)
    await rig.ear.until(lambda: rig.ear.downs)
    assert f"no answer for {HANG_S} s" in rig.ear.downs[0].reason
    assert rig.ear.downs[0].cause is Cause.OUTSIDE  # it was stopped: no call is the reason
    await rig.ear.until(lambda: rig.ear.ups == 2)
    assert (await rig.run(tokens)).last.error is None
    freeze(rig.facts.os_pid)
    with pytest.raises(DeviceFault, match="no answer for"), anyio.fail_after(60):
        await rig.engine.tokenize("hello")


def shorten_pauses(patch: pytest.MonkeyPatch) -> None:
    """Before the mount: the second death in a row is one too many."""
    patch.setattr(limits, "CRASHES", 1)
    patch.setattr(limits, "RESTART_FIRST_S", 0.01)


async def an_engine_that_dies_too_often_has_failed_and_comes_back(
    rig: Rig, patch: pytest.MonkeyPatch
) -> None:
    """P-08: after any number of deaths it is tried again: later, when asked, on request."""
    os.kill(rig.facts.os_pid, signal.SIGKILL)
    await rig.ear.until(lambda: rig.ear.ups == 2)
    patch.setattr(limits, "RESTART_FIRST_S", 60.0)
    patch.setattr(limits, "RESTART_LAST_S", 90.0)
    os.kill(rig.facts.os_pid, signal.SIGKILL)
    await rig.ear.until(lambda: len(rig.ear.downs) == 2)
    assert [(d.failed, d.deaths) for d in rig.ear.downs] == [(False, 1), (True, 2)]
    assert rig.ear.downs[-1].retry_s == 90.0
    with pytest.raises(DeviceFault):
        await rig.prompt()
    rig.engine.retry()
    await rig.ear.until(lambda: rig.ear.ups == 3)
    assert (await rig.run(await rig.prompt())).last.error is None
    os.kill(rig.facts.os_pid, signal.SIGKILL)
    await rig.ear.until(lambda: len(rig.ear.downs) == 3)
    assert rig.ear.downs[-1].failed  # it had not run for long
    await rig.engine.restart()
    await rig.ear.until(lambda: rig.ear.ups == 4)
    assert (await rig.run(await rig.prompt())).last.error is None
    pid = rig.facts.os_pid
    await rig.engine.restart()  # one that is up, too
    await rig.ear.until(lambda: rig.ear.ups == 5)
    assert rig.ear.downs[-1].cause is Cause.OUTSIDE
    assert (rig.ear.downs[-1].failed, rig.facts.os_pid == pid) == (False, False)
    assert (await rig.run(await rig.prompt())).last.error is None
