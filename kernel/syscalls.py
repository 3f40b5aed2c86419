"""One short function per syscall, in the order of the table.

A `def` handler never waits and is answered at once; an `async def` handler may wait, and streams by
`call.send`. Who may call what was settled in the trap; here nothing is refused for want of rights.
"""

import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread

from . import limits, machine
from . import values as v
from .decide import Claim
from .errors import Errno, SyscallError, TooBig
from .identity import Caller
from .machine import Machine
from .memory import Plan
from .process import Process
from .scheduler import Device, Work
from .watch import Follower, gap


@dataclass(frozen=True, slots=True)
class Call:
    """A syscall on its way: who asked, and how to stream to them."""

    caller: Caller
    number: int  # the journal's, of its begin; 0 for calls that are not begun and ended
    begun: Awaitable[None] | None  # ends when that begin is written
    send: Callable[[object], None]  # never waits
    writable: Callable[[], Awaitable[None]]  # waits for a slow reader


# --- processes --------------------------------------------------------------------------------
async def spawn(m: Machine, call: Call, request: v.Spawn) -> v.Spawned:
    image = m.images.get(request.model)
    device = await m.mounted(image)
    facts = await device.wait_up()
    message = v.Message(v.Role.SYSTEM, request.system)
    prompt = await device.engine.compose([message], raw=True, fresh=1) if request.system else None
    if prompt is not None and len(prompt.tokens) >= facts.window:
        words = f"the system prompt has {len(prompt.tokens)} tokens, the window {facts.window}"
        raise TooBig(words, "shorten it, or mount the model with a larger window")
    caller = call.caller
    process = await m.processes.spawn(caller.owner, request, image.name, caller.connection)
    if prompt is not None:
        try:
            await m.memory.write(process, message, prompt.cuts[0])
        except SyscallError:
            await m.exit(process, 1, "its system prompt could not be written")
            await m.reap(process)
            raise
    m.tell_process(process, f"spawn {image.name}")
    return v.Spawned(process.pid, image.name, facts.window)


async def generate(m: Machine, call: Call, request: v.Generate) -> v.Generated:
    process = m.processes.living(request.pid, call.caller.owner)
    process.begin(call.number)
    try:
        with anyio.fail_after(request.timeout_s):
            device, plan = await _prepare(m, call, process, request)
            work = _work(call.number, process, plan, request)
            device.submit(work)
            pages = await _relay(m, call, device, work, plan)
    except TimeoutError:
        kept = "; what was said is kept" if process.keep else ""
        words = f"the call did not end within {request.timeout_s:g} s{kept}"
        raise SyscallError(Errno.ETIMEDOUT, words, "give it more time") from None
    finally:
        process.end()
    seed = work.sampling.seed or 0
    finish = work.finish or v.Finish.CANCELLED
    return v.Generated(process.pid, call.number, finish, seed, work.usage(), pages)


async def _prepare(
    m: Machine, call: Call, process: Process, request: v.Generate
) -> tuple[Device, Plan]:
    """All that may take time before there is a slot; a signal to the process ends it."""
    with anyio.CancelScope() as scope:
        process.patience = scope.cancel
        if call.begun is not None:
            await call.begun
        device = await m.mounted(m.images.get(process.model))
        facts = await device.wait_up()
        plan = await m.memory.prepare(process, request, device.engine, facts.window)
        process.patience = None
        return device, plan
    raise SyscallError(Errno.ECANCELED, f"process {process.pid} was interrupted")


def _work(number: int, process: Process, plan: Plan, request: v.Generate) -> Work:
    sampling = request.sampling
    seed = random.getrandbits(32) - 1 if sampling.seed is None else sampling.seed
    sampling = replace(sampling, max_tokens=plan.max_tokens, seed=max(0, seed))
    prompt = len(plan.prompt.tokens)
    claim = Claim(
        number, process.pid, process.weight, prompt, prompt + plan.max_tokens,
        stopped=process.stopped,
    )  # fmt: skip
    return Work(claim, process, plan.prompt, sampling, asked=time.monotonic())


