"""Verbs about the daemon. It runs as a separate process; its code is never imported here."""

import os
import subprocess
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

from llmasos.kernel.abi import lastrun, limits, paths
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.logfile import earlier
from llmasos.userland import start as starter
from llmasos.userland.client import BlockingClient

from . import config, exits
from .connection import connect, is_remote, kernel_address
from .show import iso, jsonable, key_values, note, print_json, sanitised, size, span

_MEMORY = {  # counters with their singular and plural names
    "hits": ("hit", "hits"), "soft_faults": ("soft fault", "soft faults"),
    "hard_faults": ("hard fault", "hard faults"), "evictions": ("eviction", "evictions"),
    "thrashes": ("thrashing call", "thrashing calls"),
    "pages_waiting": ("page waits for vectors", "pages wait for vectors"),
    "pages_refused": ("page without a vector", "pages without a vector"),
    "mail": ("message waits", "messages wait"),
    "owners_uncounted": ("user is not counted", "users are not counted"),
}  # fmt: skip


def start(arguments: Namespace) -> int:
    where = paths.find()
    if arguments.settings:
        config.read(arguments.settings)  # reports invalid settings before the start
    started = starter.ensure(where, *arguments.settings)
    with connect() as client:
        stat = client.call("stat", v.Nothing(), v.Stat)
    if arguments.settings and not started:
        message = f"the daemon is already running (pid {stat.os_pid}); settings are unchanged"
        raise SyscallError(Errno.EBUSY, message, "`llmasos daemon stop` first")
    if arguments.json:
        print_json({**jsonable(stat), "socket": str(where.socket), "started": started})
    else:
        what = "started" if started else "is already running"
        note(f"the daemon {what}: pid {stat.os_pid}, socket {where.socket}")
    return exits.OK


def run(words: Sequence[str]) -> int:
    """Replace this process by the daemon."""
    command = [*starter.command("run"), *words]
    sys.stdout.flush()
    os.execv(command[0], command)


def stop(arguments: Namespace) -> int:
    with connect() as client:
        os_pid = _stop(client, arguments)
    if arguments.json:
        print_json({"os_pid": os_pid, "stopped": True})
    else:
        note(f"the daemon (pid {os_pid}) stopped")
    return exits.OK


def _stop(client: BlockingClient, arguments: Namespace) -> int:
    """Stop the daemon, wait until it has exited and return its pid. Raises ETIMEDOUT."""
    stat = client.call("stat", v.Nothing(), v.Stat)
    busy = stat.running + stat.waiting
    if busy and not arguments.now:
        note(f"waiting at most {limits.DRAIN_S:g} s for {busy} calls in flight")
    client.call("shutdown", v.Shutdown(drain=not arguments.now), v.Nothing)
    client.closed()
    if not is_remote() and not starter.wait_for_exit(stat.os_pid, 4 * limits.DRAIN_S):
        message = f"the daemon (pid {stat.os_pid}) has closed its socket but is still running"
        raise SyscallError(Errno.ETIMEDOUT, message, "`llmasos daemon logs` shows its log")
    return stat.os_pid


def restart(arguments: Namespace) -> int:
    """Stop the daemon if it is running, and start it with its previous flags and the given ones."""
    where = paths.find()
    words: list[str] = []
    before = 0
    try:
        with connect() as client:
            if client.call("stat", v.Nothing(), v.Stat).private:
                words.append("--private")
            given = [*config.flags(config.settings_of(client).settings), *arguments.settings]
            config.read(given)  # refuse invalid settings before stopping the daemon
            before = _stop(client, arguments)
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED:
            raise
        given = arguments.settings
    starter.ensure(where, *words, *given)
    with connect() as client:
        stat = client.call("stat", v.Nothing(), v.Stat)
    if arguments.json:
        print_json({**jsonable(stat), "socket": str(where.socket), "before": before or None})
    else:
        what = f"restarted (previous pid {before})" if before else "started"
        note(f"the daemon {what}: pid {stat.os_pid}, socket {where.socket}")
    return exits.OK


