"""Processes: spawn, fork, wait, signals, nice and ps."""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from ..abi import limits
from ..abi import values as v
from ..abi.errors import Errno, SyscallError, TooBig
from ..access.decisions import Policy
from ..access.permissions import process_object
from ..driver import Facts
from ..lifecycle import Lifecycle
from ..memory import titles
from ..process.table import Process, ProcessTable
from ..scheduling.device import Device
from ..scheduling.loader import Loader, Mounts
from ..yield_point import YieldPoint
from .call import CallContext


@dataclass(frozen=True, slots=True)
class ProcessSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    processes: ProcessTable
    lifecycle: Lifecycle
    mounts: Mounts
    loader: Loader
    policy: Policy

    async def spawn(self, call: CallContext, request: v.Spawn) -> v.Spawned:
        _ = call.data.memory  # EIO if unreadable: no pages could be written
        async with self.mounts.using(request.model, call.send) as (device, facts):
            return await self._spawn(call, request, device, facts)

    async def _spawn(
        self, call: CallContext, request: v.Spawn, device: Device, facts: Facts
    ) -> v.Spawned:
        message = v.Message(v.Role.SYSTEM, request.system)
        cuts = await device.engine.cut(request.system) if request.system else ()
        tokens = sum(cut.tokens for cut in cuts)
        if tokens >= facts.window:
            sizes = f"the system prompt has {tokens} tokens, the window {facts.window}"
            raise TooBig(sizes, "shorten it, or mount the model with a larger window")
        pid = 0
        with anyio.CancelScope(shield=True):  # the caller gets the pid of a created process
            process = await self.processes.spawn(call.caller, request, device.name)
            if cuts:
                try:
                    await call.data.memory.append_message(
                        process, message, cuts, call.caller.author
                    )
                except SyscallError:
                    await self.lifecycle.exit(process, 1, "its system prompt could not be written")
                    await self.lifecycle.reap(process)
                    raise
            self.lifecycle.record(process, f"spawn {device.name}")
            pid = process.pid
        return v.Spawned(pid, device.name, facts.window)

    async def fork(self, call: CallContext, request: v.Fork) -> v.Forked:
        """Create children with the parent's committed pages, without the turn in flight."""
        caller = call.caller
        parent = self.processes.get_alive(request.pid, caller.user)
        children = await self.lifecycle.fork(parent, request, caller)
        for child in children:
            self.lifecycle.record(child, f"fork of {parent.pid}")
        return v.Forked([child.pid for child in children], parent.model, self._window(parent))

    async def wait(self, call: CallContext, request: v.Wait) -> v.Exit:
        process = self.processes.get(request.pid, call.caller.user)
        try:
            with anyio.fail_after(request.timeout_s):
                await process.ended.wait()
        except TimeoutError:
            message = f"process {request.pid} has not ended within {request.timeout_s:g} s"
            hint = f"`llmasos kill {request.pid}` ends it"
            raise SyscallError(Errno.ETIMEDOUT, message, hint) from None
        await self.lifecycle.reap(process)
        return process.ending or v.Exit(process.pid, 0, "")

    async def kill(self, call: CallContext, request: v.Kill) -> v.Nothing:
        process = self.processes.get_alive(request.pid, call.caller.user)
        match request.signal:
            case v.Signal.INT:
                self.lifecycle.interrupt(process)
            case v.Signal.STOP | v.Signal.CONT:
                await self.processes.stop(process, request.signal is v.Signal.STOP)
                device = self.loader.device(process.model)
                if device is not None:
                    device.apply_stopped(process)
            case v.Signal.TERM | v.Signal.KILL:
                await self.lifecycle.end(process, request.signal)
        return v.Nothing()

    async def nice(self, call: CallContext, request: v.Renice) -> v.Nothing:
        process = self.processes.get_alive(request.pid, call.caller.user)
        await self.processes.renice(process, request.nice)
        device = self.loader.device(process.model)
        if device is not None:
            device.renice(process)
        return v.Nothing()

    async def ps(self, call: CallContext, request: v.Ps) -> v.Processes:
        owner = call.caller.user
        if request.pid:
            return v.Processes(
                await self._listed(call, [self.processes.get(request.pid, owner)]), None
            )
        mine = [
            process
            for process in self.processes.all()
            if process.owner == owner
            and (process.is_own(call.caller) or not call.own_part_only)
            and process.pid > request.after
            and (request.ended or process.ending is None)
        ]
        more = mine[limits.PS_ROWS - 1].pid if len(mine) > limits.PS_ROWS else None
        return v.Processes(await self._listed(call, mine[: limits.PS_ROWS]), more)

    async def _listed(self, call: CallContext, some: Sequence[Process]) -> list[v.ProcessInfo]:
        if call.data.pages is not None:
            await titles.load(call.data.memory, [process.pid for process in some])
        yield_point = YieldPoint()
        rows: list[v.ProcessInfo] = []
        for process in some:
            rows.append(self._info(call, process))
            await yield_point()
        return rows

    def _info(self, call: CallContext, process: Process) -> v.ProcessInfo:
        """The row of a process; its title, which comes from its pages, only for allowed readers."""
        pages = call.data.pages
        table = pages.memory.tables.get(process.pid) if pages is not None else None
        if table is None:
            return process.info(self._window(process), 0, "", 0.0)
        title = table.title if titles.known(table) else None
        text, used = (title.text, title.used) if title is not None else ("", 0.0)
        object_ = process_object(call.caller, process, "/mem")
        readable = text and self.policy.check(call.caller.subjects, "read_mem", object_).allowed
        return process.info(
            self._window(process), table.window_tokens, text if readable else "", used
        )

    def _window(self, process: Process) -> int:
        """Tokens of its model's window; 0 while the model is not mounted."""
        device = self.loader.device(process.model)
        return device.facts.window if device is not None and device.facts is not None else 0
