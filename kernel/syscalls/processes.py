"""Processes: spawn, fork, wait, signals, nice and ps."""

from collections.abc import Sequence

import anyio

from ..abi import limits
from ..abi import values as v
from ..abi.errors import Errno, SyscallError, TooBig
from ..access.permissions import process_object
from ..driver import Facts
from ..machine import Machine
from ..memory import titles
from ..process.table import Process
from ..scheduling.device import Device
from ..yield_point import YieldPoint
from .call import CallContext


async def spawn(m: Machine, call: CallContext, request: v.Spawn) -> v.Spawned:
    _ = call.owner.memory  # EIO if unreadable: no pages could be written
    async with m.using(request.model, call.send) as (device, facts):
        return await _spawn(m, call, request, device, facts)


async def _spawn(
    m: Machine, call: CallContext, request: v.Spawn, device: Device, facts: Facts
) -> v.Spawned:
    message = v.Message(v.Role.SYSTEM, request.system)
    cuts = await device.engine.cut(request.system) if request.system else ()
    tokens = sum(cut.tokens for cut in cuts)
    if tokens >= facts.window:
        sizes = f"the system prompt has {tokens} tokens, the window {facts.window}"
        raise TooBig(sizes, "shorten it, or mount the model with a larger window")
    pid = 0
    with anyio.CancelScope(shield=True):  # the caller gets the pid of a process that was created
        process = await m.processes.spawn(call.caller, request, device.name)
        if cuts:
            try:
                await call.owner.memory.append_message(process, message, cuts, call.caller.author)
            except SyscallError:
                await m.exit(process, 1, "its system prompt could not be written")
                await m.reap(process)
                raise
        m.journal_process(process, f"spawn {device.name}")
        pid = process.pid
    return v.Spawned(pid, device.name, facts.window)


async def fork(m: Machine, call: CallContext, request: v.Fork) -> v.Forked:
    """Create children with the parent's committed pages, without the turn in flight."""
    caller = call.caller
    parent = m.processes.get_alive(request.pid, caller.owner)
    children = await m.fork(parent, request, caller)
    for child in children:
        m.journal_process(child, f"fork of {parent.pid}")
    return v.Forked([child.pid for child in children], parent.model, _window(m, parent))


async def wait(m: Machine, call: CallContext, request: v.Wait) -> v.Exit:
    process = m.processes.get(request.pid, call.caller.owner)
    try:
        with anyio.fail_after(request.timeout_s):
            await process.ended.wait()
    except TimeoutError:
        message = f"process {request.pid} has not ended within {request.timeout_s:g} s"
        hint = f"`llmasos kill {request.pid}` ends it"
        raise SyscallError(Errno.ETIMEDOUT, message, hint) from None
    await m.reap(process)
    return process.ending or v.Exit(process.pid, 0, "")


async def kill(m: Machine, call: CallContext, request: v.Kill) -> v.Nothing:
    process = m.processes.get_alive(request.pid, call.caller.owner)
    match request.signal:
        case v.Signal.INT:
            m.interrupt(process)
        case v.Signal.STOP | v.Signal.CONT:
            await m.processes.stop(process, request.signal is v.Signal.STOP)
            device = m.loader.device(process.model)
            if device is not None:
                device.apply_stopped(process)
        case v.Signal.TERM | v.Signal.KILL:
            await m.end(process, request.signal)
    return v.Nothing()


async def nice(m: Machine, call: CallContext, request: v.Renice) -> v.Nothing:
    process = m.processes.get_alive(request.pid, call.caller.owner)
    await m.processes.renice(process, request.nice)
    device = m.loader.device(process.model)
    if device is not None:
        device.renice(process)
    return v.Nothing()


async def ps(m: Machine, call: CallContext, request: v.Ps) -> v.Processes:
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


async def _listed(m: Machine, call: CallContext, some: Sequence[Process]) -> list[v.ProcessInfo]:
    if call.owner.pages is not None:
        await titles.load(call.owner.memory, [process.pid for process in some])
    yield_point = YieldPoint()
    rows: list[v.ProcessInfo] = []
    for process in some:
        rows.append(_info(m, call, process))
        await yield_point()
    return rows


def _info(m: Machine, call: CallContext, process: Process) -> v.ProcessInfo:
    """The row of a process; its title, which comes from its pages, only for allowed readers."""
    pages = call.owner.pages
    table = pages.memory.tables.get(process.pid) if pages is not None else None
    if table is None:
        return process.info(_window(m, process), 0, "", 0.0)
    title = table.title if titles.known(table) else None
    text, used = (title.text, title.used) if title is not None else ("", 0.0)
    object_ = process_object(call.caller, process, "/mem")
    readable = text and m.policy.check(call.caller.subjects, "read_mem", object_).allowed
    return process.info(_window(m, process), table.window_tokens, text if readable else "", used)


def _window(m: Machine, process: Process) -> int:
    """Tokens of its model's window; 0 while the model is not mounted."""
    device = m.loader.device(process.model)
    return device.facts.window if device is not None and device.facts is not None else 0