async def _relay(m: Machine, call: Call, device: Device, work: Work, plan: Plan) -> list[int]:
    """Stream until the work ends, then write the turn. EIO when the engine failed."""
    try:
        while not work.done or work.texts:
            delta = device.take(work)
            if delta is None:
                work.ready.clear()
                await work.ready.wait()
            else:
                call.send(delta)
                work.process.output.tell(delta.text)
                await call.writable()
    except BaseException:  # cancelled or out of time: what was said is kept all the same
        with anyio.CancelScope(shield=True):
            device.cancel(work.claim.call)
            while not work.done:
                work.ready.clear()
                await work.ready.wait()
            await _keep(m, call, work, plan)
        raise
    if work.error is not None:
        raise work.error
    return await _keep(m, call, work, plan)


async def _keep(m: Machine, call: Call, work: Work, plan: Plan) -> list[int]:
    """A turn that ended, or was cut short after it said something, becomes pages."""
    said = bool(work.cuts) or work.finish in (v.Finish.STOP, v.Finish.LENGTH)
    if work.error is not None or work.process.discard or not said:
        return []
    pages: list[int] = []
    with anyio.CancelScope(shield=True):  # written and counted, or neither
        pages += await m.memory.commit(work.process, call.number, plan, work.cuts)
    return pages


async def tokenize(m: Machine, call: Call, request: v.Tokenize) -> v.Tokens:
    device = await m.mounted(m.images.get(request.model))
    await device.wait_up()
    tokens = list(await device.engine.tokenize(request.text))
    most = (limits.FRAME_BYTES - 1024) // 5  # a token takes five bytes at most
    if len(tokens) > most:
        words = f"{len(tokens)} tokens are more than a reply holds ({most})"
        raise TooBig(words, "tokenize the text in parts")
    return v.Tokens(tokens)


async def read_mem(m: Machine, call: Call, request: v.ReadMem) -> v.Pages:
    return await m.memory.pages(m.processes.get(request.pid, call.caller.owner), request)


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
        and (request.zombies or process.ending is None)
    ]
    more = mine[limits.PS_ROWS - 1].pid if len(mine) > limits.PS_ROWS else None
    return v.Processes([_info(m, process) for process in mine[: limits.PS_ROWS]], more)


def _info(m: Machine, process: Process) -> v.ProcessInfo:
    device = m.scheduler.device(process.model)
    window = device.facts.window if device is not None and device.facts is not None else 0
    return process.info(window, m.memory.space(process.pid).tokens)


# --- the kernel -------------------------------------------------------------------------------
def stat(m: Machine, call: Call, request: v.Nothing) -> v.Stat:
    processes = m.processes.all()
    busy = [p for p in processes if p.call]
    counters = m.counters
    m.sizes.look(m.journal)
    return v.Stat(
        system=m.system, os_pid=machine.OS_PID, uptime_s=round(time.monotonic() - m.started, 3),
        owner=m.owner, private=m.private,
        processes=sum(p.ending is None for p in processes),
        running=sum(p.running for p in busy), waiting=sum(not p.running for p in busy),
        connections=counters.connections, calls=counters.calls, refused=counters.refused,
        gate_us=round(1e6 * counters.gate_s / max(1, counters.calls), 2),
        rss_bytes=m.sizes.resident, journal_bytes=m.sizes.journal,
    )  # fmt: skip


async def watch(m: Machine, call: Call, request: v.Watch) -> v.Nothing:
    owner = call.caller.owner

    def wants(event: v.Event) -> bool:
        return (
            event.owner in ("", owner)
            and request.pid in (0, event.pid)
            and (not request.kinds or event.kind in request.kinds)
        )

    follower: Follower[v.Event] = Follower(wants)
    m.events.add(follower)  # before history is read, so that nothing falls between the two
    try:
        cursor = m.journal.cursor if request.since is None else request.since
        if request.since is not None:
            cursor = await _history(m, call, wants, cursor)
        if request.follow:
            await _follow(call, follower, cursor, request.interval_s)
    finally:
        m.events.remove(follower)
    return v.Nothing()


