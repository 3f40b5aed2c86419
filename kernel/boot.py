"""Start here: the machine comes up and goes down in numbered lines.

The daemon hands over a Plan (directories, configuration, driver modules); everything else is made
here, bottom up, and taken down in the opposite order.
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

from . import collecting, disk, garbage, lastrun, limits, listen
from .abi import TABLE
from .driver import Driver, Option, Recall, RecallDriver
from .errors import Errno, SyscallError
from .identity import user
from .image import Images
from .journal import Entry, Journal
from .listen import Doors
from .machine import Machine
from .mailbox import Mailboxes
from .memory.meaning import Meaning
from .memory.memory import Memory
from .memory.paging import Pager
from .memory.sweeping import Sweeper
from .paths import Paths, noted_runtime, other_state
from .policy import OwnFile, Policy
from .process import Processes
from .recovery import check_processes, recover
from .scheduler import Scheduler
from .store import Store
from .supervisor import BackgroundJob, Supervisor
from .suspect import Suspects
from .tuning import Tuner
from .users import Users
from .values import RECALL, Event, SettingInfo
from .watch import Followers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the daemon decided before there was a machine."""

    paths: Paths
    system: str  # version of the software
    private: bool  # leaves when idle
    drivers: Mapping[str, str]  # name -> dotted module
    images: Mapping[str, tuple[str, Path]]  # built in: name -> driver, file
    defaults: Mapping[str, Mapping[str, Option]]  # mount options, by driver
    first: str  # image to mount at once; "": none
    idle_exit_s: float
    journal_bytes: int
    idle_unload_s: float = limits.UNLOAD_S  # of models; 0: never
    collect_after_s: float = limits.ENDED_S  # of processes that nobody waits for; 0: never
    pin: bool = False  # the image that is mounted at once
    tune: bool = True  # at the first use of a model that is built in
    settings: Sequence[SettingInfo] = ()  # all of them, with their origins
    doors: Doors = field(default_factory=Doors)
    user_connections: int = limits.USER_CONNECTIONS  # of each user but the owner
    recall: str = ""  # dotted module of the recall device; "": all is found by words
    recall_options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    summaries: bool = False  # of what leaves windows, made when nobody wants the engine
    embedder: str = ""  # an image that makes the vectors instead of the recall device


class Drivers(Mapping[str, Driver]):
    """The driver modules, each imported at its first use: most machines need one of them."""

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


async def boot(plan: Plan, ready: Callable[[Machine], None]) -> None:
    """Run the machine until it is told to stop. Raises SyscallError when it cannot come up."""
    sys.setswitchinterval(limits.SWITCH_S)
    with _lock(plan):  #                                      1  nobody else runs here
        store = _store(plan.paths.state)  #                   2  the writers of every database
        run, before = lastrun.begin(plan.paths.state)
        try:
            async with anyio.create_task_group() as tasks:
                jobs = Supervisor(tasks)
                machine = _assemble(plan, store, jobs)  #     3  policy, images, processes, memory
                _report_last_run(machine, before)
                await recover(machine)  #                     4  complete what a crash left open
                await _let_owner_in(machine)
                servers = await listen.everywhere(plan.paths, machine, plan.doors)  # 5  doors open
                machine.journal.append(Entry("boot", note=_up(plan, before)))
                ready(machine)  #                             6  tell whoever started us
                jobs.run("mount", _mount, machine, plan)  #   7  engines load meanwhile
                jobs.run("recall start", machine.meaning.begin)
                jobs.run("garbage", garbage.tend, machine)
                if plan.collect_after_s:
                    jobs.run("collect ended", collecting.collect, machine, plan.collect_after_s)
                if plan.private:
                    jobs.run("idle exit", _leave_when_idle, machine, plan.idle_exit_s)
                await machine.stopping.wait()  #              8  everything happens here
                for server in servers:  #                     9  nobody new
                    server.close()
                plan.paths.socket.unlink(missing_ok=True)
                await _drain(machine)  #                     10  calls in flight get their time
                machine.events.close()
                for device in machine.scheduler.each():  #   11  engines stop
                    await machine.scheduler.unmount(device.name)
                machine.mail.close()
                await machine.sweeper.close()
                await machine.meaning.power.stop()
                machine.journal.append(Entry("boot", note="down"))
                machine.journal.flush()
                run.why = machine.why
                tasks.cancel_scope.cancel()
        except BaseException as error:
            run.why = lastrun.failed(error)
            raise
        finally:
            store.close()  #                                 12  what was queued is written
            lastrun.end(plan.paths.state, run)


