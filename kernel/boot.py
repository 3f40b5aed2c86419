"""Start reading here: start-up and shutdown of the machine, in numbered lines.

The daemon passes a BootPlan (directories, configuration, driver modules); everything else is
created here, bottom up, and shut down in the opposite order.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

import anyio

from . import collecting, garbage
from .abi import disk, lastrun, limits
from .abi.errors import Errno, SyscallError
from .abi.paths import Paths
from .abi.table import TABLE
from .abi.values import RECALL, Event, SettingInfo
from .access.decisions import Policy
from .access.identity import user
from .access.permissions import Permissions
from .access.reauthorisation import Clients, PolicyChanges
from .access.user_rules import UserRulesFile
from .access.users import UserTable
from .backpressure import UserLoads
from .connection import listeners as listen
from .connection.listeners import ListenOptions
from .counters import Counters
from .dispatch import CallParts
from .driver import Driver, Option
from .lifecycle import Lifecycle
from .locking import locked
from .machine import Connections, Machine
from .memory.faults import Faults
from .memory.recall_device import RecallDevice
from .owners.owner import OwnerContext
from .owners.owners import Owners
from .process.table import ProcessTable
from .recall_driver import Recall, RecallDriver
from .recovery import check_processes, recover
from .run import KernelRun
from .scheduling.images import ImageRegistry
from .scheduling.loader import Loader, Mounts
from .scheduling.quarantine import Quarantine
from .scheduling.requantise import Requantiser
from .storage.journal import Entry, Journal
from .storage.store import Store
from .storage.threads import FairThreads
from .summary import Summaries
from .supervisor import BackgroundJob, Supervisor
from .syscalls import Syscalls
from .syscalls.caller_access import CallerAccess
from .syscalls.explain import ExplainSyscalls
from .syscalls.mail import MailSyscalls
from .syscalls.models import ModelSyscalls
from .syscalls.pages import PageSyscalls
from .syscalls.poison import PoisonSyscalls
from .syscalls.policies import PolicySyscalls
from .syscalls.processes import ProcessSyscalls
from .syscalls.system import SystemSyscalls
from .syscalls.texts import TextSyscalls
from .syscalls.users import UserSyscalls
from .watch import Followers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BootPlan:
    """The configuration of a machine, from the daemon."""

    paths: Paths
    system: str  # version of the software
    private: bool  # exits when idle
    drivers: Mapping[str, str]  # name -> dotted module
    images: Mapping[str, tuple[str, Path]]  # built in: name -> driver, file
    defaults: Mapping[str, Mapping[str, Option]]  # mount options, by driver
    first: str  # image to mount at boot; "": none
    idle_exit_s: float
    journal_bytes: int
    user_bytes: int = limits.USER_BYTES  # of the pages of each user except the owner
    idle_unload_s: float = limits.UNLOAD_S  # of models; 0: never
    collect_after_s: float = limits.ENDED_S  # removal of ended processes; 0: never
    pin: bool = False  # whether `first` is pinned
    # Requantise a built-in model at its first use, and measure which engine is faster for a file.
    tune: bool = True
    settings: Sequence[SettingInfo] = ()  # all of them, with their origins
    listen_options: ListenOptions = field(default_factory=ListenOptions)
    user_connections: int = limits.USER_CONNECTIONS  # limit for each user except the owner
    recall: str = ""  # dotted module of the recall device; "": lexical search only
    recall_options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    summaries: bool = False  # summarise pages that leave a window, in pauses of their process
    embedder: str = ""  # image that makes the vectors in place of the recall device; "": none


class Drivers(Mapping[str, Driver]):
    """The driver modules, each imported at its first use: most machines need only one."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def __getitem__(self, name: str) -> Driver:
        # An owner's data is a child of the state directory; modules come from configuration alone.
        return cast("Driver", import_module(self._modules[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules


def _nothing() -> None:
    return


async def boot(
    plan: BootPlan, ready: Callable[[Machine], None], closing: Callable[[], None] = _nothing
) -> None:
    """Run the machine until it is stopped. Raises SyscallError when it cannot start.

    `closing` is called when nothing is left to do but to write what is queued.
    """
    sys.setswitchinterval(limits.SWITCH_S)
    _make_directories(plan)
    with locked(plan.paths):  #                               1  no other daemon runs here
        store = _store(plan.paths.state)  #                   2  the writers of every database
        record, before = lastrun.begin(plan.paths.state)
        _log_last_run(before)
        try:
            async with anyio.create_task_group() as tasks:
                jobs = Supervisor(tasks)
                machine = _assemble(plan, store, jobs, before)  # 3  all parts of the kernel
                run, journal, lifecycle = machine.run, machine.journal, machine.lifecycle
                await recover(journal, machine.owners, lifecycle)  # 4  complete unfinished calls
                await machine.users.ensure_owner(run.owner, os.geteuid())
                await machine.changes.apply_roles()
                options = plan.listen_options
                servers = await listen.open_all(plan.paths, machine, options)  # 5  open listeners
                journal.append(Entry("boot", note=_up(plan, before)))
                ready(machine)  #                             6  notify the process that started us
                jobs.run("mount", _mount, machine, plan)  #   7  engines load in the background
                jobs.run("resume", machine.owners.resume)
                jobs.run("garbage", garbage.collect_when_idle, machine.call_parts)
                if plan.collect_after_s:
                    jobs.run("collect ended", collecting.collect, lifecycle, plan.collect_after_s)
                if plan.private:
                    jobs.run("idle exit", _exit_when_idle, machine, plan.idle_exit_s)
                await run.stopping.wait()  #                  8  the machine runs
                for server in servers:  #                     9  no new connections
                    server.close()
                plan.paths.socket.unlink(missing_ok=True)
                await _drain(machine)  #                     10  wait for calls in flight
                machine.events.close()
                for device in machine.loader.each():  #   11  engines stop
                    await machine.loader.unmount(device.name)
                await machine.owners.finish()
                await machine.recall.lifecycle.stop()
                journal.append(Entry("boot", note="down"))
                journal.flush()
                record.why = run.stop_reason
                tasks.cancel_scope.cancel()
        except BaseException as error:
            record.why = lastrun.failed(error)
            raise
        finally:
            closing()
            store.close()  #                                 12  write what is queued
            lastrun.end(plan.paths.state, record)


def _make_directories(plan: BootPlan) -> None:
    """EACCES, EROFS or ENOSPC when a directory cannot be used."""
    try:
        listen.make_directory(plan.paths.runtime, plan.listen_options)
        plan.paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise disk.unusable(error) from error


def _private(plan: BootPlan) -> tuple[Path, ...]:
    """The directories of this machine, and the private key of its certificate."""
    where = plan.paths
    key = (plan.listen_options.key,) if plan.listen_options.key.name else ()
    return (where.runtime, where.state, where.cache, where.config, *key)


def _assemble(plan: BootPlan, store: Store, jobs: Supervisor, before: str) -> Machine:
    """The parts of the kernel, bottom up; each gets the parts that it uses."""
    users = UserTable(store)
    owner = users.by_uid(os.geteuid()) or user(os.geteuid())  # the login may have been renamed
    run = KernelRun(
        owner, plan.system, plan.private, plan.listen_options.shared,
        bool(plan.listen_options.listen), plan.settings, before,
    )  # fmt: skip
    drivers = Drivers(plan.drivers)
    images = ImageRegistry(store, drivers, plan.images, plan.paths.cache / "models", owner)
    requantiser = Requantiser(images, drivers, jobs, automatic=plan.tune)
    if plan.first:
        requantiser.expect(images.get(plan.first))
    events: Followers[Event] = Followers()
    check_processes(store)
    recall = RecallDevice(_recall(plan), jobs)
    journal = Journal(store, events.publish, owner=owner, total_bytes=plan.journal_bytes)
    policy = Policy(TABLE, owner, plan.paths.policy_file, plan.paths.state / "policy.csv")
    processes = ProcessTable(store, owner)
    owners = Owners(OwnerContext(
        store, recall, jobs, processes.pids_in_use,
        lambda name: 0 if name == owner else plan.user_bytes,
    ))  # fmt: skip
    permissions = Permissions(policy, processes, journal, images.canonical)
    clients = Clients()
    changes = PolicyChanges(policy, users, journal, clients)
    loader = Loader(Quarantine(store), jobs, plan.idle_unload_s)
    mounts = Mounts(
        images,
        loader,
        requantiser,
        drivers,
        plan.defaults,
        store.directory / "engines",
        plan.paths.cache / "engines" if plan.tune else None,
        journal,
    )
    counters, faults, loads = Counters(), Faults(), UserLoads()
    lifecycle = Lifecycle(processes, owners, images, loader, journal, faults, policy, clients)
    summaries: Summaries | None = None
    if plan.summaries:
        summaries = Summaries(owners, mounts, policy, clients, loads, jobs)
    readers = FairThreads(limits.USER_JOURNAL_READERS, limits.JOURNAL_READERS)
    caller_access = CallerAccess(owner, users, policy, _private(plan))
    syscalls = Syscalls(
        ProcessSyscalls(processes, lifecycle, mounts, loader, policy),
        TextSyscalls(processes, lifecycle, mounts, loader, faults, summaries),
        PageSyscalls(processes, mounts, loader, permissions, caller_access, summaries),
        MailSyscalls(processes),
        SystemSyscalls(
            run, store, journal, events, policy, permissions, processes, owners, recall, jobs,
            counters, faults, readers,
        ),
        ModelSyscalls(
            images, requantiser, mounts, loader, drivers, recall, processes, caller_access
        ),
        PoisonSyscalls(loader),
        UserSyscalls(owner, users, changes, clients, lifecycle),
        PolicySyscalls(policy, changes, journal, processes, readers),
        ExplainSyscalls(policy, permissions, journal, readers),
    )  # fmt: skip
    call_parts = CallParts(
        syscalls.table(), permissions, journal, owners, processes, loader, jobs, run
    )
    if summaries is not None:
        summaries.call_parts = call_parts
    jobs.report = partial(_journal_job, journal)
    recall.lifecycle.report = partial(_journal_recall, journal)
    store.pacing.computing = loader.computing
    store.pacing.calls = lambda: counters.calls
    if plan.embedder:
        image = images.get(plan.embedder)
        recall.embedder = f"{image.name} {image.fingerprint()}", partial(mounts.embed, image.name)
    return Machine(
        run, jobs, journal, events, users, permissions, changes, clients, processes, owners,
        recall, lifecycle, images, requantiser, loader, mounts, call_parts, counters, loads,
        Connections(plan.user_connections), summaries,
    )  # fmt: skip


def _up(plan: BootPlan, before: str) -> str:
    return f"up {plan.system}; the last run {before}" if before else f"up {plan.system}"


def _log_last_run(before: str) -> None:
    if before:
        level = logging.INFO if lastrun.is_clean(before) else logging.WARNING
        log.log(level, "the last run %s", before)


def _journal_job(journal: Journal, job: BackgroundJob) -> None:
    """Journal a job that has failed, runs again, or has ended after a failure."""
    failed = job.state in ("waiting", "failed")
    journal.append(Entry(
        "job", owner=job.owner, object="/kernel", errno=Errno.EIO if failed else 0,
        note=f"{job.name} {job.state} {job.error if failed else ''}".strip(),
    ))  # fmt: skip


def _store(state: Path) -> Store:
    """EACCES, EROFS or ENOSPC when the directory cannot be used."""
    try:
        free = disk.check_free_space(state)
        if free < limits.FREE_BYTES:
            log.warning("%d bytes free at %s: writes are refused, except removals", free, state)
        return Store(state)
    except OSError as error:
        raise disk.unusable(error) from error


def _journal_recall(journal: Journal, state: str, reason: str) -> None:
    errno = Errno.EIO if state in ("restarting", "failed") else 0
    first = reason.splitlines()[0] if reason else ""
    note = f"{state} {first}".strip()[: limits.NOTE_CHARS]
    journal.append(Entry("device", object=f"/dev/{RECALL}", errno=errno, note=note))


def _recall(plan: BootPlan) -> Recall | None:
    """The recall device, not started yet."""
    if not plan.recall:
        return None
    driver = cast("RecallDriver", import_module(plan.recall))
    log = plan.paths.state / "engines" / "recall.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    return driver.recall(plan.recall_options, log, plan.paths.cache)


def check_rules(paths: Paths) -> None:
    """Check the rules as at boot. EINVAL with file and line."""
    UserRulesFile(paths.policy_file, paths.state / "policy.csv").read()  # raises if it was removed
    Policy(TABLE, user(os.geteuid()), paths.policy_file)


async def _mount(machine: Machine, plan: BootPlan) -> None:
    """Mount the first image and the stored mounts. A failure does not stop the machine."""
    names = [plan.first, *machine.images.mounts()]  # the stored ones may be slow remote engines
    for name in filter(None, dict.fromkeys(names)):
        try:
            device = await machine.mounts.load(name)
            if plan.pin and name == plan.first:
                machine.loader.pin(device)
        except SyscallError as error:
            if machine.loader.device(name) is None:  # else a mount by a user replaced it
                log.warning("cannot mount %s: %s", name, error)


async def _exit_when_idle(machine: Machine, idle_exit_s: float) -> None:
    """Stop the machine after it was idle; sleeps until that may be the case."""
    while True:
        idle_s = time.monotonic() - machine.connections.last_closed
        alive = any(process.ending is None for process in machine.processes.all())
        if alive or machine.counters.connections:
            idle_s = 0.0
        if idle_s >= idle_exit_s:
            log.info("idle for %.0f s without processes: exiting", idle_s)
            machine.run.stop("was stopped by its idle timer", drain=True)
            return
        await anyio.sleep(idle_exit_s - idle_s)


async def _drain(machine: Machine) -> None:
    """Wait for calls in flight; cancel them after DRAIN_S, and store their answers so far."""
    processes, lifecycle = machine.processes, machine.lifecycle
    no_pending_replies = machine.call_parts.no_pending_replies
    if machine.summaries is not None:
        machine.summaries.close()
    for process in processes.all():
        if process.stopped:  # its call would not end
            lifecycle.interrupt(process)
    with anyio.move_on_after(limits.DRAIN_S if machine.run.drain else 0) as scope:
        machine.run.skip_drain = scope.cancel
        await no_pending_replies.wait()
    for process in processes.all():
        lifecycle.interrupt(process)
    with anyio.move_on_after(limits.DRAIN_S):
        await no_pending_replies.wait()
