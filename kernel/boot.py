"""Start reading here: start-up and shutdown of the machine, in numbered lines.

The daemon passes a BootPlan (directories, configuration, driver modules); everything else is
created here, bottom up, and shut down in the opposite order.
"""

import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import cast

import anyio

from . import collecting, garbage
from .abi import disk, lastrun, limits
from .abi.errors import Errno, SyscallError
from .abi.paths import Paths, other_state, recorded_runtime
from .abi.table import TABLE
from .abi.values import RECALL, Event, SettingInfo
from .access.decisions import Policy
from .access.identity import user
from .access.permissions import Permissions
from .access.user_rules import UserRulesFile
from .access.users import UserTable
from .connection import listeners as listen
from .connection.listeners import ListenOptions
from .driver import Driver, Option, Recall, RecallDriver
from .machine import Machine
from .memory.vector_device import VectorDevice
from .owners.owner import OwnerContext
from .owners.owners import Owners
from .process.table import ProcessTable
from .recovery import check_processes, recover
from .scheduling.images import ImageRegistry
from .scheduling.loader import Loader
from .scheduling.quarantine import Quarantine
from .scheduling.requantise import Requantiser
from .storage.journal import Entry, Journal
from .storage.store import Store
from .summary import Summaries
from .supervisor import BackgroundJob, Supervisor
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
    idle_unload_s: float = limits.UNLOAD_S  # of models; 0: never
    collect_after_s: float = limits.ENDED_S  # removal of ended processes; 0: never
    pin: bool = False  # whether `first` is pinned
    tune: bool = True  # requantise a built-in model at its first use
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


async def boot(plan: BootPlan, ready: Callable[[Machine], None]) -> None:
    """Run the machine until it is stopped. Raises SyscallError when it cannot start."""
    sys.setswitchinterval(limits.SWITCH_S)
    with _lock(plan):  #                                      1  no other daemon runs here
        store = _store(plan.paths.state)  #                   2  the writers of every database
        run, before = lastrun.begin(plan.paths.state)
        try:
            async with anyio.create_task_group() as tasks:
                jobs = Supervisor(tasks)
                machine = _assemble(plan, store, jobs)  #     3  policy, images, processes, memory
                _report_last_run(machine, before)
                await recover(machine)  #                     4  complete unfinished calls
                await _register_owner(machine)
                options = plan.listen_options
                servers = await listen.open_all(plan.paths, machine, options)  # 5  open listeners
                machine.journal.append(Entry("boot", note=_up(plan, before)))
                ready(machine)  #                             6  notify the process that started us
                jobs.run("mount", _mount, machine, plan)  #   7  engines load in the background
                jobs.run("resume", machine.owners.resume)
                jobs.run("garbage", garbage.collect_when_idle, machine)
                if plan.collect_after_s:
                    jobs.run("collect ended", collecting.collect, machine, plan.collect_after_s)
                if plan.private:
                    jobs.run("idle exit", _exit_when_idle, machine, plan.idle_exit_s)
                await machine.stopping.wait()  #              8  the machine runs
                for server in servers:  #                     9  no new connections
                    server.close()
                plan.paths.socket.unlink(missing_ok=True)
                await _drain(machine)  #                     10  wait for calls in flight
                machine.events.close()
                for device in machine.loader.each():  #   11  engines stop
                    await machine.loader.unmount(device.name)
                await machine.owners.finish()
                await machine.recall.process.stop()
                machine.journal.append(Entry("boot", note="down"))
                machine.journal.flush()
                run.why = machine.stop_reason
                tasks.cancel_scope.cancel()
        except BaseException as error:
            run.why = lastrun.failed(error)
            raise
        finally:
            store.close()  #                                 12  write what is queued
            lastrun.end(plan.paths.state, run)


def _private(plan: BootPlan) -> tuple[Path, ...]:
    """The directories of this machine, and the private key of its certificate."""
    where = plan.paths
    key = (plan.listen_options.key,) if plan.listen_options.key.name else ()
    return (where.runtime, where.state, where.cache, where.config, *key)


def _assemble(plan: BootPlan, store: Store, jobs: Supervisor) -> Machine:
    users = UserTable(store)
    owner = users.by_uid(os.geteuid()) or user(os.geteuid())  # the login may have been renamed
    drivers = Drivers(plan.drivers)
    images = ImageRegistry(store, drivers, plan.images, plan.paths.cache / "models")
    requantiser = Requantiser(images, drivers, jobs, automatic=plan.tune)
    if plan.first:
        requantiser.expect(images.get(plan.first))
    events: Followers[Event] = Followers()
    check_processes(store)
    recall = VectorDevice(_recall(plan), jobs)
    journal = Journal(store, events.publish, owner=owner, total_bytes=plan.journal_bytes)
    policy = Policy(TABLE, owner, plan.paths.policy_file, plan.paths.state / "policy.csv")
    processes = ProcessTable(store, owner)
    owners = Owners(OwnerContext(store, recall, jobs, processes.pids_in_use))
    machine = Machine(
        store=store,
        journal=journal,
        events=events,
        policy=policy,
        permissions=Permissions(policy, processes, journal, images.canonical),
        users=users,
        images=images,
        requantiser=requantiser,
        processes=processes,
        owners=owners,
        recall=recall,
        loader=Loader(Quarantine(store), jobs, plan.idle_unload_s),
        drivers=drivers,
        defaults=plan.defaults,
        owner=owner,
        private_paths=_private(plan),
        private=plan.private,
        system=plan.system,
        shared=plan.listen_options.shared,
        listens=bool(plan.listen_options.listen),
        user_connections=plan.user_connections,
        settings=plan.settings,
        jobs=jobs,
    )
    if plan.summaries:
        machine.summaries = Summaries(machine)
    jobs.report = partial(_journal_job, machine.journal)
    recall.process.report = partial(_journal_recall, machine.journal)
    store.pacing.computing = machine.loader.computing
    store.pacing.calls = lambda: machine.counters.calls
    if plan.embedder:
        image = images.get(plan.embedder)
        recall.embedder = f"{image.name} {image.fingerprint()}", partial(machine.embed, image.name)
    return machine


