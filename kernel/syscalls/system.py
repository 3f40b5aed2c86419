"""The kernel itself: counters, settings, the journal, output of processes, shutdown."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from ..abi import limits
from ..abi import values as v
from ..access.decisions import Policy
from ..access.permissions import Permissions
from ..counters import Counters, Sizes
from ..memory.faults import Faults
from ..memory.recall_device import RecallDevice
from ..owners.owners import Owners
from ..process.table import ProcessTable
from ..run import KernelRun
from ..storage.journal import Journal
from ..storage.store import Store
from ..storage.threads import FairThreads
from ..supervisor import Supervisor
from ..watch import Follower, Followers, FollowLimits, gap
from .call import CallContext


@dataclass(frozen=True, slots=True)
class SystemSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    run: KernelRun
    store: Store
    journal: Journal
    events: Followers[v.Event]
    policy: Policy
    permissions: Permissions
    processes: ProcessTable
    owners: Owners
    recall: RecallDevice
    jobs: Supervisor
    counters: Counters
    faults: Faults
    readers: FairThreads  # by user: what reads the journal
    sizes: Sizes = field(default_factory=Sizes)
    follow_limits: FollowLimits = field(default_factory=FollowLimits)

    def stat(self, call: CallContext, request: v.Nothing) -> v.Stat:
        run, faults, busy = self.run, self.faults.total, self.processes.busy()
        running = len([process for process in busy if process.running])
        counters, owner, lag = self.counters, call.caller.user, self.owners.lag()
        indexing, why = call.data.indexing()
        self.sizes.refresh(self.journal, self.permissions.last_s)
        return v.Stat(
            system=run.system, os_pid=run.os_pid,
            uptime_s=round(time.monotonic() - run.started, 3), owner=run.owner,
            private=run.private, shared=run.shared, listens=run.listens,
            processes=self.processes.alive, running=running, waiting=len(busy) - running,
            connections=counters.connections, calls=counters.calls,
            refused=self.permissions.refused,
            gate_us=round(1e6 * self.permissions.spent_s / max(1, counters.calls), 2),
            gate_p50_us=round(1e6 * self.sizes.gate_s, 2),
            rss_bytes=self.sizes.resident, journal_bytes=self.sizes.journal,
            flushes=self.store.flushes, hits=faults.hits, soft_faults=faults.soft,
            hard_faults=faults.hard, evictions=faults.evicted, thrashes=faults.thrashes,
            mail=self.owners.messages(), owners_uncounted=self.owners.uncounted,
            damages=[one for one in self.store.damages.all if owner in (run.owner, one.owner)],
            pages_waiting=0 if self.recall.disabled else lag.waiting,
            waiting_since=0.0 if self.recall.disabled else lag.since,
            pages_refused=lag.refused, indexing=indexing, indexing_note=why,
            last_run=run.before, jobs_running=self.jobs.running,
            job_failures=self.jobs.failures,
            jobs_failed=self._failed(owner) if self.jobs.failures else [],
        )  # fmt: skip

    def settings(self, call: CallContext, request: v.Nothing) -> v.Settings:
        directory = self.policy.user_rules.path.parent
        return v.Settings(list(self.run.settings), str(directory))

    def _failed(self, caller: str) -> list[v.JobInfo]:
        """Jobs that have failed; jobs of other users only for the machine's owner."""
        failed = [job for job in self.jobs.jobs() if job.failures]
        seen = [job for job in failed if caller in (job.owner, self.run.owner) or not job.owner]
        return [
            v.JobInfo(
                job.name, job.owner, job.state, job.failures, job.error, round(job.retry_s, 1)
            )
            for job in seen[: limits.JOB_ROWS]
        ]

    async def watch(self, call: CallContext, request: v.Watch) -> v.Nothing:
        caller = call.caller
        # Rejected connections have no user: only callers that may see all users' calls get these.
        sees_all = self.policy.check(
            caller.subjects[:1], "policy_simulate", "/kernel/policy"
        ).allowed

        def wants(event: v.Event) -> bool:
            unowned = event.owner == "" and (sees_all or event.kind != "refused")
            return (
                (unowned or event.owner == caller.user)
                and request.pid in (0, event.pid)
                and (not request.kinds or event.kind in request.kinds)
                and (not call.own_part_only or self.permissions.may_see(caller, event))
                and event.time >= (request.not_before or 0)
            )

        follower: Follower[v.Event] = Follower(wants)
        with self.follow_limits.call(caller.user):
            self.events.add(follower)  # before the history is read, so that no event is missed
            try:
                if not request.follow:  # otherwise queued events are written later and never sent
                    await self.journal.drain()
                cursor = self.journal.cursor if request.since is None else request.since
                if request.since is not None:
                    cursor = await self._history(call, wants, (cursor, request.not_before or 0.0))
                if request.follow:
                    await _follow(call, follower, cursor, request.interval_s)
            finally:
                self.events.remove(follower)
        return v.Nothing()

    async def _history(
        self, call: CallContext, wants: Callable[[v.Event], bool], begin: tuple[int, float]
    ) -> int:
        cursor, not_before = begin
        while True:
            events = await self.readers.run(
                call.caller.user,
                self.journal.history,
                cursor,
                limits.WATCH_BATCH,
                not_before,
                call.caller.user,
            )
            if not events:
                return cursor
            cursor = events[-1].seq
            wanted = [event for event in events if wants(event)]
            if wanted:
                call.send(v.Events(wanted, cursor))
                await call.writable()

    async def attach(self, call: CallContext, request: v.Attach) -> v.Exit:
        process = self.processes.get(request.pid, call.caller.user)
        follower: Follower[str] = Follower(lambda _: True)
        with self.follow_limits.call(call.caller.user):
            process.output.add(follower)
            if process.ending is not None:
                follower.close()
            try:
                while texts := await follower.batch(limits.WATCH_BATCH):
                    if follower.missed:
                        texts.insert(0, f"\n[{follower.missed} parts of the output are missing]\n")
                        follower.missed = 0
                    call.send(v.Output("".join(texts), process.state))
                    await call.writable()
            finally:
                process.output.remove(follower)
        return process.ending or v.Exit(process.pid, 0, "")

    def shutdown(self, call: CallContext, request: v.Shutdown) -> v.Nothing:
        self.run.stop(f"was stopped by {call.caller.user}", drain=request.drain)
        return v.Nothing()


async def _follow(
    call: CallContext, follower: Follower[v.Event], cursor: int, interval_s: float
) -> None:
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
