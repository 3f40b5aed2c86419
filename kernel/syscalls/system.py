"""The kernel itself: counters, settings, the journal, output of processes, shutdown."""

import os
import time
from collections.abc import Callable

import anyio

from ..abi import limits
from ..abi import values as v
from ..machine import Machine
from ..watch import Follower, gap
from .call import CallContext


def stat(m: Machine, call: CallContext, request: v.Nothing) -> v.Stat:
    processes = m.processes.all()
    busy = [p for p in processes if p.call]
    counters, owner, lag = m.counters, call.caller.owner, m.owners.lag()
    indexing, why = call.owner.indexing()
    m.sizes.refresh(m.journal, m.permissions.last_s)
    return v.Stat(
        system=m.system, os_pid=os.getpid(), uptime_s=round(time.monotonic() - m.started, 3),
        owner=m.owner, private=m.private, shared=m.shared, listens=m.listens,
        processes=sum(p.ending is None for p in processes),
        running=sum(p.running for p in busy), waiting=sum(not p.running for p in busy),
        connections=counters.connections, calls=counters.calls, refused=m.permissions.refused,
        gate_us=round(1e6 * m.permissions.spent_s / max(1, counters.calls), 2),
        gate_p50_us=round(1e6 * m.sizes.gate_s, 2),
        rss_bytes=m.sizes.resident, journal_bytes=m.sizes.journal, flushes=m.store.flushes,
        hits=m.faults.total.hits, soft_faults=m.faults.total.soft,
        hard_faults=m.faults.total.hard, evictions=m.faults.total.evicted,
        thrashes=m.faults.total.thrashes, mail=m.owners.messages(),
        damages=[one for one in m.store.damages.all if owner in (m.owner, one.owner)],
        pages_waiting=0 if m.recall.disabled else lag.waiting,
        waiting_since=0.0 if m.recall.disabled else lag.since,
        pages_refused=lag.refused, indexing=indexing, indexing_note=why,
        last_run=m.last_run, jobs_running=m.jobs.running, job_failures=m.jobs.failures,
        jobs_failed=_failed(m, owner) if m.jobs.failures else [],
    )  # fmt: skip


def settings(m: Machine, call: CallContext, request: v.Nothing) -> v.Settings:
    return v.Settings(list(m.settings))


def _failed(m: Machine, caller: str) -> list[v.JobInfo]:
    """Jobs that have failed; jobs of other users only for the machine's owner."""
    failed = [job for job in m.jobs.jobs() if job.failures]
    seen = [job for job in failed if caller in (job.owner, m.owner) or not job.owner]
    return [
        v.JobInfo(job.name, job.owner, job.state, job.failures, job.error, round(job.retry_s, 1))
        for job in seen[: limits.JOB_ROWS]
    ]


async def watch(m: Machine, call: CallContext, request: v.Watch) -> v.Nothing:
    caller = call.caller
    # Rejected connections have no user: only callers that may see all users' calls get these.
    sees_all = m.policy.check(caller.subjects[:1], "policy_simulate", "/kernel/policy").allowed

    def wants(event: v.Event) -> bool:
        unowned = event.owner == "" and (sees_all or event.kind != "refused")
        return (
            (unowned or event.owner == caller.owner)
            and request.pid in (0, event.pid)
            and (not request.kinds or event.kind in request.kinds)
            and (not call.own or m.permissions.may_see(caller, event))
            and event.time >= (request.not_before or 0)
        )

    follower: Follower[v.Event] = Follower(wants)
    with m.follow_limits.call(caller.owner):
        m.events.add(follower)  # before the history is read, so that no event is missed
        try:
            if not request.follow:  # otherwise queued events are written later and never sent
                await m.journal.drain()
            cursor = m.journal.cursor if request.since is None else request.since
            if request.since is not None:
                cursor = await _history(m, call, wants, (cursor, request.not_before or 0.0))
            if request.follow:
                await _follow(call, follower, cursor, request.interval_s)
        finally:
            m.events.remove(follower)
    return v.Nothing()


async def _history(
    m: Machine, call: CallContext, wants: Callable[[v.Event], bool], begin: tuple[int, float]
) -> int:
    cursor, not_before = begin
    while True:
        events = await m.readers.run(
            call.caller.owner,
            m.journal.history,
            cursor,
            limits.WATCH_BATCH,
            not_before,
            call.caller.owner,
        )
        if not events:
            return cursor
        cursor = events[-1].seq
        wanted = [event for event in events if wants(event)]
        if wanted:
            call.send(v.Events(wanted, cursor))
            await call.writable()


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


async def attach(m: Machine, call: CallContext, request: v.Attach) -> v.Exit:
    process = m.processes.get(request.pid, call.caller.owner)
    follower: Follower[str] = Follower(lambda _: True)
    with m.follow_limits.call(call.caller.owner):
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


def shutdown(m: Machine, call: CallContext, request: v.Shutdown) -> v.Nothing:
    m.stop(f"was stopped by {call.caller.owner}", drain=request.drain)
    return v.Nothing()