def _private(plan: Plan) -> tuple[Path, ...]:
    """The folders of this machine, and the key of its certificate."""
    where = plan.paths
    key = (plan.doors.key,) if plan.doors.key.name else ()
    return (where.runtime, where.state, where.cache, where.config, *key)


def _assemble(plan: Plan, store: Store, jobs: Supervisor) -> Machine:
    users = Users(store)
    owner = users.by_uid(os.geteuid()) or user(os.geteuid())  # a login may have got another name
    drivers = Drivers(plan.drivers)
    images = Images(store, drivers, plan.images, plan.paths.cache / "models")
    tuner = Tuner(images, drivers, jobs, automatic=plan.tune)
    if plan.first:
        tuner.expect(images.get(plan.first))
    events: Followers[Event] = Followers()
    memory = Memory(store)
    check_processes(store, memory)
    meaning = Meaning(memory, _recall(plan), jobs)
    machine = Machine(
        store=store,
        journal=Journal(store, events.tell, owner=owner, total_bytes=plan.journal_bytes),
        events=events,
        policy=Policy(TABLE, owner, plan.paths.policy_file, plan.paths.state / "policy.csv"),
        users=users,
        images=images,
        tuner=tuner,
        processes=Processes(store, owner),
        memory=memory,
        meaning=meaning,
        pager=Pager(memory, meaning),
        sweeper=Sweeper(memory, meaning, jobs),
        summaries=plan.summaries,
        mail=Mailboxes(store),
        scheduler=Scheduler(Suspects(store), jobs, plan.idle_unload_s),
        drivers=drivers,
        defaults=plan.defaults,
        owner=owner,
        private_paths=_private(plan),
        private=plan.private,
        system=plan.system,
        shared=plan.doors.shared,
        listens=bool(plan.doors.listen),
        places=plan.user_connections,
        settings=plan.settings,
        jobs=jobs,
    )
    jobs.report = partial(_journal_job, machine.journal)
    meaning.power.report = partial(_journal_recall, machine.journal)
    store.pacing.computing = machine.scheduler.computing
    store.pacing.calls = lambda: machine.counters.calls
    if plan.embedder:
        image = images.get(plan.embedder)
        meaning.embedder = f"{image.name} {image.likeness()}", partial(machine.embed, image.name)
    return machine


def _up(plan: Plan, before: str) -> str:
    return f"up {plan.system}; the last run {before}" if before else f"up {plan.system}"


def _report_last_run(machine: Machine, before: str) -> None:
    machine.last_run = before
    if before:
        level = logging.INFO if lastrun.is_clean(before) else logging.WARNING
        log.log(level, "the last run %s", before)


def _journal_job(journal: Journal, job: BackgroundJob) -> None:
    """A background job has failed, runs again, or has ended after that."""
    failed = job.state in ("waiting", "failed")
    journal.append(Entry(
        "job", owner=job.owner, object="/kernel", errno=Errno.EIO if failed else 0,
        note=f"{job.name} {job.state} {job.error if failed else ''}".strip(),
    ))  # fmt: skip


def _store(state: Path) -> Store:
    """EACCES, EROFS or ENOSPC when the directory cannot be used."""
    try:
        free = disk.check_room(state)
        if free < limits.FREE_BYTES:
            log.warning("%d bytes are free at %s: only reads and removals", free, state)
        return Store(state)
    except OSError as error:
        raise disk.unusable(error) from error


def _journal_recall(journal: Journal, state: str, reason: str) -> None:
    errno = Errno.EIO if state in ("restarting", "failed") else 0
    first = reason.splitlines()[0] if reason else ""
    note = f"{state} {first}".strip()[: limits.NOTE_CHARS]
    journal.append(Entry("device", object=f"/dev/{RECALL}", errno=errno, note=note))