async def _history(m: Machine, call: Call, wants: Callable[[v.Event], bool], cursor: int) -> int:
    while True:
        events = await anyio.to_thread.run_sync(m.journal.history, cursor, limits.WATCH_BATCH)
        if not events:
            return cursor
        cursor = events[-1].seq
        wanted = [event for event in events if wants(event)]
        if wanted:
            call.send(v.Events(wanted, cursor))
            await call.writable()


async def _follow(call: Call, follower: Follower[v.Event], cursor: int, interval_s: float) -> None:
    while batch := await follower.batch(limits.WATCH_BATCH):
        events = [event for event in batch if event.seq > cursor]
        if follower.missed and events:
            events.insert(0, gap(follower.missed, cursor))
            follower.missed = 0
        if events:
            cursor = events[-1].seq
            call.send(v.Events(events, cursor))
            await call.writable()
            await anyio.sleep(interval_s)


async def attach(m: Machine, call: Call, request: v.Attach) -> v.Exit:
    process = m.processes.get(request.pid, call.caller.owner)
    follower: Follower[str] = Follower(lambda _: True)
    process.output.add(follower)
    if process.ending is not None:
        follower.close()
    try:
        while texts := await follower.batch(limits.WATCH_BATCH):
            if follower.missed:
                texts.insert(0, f"\n[{follower.missed} pieces were not shown]\n")
                follower.missed = 0
            call.send(v.Output("".join(texts), process.state))
            await call.writable()
    finally:
        process.output.remove(follower)
    return process.ending or v.Exit(process.pid, 0, "")


# --- images and devices -----------------------------------------------------------------------
async def images(m: Machine, call: Call, request: v.Nothing) -> v.Images:
    found: list[v.ImageInfo] = []
    for image in m.images.all():
        try:
            found.append(await m.images.info(image))
        except (SyscallError, OSError) as error:
            found.append(m.images.missing(image, str(error)))
    return v.Images(found)


async def image_add(m: Machine, call: Call, request: v.ImageAdd) -> v.ImageInfo:
    return await m.images.info(await m.images.add(request))


async def image_remove(m: Machine, call: Call, request: v.ImageRemove) -> v.Nothing:
    used = [p.pid for p in m.processes.all() if p.model == request.name and p.ending is None]
    if used or m.scheduler.device(request.name) is not None:
        who = f"processes {', '.join(map(str, used[:8]))}" if used else "a mount"
        hint = f"`llmasos unmount {request.name}` and end the processes first"
        raise SyscallError(Errno.EBUSY, f"{request.name} is in use by {who}", hint)
    await m.images.remove(request.name)
    return v.Nothing()


def devices(m: Machine, call: Call, request: v.Nothing) -> v.Devices:
    return v.Devices([device.info() for device in m.scheduler.each()])


async def mount(m: Machine, call: Call, request: v.Mount) -> v.DeviceInfo:
    image = m.images.get(request.image)
    if m.scheduler.device(image.name) is not None:
        hint = f"`llmasos unmount {image.name}` first: its processes keep their pages"
        raise SyscallError(Errno.EBUSY, f"{image.name} is mounted already", hint)
    device = await m.mounted(image, request.options)
    try:
        await m.images.remember(image.name, json.dumps(request.options))
    except SyscallError:
        await m.scheduler.unmount(image.name)
        raise
    return device.info()


async def unmount(m: Machine, call: Call, request: v.Unmount) -> v.Nothing:
    name = m.images.canonical(request.image)
    await m.scheduler.unmount(name)
    await m.images.remember(name, None)
    return v.Nothing()


def shutdown(m: Machine, call: Call, request: v.Shutdown) -> v.Nothing:
    m.stop(drain=request.drain)
    return v.Nothing()


# What the trap dispatches to; hello is the trap's own. A test holds it against the table.
Handler = Callable[..., object]
HANDLERS: Mapping[str, Handler] = {
    f.__name__: f
    for f in (
        spawn, generate, tokenize, read_mem, wait, kill, nice, ps, stat, watch, attach,
        images, image_add, image_remove, devices, mount, unmount, shutdown,
    )
}  # fmt: skip
