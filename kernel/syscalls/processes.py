"""Processes: they come, get signals, are listed, and go."""

from collections.abc import Sequence

import anyio

from .. import limits, permit
from .. import values as v
from ..breath import Breath
from ..device import Device
from ..driver import Facts
from ..errors import Errno, SyscallError, TooBig
from ..machine import Machine
from ..memory import titles
from ..process import Process
from .call import Call


async def spawn(m: Machine, call: Call, request: v.Spawn) -> v.Spawned:
    m.memory.database(call.caller.owner)  # a process without pages would be of no use
    async with m.using(request.model, call.send) as (device, facts):
        return await _spawn(m, call, request, device, facts)


async def _spawn(
    m: Machine, call: Call, request: v.Spawn, device: Device, facts: Facts
) -> v.Spawned:
    message = v.Message(v.Role.SYSTEM, request.system)
    prompt = await device.engine.compose([message], raw=True, fresh=1) if request.system else None
    if prompt is not None and prompt.size >= facts.window:
        words = f"the system prompt has {prompt.size} tokens, the window {facts.window}"
        raise TooBig(words, "shorten it, or mount the model with a larger window")
    pid = 0
    with anyio.CancelScope(shield=True):  # of one that was made the caller gets the pid
        process = await m.processes.spawn(call.caller, request, device.name)
        if prompt is not None:
            try:
                await m.memory.say(process, message, prompt.cuts[0], call.caller.author)
            except SyscallError:
                await m.exit(process, 1, "its system prompt could not be written")
                await m.reap(process)
                raise
        m.tell_process(process, f"spawn {device.name}")
        pid = process.pid
    return v.Spawned(pid, device.name, facts.window)


async def fork(m: Machine, call: Call, request: v.Fork) -> v.Forked:
    """Children with the parent's committed pages; the turn in flight is not part of them."""
    caller = call.caller
    parent = m.processes.living(request.pid, caller.owner)
    children = await m.fork(parent, request, caller)
    for child in children:
        m.tell_process(child, f"fork of {parent.pid}")
    return v.Forked([child.pid for child in children], parent.model, _window(m, parent))


async def wait(m: Machine, call: Call, request: v.Wait) -> v.Exit:
    process = m.processes.get(request.pid, call.caller.owner)
    try:
        with anyio.fail_after(request.timeout_s):
            await process.ended.wait()
    except TimeoutError:
        words = f"process {request.pid} has not ended within {request.timeout_s:g} s"
        hint = f"`llmasos kill {request.pid}` ends it"
        raise SyscallError(Errno.ETIMEDOUT, words, hint) from None
    await m.reap(process)
    return process.ending or v.Exit(process.pid, 0, "")


async def kill(m: Machine, call: Call, request: v.Kill) -> v.Nothing:
    process = m.processes.living(request.pid, call.caller.owner)
    match request.signal:
        case v.Signal.INT:
            m.interrupt(process)
        case v.Signal.STOP | v.Signal.CONT:
            await m.processes.stop(process, request.signal is v.Signal.STOP)
            device = m.scheduler.device(process.model)
            if device is not None:
                device.stop(process)
        case v.Signal.TERM | v.Signal.KILL:
            await m.end(process, request.signal)
    return v.Nothing()


async def nice(m: Machine, call: Call, request: v.Renice) -> v.Nothing:
    process = m.processes.living(request.pid, call.caller.owner)
    await m.processes.renice(process, request.nice)
    device = m.scheduler.device(process.model)
    if device is not None:
        device.renice(process)
    return v.Nothing()


async def ps(m: Machine, call: Call, request: v.Ps) -> v.Processes:
    owner = call.caller.owner
    if request.pid:
        return v.Processes(await _listed(m, call, [m.processes.get(request.pid, owner)]), None)
    mine = [
        process
        for process in m.processes.all()
        if process.owner == owner
        and (process.is_own(call.caller) or not call.own)
        and process.pid > request.after
        and (request.ended or process.ending is None)
    ]
    more = mine[limits.PS_ROWS - 1].pid if len(mine) > limits.PS_ROWS else None
    return v.Processes(await _listed(m, call, mine[: limits.PS_ROWS]), more)


async def _listed(m: Machine, call: Call, some: Sequence[Process]) -> list[v.ProcessInfo]:
    await titles.load(m.memory, call.caller.owner, [process.pid for process in some])
    slices = Breath()
    found: list[v.ProcessInfo] = []
    for process in some:
        found.append(_info(m, call, process))
        await slices()
    return found


def _info(m: Machine, call: Call, process: Process) -> v.ProcessInfo:
    """A title is a part of its pages: it is for callers that may read them."""
    table = m.memory.tables.get(process.pid)
    if table is None:
        return process.info(_window(m, process), 0, "", 0.0)
    title = table.title if titles.known(table) else None
    words, used = (title.words, title.used) if title is not None else ("", 0.0)
    pages = permit.path(call.caller, process, "/mem")
    readable = words and m.policy.check(call.caller.subjects, "read_mem", pages).allowed
    return process.info(_window(m, process), table.held, words if readable else "", used)


def _window(m: Machine, process: Process) -> int:
    """0 while its model is not mounted."""
    device = m.scheduler.device(process.model)
    return device.facts.window if device is not None and device.facts is not None else 0