def _recall(plan: Plan) -> Recall | None:
    """The recall device, not started."""
    if not plan.recall:
        return None
    driver = cast("RecallDriver", import_module(plan.recall))
    log = plan.paths.state / "engines" / "recall.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    return driver.recall(plan.recall_options, log)


async def _let_owner_in(machine: Machine) -> None:
    """The socket's owner is a user like any other, that nobody can remove."""
    await machine.users.own(machine.owner, os.geteuid())
    await machine.reidentify()


def rules(paths: Paths) -> None:
    """Read the rules as a boot would. EINVAL with file and line."""
    OwnFile(paths.policy_file, paths.state / "policy.csv").read()  # it may have vanished
    Policy(TABLE, user(os.geteuid()), paths.policy_file)


@contextmanager
def _lock(plan: Plan) -> Generator[None]:
    """One daemon for a socket, and one for a store: two sockets may share a state directory.

    EBUSY; EACCES, EROFS or ENOSPC when a directory cannot be used.
    """
    paths = plan.paths
    with ExitStack() as locks:
        try:
            listen.own(paths.runtime, plan.doors)
            paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            other = other_state(paths)
            variable = f"LLMASOS_STATE_DIR={quote(str(other))} " if other else ""
            stop = f"`{variable}llmasos daemon stop` ends it"
            lock = _claim(locks, paths.lock, str(paths.socket), stop)
            state = os.path.realpath(paths.state)
            os.pwrite(lock, os.fsencode(f"{os.getpid()}\n{state}\n"), 0)
            noted = noted_runtime(paths)
            stop = f"`LLMASOS_RUNTIME_DIR={quote(str(noted))} llmasos daemon stop` ends it"
            lock = _claim(locks, paths.state_lock, f"{noted} with its state in {paths.state}", stop)
            os.pwrite(lock, os.fsencode(f"{os.getpid()}\n{paths.runtime}\n"), 0)
        except OSError as error:
            raise disk.unusable(error) from error
        yield


def _claim(locks: ExitStack, file: Path, where: str, stop: str) -> int:
    """Lock a file and write our pid into it. EBUSY: a daemon `where` has it, and how to stop it."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    locks.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode(errors="replace").partition("\n")[0] or "?"
        words = f"a daemon runs already (pid {pid}) at {where}"
        raise SyscallError(Errno.EBUSY, words, stop) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        error.filename = str(file)
        raise
    return lock


async def _mount(machine: Machine, plan: Plan) -> None:
    """What was mounted before, and the default model. The machine serves without them too."""
    names = [plan.first, *machine.images.mounts()]  # others may be slow to answer, or far
    for name in filter(None, dict.fromkeys(names)):
        try:
            device = await machine.load(name)
            if plan.pin and name == plan.first:
                machine.scheduler.pin(device)
        except SyscallError as error:
            if machine.scheduler.device(name) is None:  # else a mount by hand took its place
                log.warning("%s was not mounted: %s", name, error)


async def _leave_when_idle(machine: Machine, idle_exit_s: float) -> None:
    """Look again only when the time may have come."""
    while True:
        quiet_s = time.monotonic() - machine.active
        alive = any(process.ending is None for process in machine.processes.all())
        if alive or machine.counters.connections:
            quiet_s = 0.0
        if quiet_s >= idle_exit_s:
            log.info("idle for %.0f s without processes: leaving", quiet_s)
            machine.stop("was stopped by its idle timer", drain=True)
            return
        await anyio.sleep(idle_exit_s - quiet_s)


async def _drain(machine: Machine) -> None:
    """Calls in flight end by themselves, or are cut after DRAIN_S and keep what they said."""
    for process in machine.processes.all():
        if process.stopped:  # it would not end by itself
            machine.interrupt(process)
    with anyio.move_on_after(limits.DRAIN_S if machine.drain else 0) as patience:
        machine.hurry = patience.cancel
        await machine.settled.wait()
    for process in machine.processes.all():
        machine.interrupt(process)
    with anyio.move_on_after(limits.DRAIN_S):
        await machine.settled.wait()
