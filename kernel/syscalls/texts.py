"""Texts: answers, tokens, and the pages that are read."""

import random
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import anyio

from .. import limits, summary
from .. import values as v
from ..decide import Claim
from ..device import Device
from ..errors import Errno, SyscallError
from ..machine import Machine
from ..memory.paging import Plan
from ..process import Process
from ..work import Work
from .call import Call


async def generate(m: Machine, call: Call, request: v.Generate) -> v.Generated:
    process = m.processes.living(request.pid, call.caller.owner)
    process.begin(call.number)
    try:
        with anyio.fail_after(request.timeout_s):
            work, plan, pages, window = await _answered(m, call, process, request)
    except TimeoutError:
        kept = "; what was said is kept" if process.keep else ""
        words = f"the call did not end within {request.timeout_s:g} s{kept}"
        hint = (
            "`llmasos devices` shows how busy its engine is; a longer --timeout gives it more time"
        )
        raise SyscallError(Errno.ETIMEDOUT, words, hint) from None
    finally:
        process.end()
    seed = work.sampling.seed or 0
    finish = work.finish or v.Finish.CANCELLED
    if m.summaries and plan.evicted:
        m.jobs.once("summary", summary.make, m, process, list(plan.evicted))
    usage = work.usage()
    account, alarm = m.faults.charge(process.pid, plan, usage.cached_tokens, window)
    if alarm:
        m.tell_process(process, alarm)
    return v.Generated(
        process.pid, call.number, finish, seed, usage, pages,
        window=plan.seen(pages), evicted=list(plan.evicted),
        faults=[
            v.Fault(hit.page.number, round(hit.ranked.score, 3),
                    hit.page.number in account.hard_pages)
            for hit in plan.back
        ],
        notices=[*plan.notices, *filter(None, [alarm])],
    )  # fmt: skip


async def _answered(
    m: Machine, call: Call, process: Process, request: v.Generate
) -> tuple[Work, Plan, list[int], int]:
    """The answer, the pages that it became, and the tokens of the engine's window.

    A call that saw a page which was forgotten meanwhile is composed again, unless a part of its
    answer was read: ECANCELED.
    """
    while True:
        epoch = m.memory.forgets[process.owner]
        async with AsyncExitStack() as held:
            device, plan = await _prepare(m, call, process, request, held)
            work = _work(call.number, process, plan, request)
            if m.memory.forgets[process.owner] != epoch:
                continue  # it may hold a page that was forgotten while it was composed
            with m.scheduler.flight(device, work):
                device.submit(work)
                pages = await _relay(m, call, device, work, plan)
            if not work.forgot:
                return work, plan, pages, device.facts.window if device.facts is not None else 1
        if work.sent:
            words = f"a page that process {process.pid} was answering from was forgotten"
            raise SyscallError(
                Errno.ECANCELED, f"{words}; the answer is not kept", "ask again", pid=process.pid
            )


async def _prepare(
    m: Machine, call: Call, process: Process, request: v.Generate, held: AsyncExitStack
) -> tuple[Device, Plan]:
    """All that may take time before there is a slot; a signal to the process ends it.

    The device is used until `held` is closed: nothing unloads it under the call.
    """
    with anyio.CancelScope() as scope:
        process.patience = scope.cancel
        if call.begun is not None:
            await call.begun
        device, facts = await held.enter_async_context(m.using(process.model))
        if request.deterministic and not facts.deterministic:
            raise SyscallError(
                Errno.EINVAL,
                f"deterministic=true, but {device.name} is not mounted so",
                f"`llmasos unmount {device.name}`, `llmasos mount {device.name} --deterministic`",
            )
        v.check_bias(request.sampling.bias)
        await device.engine.check(request.sampling)
        plan = await m.pager.prepare(process, request, device.engine, facts)
        process.patience = None
        return device, plan
    raise SyscallError(Errno.ECANCELED, f"process {process.pid} was interrupted")


def _work(number: int, process: Process, plan: Plan, request: v.Generate) -> Work:
    sampling = request.sampling
    seed = random.getrandbits(32) - 1 if sampling.seed is None else sampling.seed
    sampling = replace(sampling, max_tokens=plan.max_tokens, seed=max(0, seed))
    prompt = plan.prompt.size
    claim = Claim(
        number, process.pid, process.weight, prompt, prompt + plan.max_tokens,
        stopped=process.stopped,
    )  # fmt: skip
    return Work(
        claim, process, plan.prompt, sampling, asked=time.monotonic(), pages=plan.pages
    )  # fmt: skip


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
    if work.error is not None or work.process.discard or work.forgot or not said:
        return []
    pages: list[int] = []
    with anyio.CancelScope(shield=True):  # written and counted, or neither
        turn = plan.turn(work.process, call.number, work.cuts, call.caller.author)
        turn = replace(turn, is_void=lambda: work.forgot)
        pages += await m.memory.commit(work.process, turn)
        m.meaning.written(work.process.owner)
    return pages


async def tokenize(m: Machine, call: Call, request: v.Tokenize) -> v.Tokens:
    async with m.using(request.model) as (device, _):
        tokens = list(await device.engine.tokenize(request.text))
    return v.Tokens(tokens)


async def embed(m: Machine, call: Call, request: v.Embed) -> v.Embedded:
    """A few texts at a time: between them it is another user's turn."""
    dimensions, tokens, vectors = 0, 0, list[bytes]()
    async with m.using(request.model) as (device, _):
        for at in range(0, len(request.texts), limits.EMBED_TURN):
            some = request.texts[at : at + limits.EMBED_TURN]
            async with device.embeds.place(call.caller.owner):
                found = await device.engine.embed(some)
            dimensions, tokens = found.dimensions, tokens + found.tokens
            vectors += found.vectors
    return v.Embedded(device.name, dimensions, vectors, tokens)
