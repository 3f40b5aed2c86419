"""Processes: they come, get signals, are listed, and go."""

import anyio

from .. import limits
from .. import values as v
from ..device import Device
from ..driver import Facts
from ..errors import Errno, SyscallError, TooBig
from ..machine import Machine
from ..process import Process
from .call import Call


async def spawn(m: Machine, call: Call, request: v.Spawn) -> v.Spawned:
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
    caller = call.caller
    process = await m.processes.spawn(
        caller.owner, request, device.name, caller.connection, caller.bounds
    )
    if prompt is not None:
        try:
            await m.memory.say(process, message, prompt.cuts[0])
        except SyscallError:
            await m.exit(process, 1, "its system prompt could not be written")
            await m.reap(process)
            raise
    m.tell_process(process, f"spawn {device.name}")
    return v.Spawned(process.pid, device.name, facts.window)


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
        raise SyscallError(Errno.ETIMEDOUT, words, "wait longer, or kill it") from None
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


def ps(m: Machine, call: Call, request: v.Ps) -> v.Processes:
    owner = call.caller.owner
    if request.pid:
        return v.Processes([_info(m, m.processes.get(request.pid, owner))], None)
    mine = [
        process
        for process in m.processes.all()
        if process.owner == owner
        and process.pid > request.after
        and (request.ended or process.ending is None)
    ]
    more = mine[limits.PS_ROWS - 1].pid if len(mine) > limits.PS_ROWS else None
    return v.Processes([_info(m, process) for process in mine[: limits.PS_ROWS]], more)


def _info(m: Machine, process: Process) -> v.ProcessInfo:
    table = m.memory.tables.get(process.pid)
    return process.info(_window(m, process), table.held if table is not None else 0)


def _window(m: Machine, process: Process) -> int:
    """0 while its model is not mounted."""
    device = m.scheduler.device(process.model)
    return device.facts.window if device is not None and device.facts is not None else 0