def _up(plan: BootPlan, before: str) -> str:
    return f"up {plan.system}; the last run {before}" if before else f"up {plan.system}"


def _report_last_run(machine: Machine, before: str) -> None:
    machine.last_run = before
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
    return driver.recall(plan.recall_options, log)


async def _register_owner(machine: Machine) -> None:
    """Register the socket's owner as a user, which cannot be removed."""
    await machine.users.ensure_owner(machine.owner, os.geteuid())
    await machine.apply_role_changes()


def check_rules(paths: Paths) -> None:
    """Check the rules as at boot. EINVAL with file and line."""
    UserRulesFile(paths.policy_file, paths.state / "policy.csv").read()  # raises if it was removed
    Policy(TABLE, user(os.geteuid()), paths.policy_file)


@contextmanager
def _lock(plan: BootPlan) -> Generator[None]:
    """One daemon for a socket, and one for a store: two sockets may share a state directory.

    EBUSY; EACCES, EROFS or ENOSPC when a directory cannot be used.
    """
    paths = plan.paths
    with ExitStack() as locks:
        try:
            listen.make_directory(paths.runtime, plan.listen_options)
            paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            other = other_state(paths)
            variable = f"LLMASOS_STATE_DIR={quote(str(other))} " if other else ""
            stop = f"`{variable}llmasos daemon stop` ends it"
            lock = _claim(locks, paths.lock, str(paths.socket), stop)
            state = os.path.realpath(paths.state)
            os.pwrite(lock, os.fsencode(f"{os.getpid()}\n{state}\n"), 0)
            runtime = recorded_runtime(paths)
            stop = f"`LLMASOS_RUNTIME_DIR={quote(str(runtime))} llmasos daemon stop` ends it"
            where = f"{runtime} with its state in {paths.state}"
            lock = _claim(locks, paths.state_lock, where, stop)
            os.pwrite(lock, os.fsencode(f"{os.getpid()}\n{paths.runtime}\n"), 0)
        except OSError as error:
            raise disk.unusable(error) from error
        yield


def _claim(locks: ExitStack, file: Path, where: str, stop: str) -> int:
    """Lock a file and write our pid into it. EBUSY, with `stop` as hint: a daemon has the lock."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    locks.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode(errors="replace").partition("\n")[0] or "?"
        message = f"a daemon runs already (pid {pid}) at {where}"
        raise SyscallError(Errno.EBUSY, message, stop) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        error.filename = str(file)
        raise
    return lock


async def _mount(machine: Machine, plan: BootPlan) -> None:
    """Mount the first image and the stored mounts. A failure does not stop the machine."""
    names = [plan.first, *machine.images.mounts()]  # the stored ones may be slow remote engines
    for name in filter(None, dict.fromkeys(names)):
        try:
            device = await machine.load(name)
            if plan.pin and name == plan.first:
                machine.loader.pin(device)
        except SyscallError as error:
            if machine.loader.device(name) is None:  # else a mount by a user replaced it
                log.warning("cannot mount %s: %s", name, error)


async def _exit_when_idle(machine: Machine, idle_exit_s: float) -> None:
    """Stop the machine after it was idle; sleeps until that may be the case."""
    while True:
        idle_s = time.monotonic() - machine.last_closed
        alive = any(process.ending is None for process in machine.processes.all())
        if alive or machine.counters.connections:
            idle_s = 0.0
        if idle_s >= idle_exit_s:
            log.info("idle for %.0f s without processes: exiting", idle_s)
            machine.stop("was stopped by its idle timer", drain=True)
            return
        await anyio.sleep(idle_exit_s - idle_s)


async def _drain(machine: Machine) -> None:
    """Wait for calls in flight; cancel them after DRAIN_S, and store their answers so far."""
    if machine.summaries is not None:
        machine.summaries.close()
    for process in machine.processes.all():
        if process.stopped:  # its call would not end
            machine.interrupt(process)
    with anyio.move_on_after(limits.DRAIN_S if machine.drain else 0) as scope:
        machine.skip_drain = scope.cancel
        await machine.no_pending_replies.wait()
    for process in machine.processes.all():
        machine.interrupt(process)
    with anyio.move_on_after(limits.DRAIN_S):
        await machine.no_pending_replies.wait()
