"""Texts: generate, tokenize and embed."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio

from ..abi import limits
from ..abi import values as v
from ..abi.errors import Errno, SyscallError
from ..lifecycle import Lifecycle
from ..memory.faults import Faults
from ..memory.paging import PagingPlan
from ..process.table import Process, ProcessTable
from ..scheduling.device import Device
from ..scheduling.loader import Loader, Mounts
from ..scheduling.scheduler import Claim
from ..scheduling.work import Work
from .call import CallContext, Summariser
from .relay import Relay, Stream


@dataclass(frozen=True, slots=True)
class TextSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    processes: ProcessTable
    lifecycle: Lifecycle
    mounts: Mounts
    loader: Loader
    faults: Faults
    summaries: Summariser | None  # None: pages that leave a window are not summarised

    async def generate(self, call: CallContext, request: v.Generate) -> v.Generated:
        if request.pid:
            process = self.processes.get_alive(request.pid, call.caller.user)
            return await self._generate(call, process, request)
        async with self.lifecycle.single(call.caller, request, call.pid) as process:
            return await self._generate(call, process, request)

    async def _generate(
        self, call: CallContext, process: Process, request: v.Generate
    ) -> v.Generated:
        evicted: Sequence[int] = ()
        process.begin(call.number)
        if self.summaries is not None:
            self.summaries.call_begins(process)
        try:
            with anyio.fail_after(request.timeout_s):
                work, plan, pages, window = await self._answered(call, process, request)
            evicted = plan.evicted
        except TimeoutError:
            stored = "; the answer so far is stored" if process.keep else ""
            message = f"the call did not end within {request.timeout_s:g} s{stored}"
            hint = (
                "`llmasos devices` shows the load of its engine; a longer --timeout gives more time"
            )
            raise SyscallError(Errno.ETIMEDOUT, message, hint) from None
        finally:
            process.end()
            if self.summaries is not None:
                self.summaries.call_ended(process, evicted)
        seed = work.sampling.seed or 0
        finish = work.finish or v.Finish.CANCELLED
        usage = work.usage()
        account, alarm = self.faults.charge(process.pid, plan, usage.cached_tokens, window)
        if alarm:
            self.lifecycle.record(process, alarm)
        return v.Generated(
            process.pid, call.number, finish, seed, usage, pages,
            window=plan.seen(pages), evicted=list(plan.evicted),
            faults=[
                v.Fault(hit.page.number, round(hit.ranked.score, 3),
                        hit.page.number in account.hard_pages)
                for hit in plan.recalled
            ],
            notices=[*plan.notices, *filter(None, [alarm])], model=process.model,
        )  # fmt: skip

    async def _answered(
        self, call: CallContext, process: Process, request: v.Generate
    ) -> tuple[Work, PagingPlan, list[int], int]:
        """The answer, its pages, and the tokens of the engine's window.

        If a page in the prompt was forgotten meanwhile, or the engine lost the prompt before the
        call began, the call is composed again; ECANCELED if a part of its answer was already read.
        """
        requested = time.monotonic()
        while True:
            epoch = call.data.memory.forgets
            async with AsyncExitStack() as uses:
                device, plan = await self._prepare(call, process, request, uses)
                work = _work(call.number, process, plan, request, requested)
                if call.data.memory.forgets != epoch:
                    continue  # the prompt may contain a page that was forgotten meanwhile
                with self.loader.flight(device, work):
                    device.submit(work)
                    pages = await self._relay(call, device, work, plan)
                if work.lost:
                    call.data.pager.lost(process)
                elif not work.forgot:
                    return work, plan, pages, device.facts.window if device.facts is not None else 1
            if work.sent:
                message = f"a page in the prompt of process {process.pid} was forgotten"
                raise SyscallError(
                    Errno.ECANCELED, f"{message}; the answer is discarded", "retry", pid=process.pid
                )

    async def _prepare(
        self, call: CallContext, process: Process, request: v.Generate, uses: AsyncExitStack
    ) -> tuple[Device, PagingPlan]:
        """The steps that may wait before the call has a slot; a signal to the process cancels them.

        The device is not unloaded until `uses` is closed.
        """
        with anyio.CancelScope() as scope:
            process.cancel_wait = scope.cancel
            if call.begun is not None and not process.single:
                await call.begun
            report = _loading(call) if process.single else None
            device, facts = await uses.enter_async_context(self.mounts.using(process.model, report))
            if request.deterministic and not facts.deterministic:
                raise SyscallError(
                    Errno.EINVAL,
                    f"deterministic=true, but {device.name} is not mounted as deterministic",
                    f"`llmasos unmount {device.name}`, then "
                    f"`llmasos mount {device.name} --deterministic`",
                )
            v.check_bias(request.sampling.bias)
            await device.engine.check(request.sampling, process.domain)
            plan = await call.data.pager.prepare(process, request, device.engine, facts)
            if call.begun is not None and process.single:
                # A single answer stores nothing that recovery would have to find by its begin
                # event, so the event was written while the prompt was composed. A full disk refuses
                # the call here.
                await call.begun
            process.cancel_wait = None
            return device, plan
        raise SyscallError(Errno.ECANCELED, f"process {process.pid} was interrupted")

    async def _relay(
        self, call: CallContext, device: Device, work: Work, plan: PagingPlan
    ) -> list[int]:
        """Stream until the work ends, then write the turn. EIO when the engine failed."""
        try:
            stream = Stream(call.send, call.keeps_up, call.writable)
            await Relay(stream, device, work).run()
        except BaseException:  # cancelled or timed out: the answer so far is stored
            with anyio.CancelScope(shield=True):
                device.cancel(work.claim.call)
                while not work.done:
                    work.ready.clear()
                    await work.ready.wait()
                await self._store_turn(call, work, plan)
            raise
        if work.error is not None and not work.lost:
            raise work.error
        return await self._store_turn(call, work, plan)

    async def _store_turn(self, call: CallContext, work: Work, plan: PagingPlan) -> list[int]:
        """Write a turn as pages, if it ended or was cancelled after a part of the answer."""
        process = work.process
        has_answer = bool(work.cuts) or work.finish in (v.Finish.STOP, v.Finish.LENGTH)
        if (
            work.error is not None
            or not has_answer
            or work.forgot
            or process.discard
            or process.single
        ):
            return []
        pages: list[int] = []
        with anyio.CancelScope(shield=True):  # both written and counted, or neither
            turn = plan.turn(process, call.number, work.cuts, call.caller.author)
            turn = replace(turn, is_void=lambda: work.forgot)
            pages += await call.data.memory.commit(process, turn)
            call.data.pager.written(process, plan, turn, pages)
            call.data.vectors.pages_written()
        return pages

    async def tokenize(self, call: CallContext, request: v.Tokenize) -> v.Tokens:
        async with self.mounts.using(request.model) as (device, _):
            tokens = list(await device.engine.tokenize(request.text))
        return v.Tokens(tokens)

    async def embed(self, call: CallContext, request: v.Embed) -> v.Embedded:
        """Embed the texts in groups, between which other users get the device."""
        dimensions, tokens, vectors = 0, 0, list[bytes]()
        async with self.mounts.using(request.model) as (device, _):
            for at in range(0, len(request.texts), limits.EMBED_TURN):
                group = request.texts[at : at + limits.EMBED_TURN]
                async with device.embeds.slot(call.caller.user):
                    found = await device.engine.embed(group)
                dimensions, tokens = found.dimensions, tokens + found.tokens
                vectors += found.vectors
        return v.Embedded(device.name, dimensions, vectors, tokens)


def _loading(call: CallContext) -> Callable[[v.Progress], None]:
    """Send the progress of a load as items of the answer."""
    return lambda progress: call.send(v.Delta("", 0, loading=progress))


def _work(
    number: int, process: Process, plan: PagingPlan, request: v.Generate, requested: float
) -> Work:
    sampling = request.sampling
    seed = random.getrandbits(32) - 1 if sampling.seed is None else sampling.seed
    sampling = replace(sampling, max_tokens=plan.max_tokens, seed=max(0, seed))
    prompt = plan.prompt.size
    claim = Claim(
        number, process.pid, process.weight, prompt, prompt + plan.max_tokens,
        stopped=process.stopped, domain=process.domain,
    )  # fmt: skip
    return Work(
        claim, process, plan.prompt, sampling, requested, asked=time.monotonic(), pages=plan.pages
    )  # fmt: skip