def status(arguments: Namespace) -> int:
    """A real probe: connect, hello, stat."""
    try:
        with connect() as client:
            stat = client.call("stat", v.Nothing(), v.Stat)
    except SyscallError as error:
        last = ""
        if error.errno is Errno.ECONNREFUSED and not is_remote():
            _check_other_runtime(error)
            last = lastrun.previous(paths.find().state)
        if arguments.json:
            fields = {"up": False, "socket": kernel_address(), "why": error.message}
            print_json({**fields, "last_run": last})
        elif last:
            note(f"the last run {last}")
        raise
    if arguments.json:
        print_json({**jsonable(stat), "up": True, "socket": kernel_address()})
        return exits.OK
    separate = (*_MEMORY, "jobs_running", "jobs_failed", "job_failures", "waiting_since", "damages")
    fields = {name: one for name, one in asdict(stat).items() if name not in separate}
    key_values({
        **{name: one for name, one in fields.items() if one not in ("", [])},
        **({"waiting_since": iso(stat.waiting_since)} if stat.waiting_since else {}),
        "uptime_s": span(stat.uptime_s), "rss_bytes": size(stat.rss_bytes),
        "journal_bytes": size(stat.journal_bytes), **_memory(stat), "jobs": _jobs(stat),
        "damages": "; ".join(f"{one.file}: {one.error}" for one in stat.damages),
        "socket": kernel_address(),
    })  # fmt: skip
    return exits.OK


def other_runtime() -> Path | None:
    """The runtime directory of this state's daemon, if it answers in another one than ours."""
    where = paths.find()
    recorded = paths.recorded_runtime(where)
    if recorded is None or recorded == where.runtime:
        return None
    try:
        with BlockingClient(replace(where, runtime=recorded).socket) as client:
            found = client.call("stat", v.Nothing(), v.Stat).os_pid
    except SyscallError:
        return None
    return recorded if found == lastrun.pid(where.state) else None


def _check_other_runtime(error: SyscallError) -> None:
    """Raise ECONNREFUSED with the other runtime directory if this state's daemon answers there."""
    other = other_runtime()
    if other is not None:
        message = f"{error.message}; the daemon of {paths.find().state} answers in {other}"
        hint = f"`LLMASOS_RUNTIME_DIR={quote(str(other))} llmasos daemon status`"
        raise SyscallError(error.errno, message, hint)


def _jobs(stat: v.Stat) -> str:
    """The number of running background jobs, and each failed one."""
    failed = [job_failure(job) for job in stat.jobs_failed]
    return "; ".join([f"{stat.jobs_running} running", *failed])


def job_failure(job: v.JobInfo) -> str:
    """A failed background job in one line."""
    times = "once" if job.failures == 1 else f"{job.failures} times"
    now = f"next try in {job.retry_s:g} s" if job.state == "waiting" else f"now {job.state}"
    whose = f" of {job.owner}" if job.owner else ""
    return f"{job.name}{whose} failed {times}, {now}: {job.error}"


def _memory(stat: v.Stat) -> dict[str, str]:
    """The nonzero memory counters on one line."""
    counts = [(getattr(stat, name), *words) for name, words in _MEMORY.items()]
    counters = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    return {"memory": ", ".join(counters)} if counters else {}


# --- its log ----------------------------------------------------------------------------------
def logs(arguments: Namespace) -> int:
    path = paths.find().log
    if not path.exists():
        hint = "a daemon started with `llmasos daemon run` logs to its stderr"
        raise SyscallError(Errno.ENOENT, f"no log file {path}", hint)
    lines, end = _last(path, arguments.lines)
    _lines(lines, arguments)
    if arguments.follow:
        _follow(["tail", "-c", f"+{end + 1}", "-F", str(path)], arguments)
    return exits.OK


def _last(path: Path, count: int) -> tuple[Iterable[str], int]:
    """The last lines of a log and its predecessor, and the offset up to which the log was read."""
    lines: deque[bytes] = deque(maxlen=count)
    for one in (earlier(path), path):
        end = 0
        with suppress(FileNotFoundError), one.open("rb") as file:
            lines.extend(file)
            end = file.tell()
    return (line.decode(errors="replace") for line in lines), end


def _follow(command: Sequence[str], arguments: Namespace) -> None:
    """Follow with `tail`, which can wait for new lines and a new file."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
    ) as tail:
        try:
            _lines(tail.stdout or (), arguments)
        finally:
            tail.kill()


def _lines(lines: Iterable[str], arguments: Namespace) -> None:
    for line in lines:
        text = line.rstrip("\n")
        if arguments.json:
            print_json({"line": text})
        else:
            print(sanitised(text), flush=arguments.follow)
