"""Verbs about the kernel's own process. It is started as a process and never imported."""

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

from llmasos.kernel import lastrun, limits, paths
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.logfile import earlier
from llmasos.userland import start as starter
from llmasos.userland.line import Line

from . import config, exits
from .door import connect, is_far, place
from .show import card, document, harmless, iso, note, plain, size, span

_MEMORY = {  # counters, in words: of one, of many
    "hits": ("hit", "hits"), "soft_faults": ("soft fault", "soft faults"),
    "hard_faults": ("hard fault", "hard faults"), "evictions": ("eviction", "evictions"),
    "thrashes": ("thrashing call", "thrashing calls"),
    "pages_waiting": ("page waits for vectors", "pages wait for vectors"),
    "pages_refused": ("page without a vector", "pages without a vector"),
    "mail": ("message waits", "messages wait"),
}  # fmt: skip


def start(arguments: Namespace) -> int:
    where = paths.find()
    if arguments.extra:
        config.read(arguments.extra)  # wrong ones are told here, and not by a log's end
    started = starter.ensure(where, *arguments.extra)
    with connect() as line:
        stat = line.call("stat", v.Nothing(), v.Stat)
    if arguments.extra and not started:
        words = f"the daemon ran already (pid {stat.os_pid}): its settings stay as they are"
        raise SyscallError(Errno.EBUSY, words, "`llmasos daemon stop` first")
    if arguments.json:
        document({**plain(stat), "socket": str(where.socket), "started": started})
    else:
        what = "is up" if started else "ran already"
        note(f"the daemon {what}: pid {stat.os_pid} at {where.socket}")
    return exits.OK


def run(words: Sequence[str]) -> int:
    """Become the daemon."""
    line = [*starter.command("run"), *words]
    sys.stdout.flush()
    os.execv(line[0], line)


def stop(arguments: Namespace) -> int:
    with connect() as line:
        os_pid = _down(line, arguments)
    if arguments.json:
        document({"os_pid": os_pid, "stopped": True})
    else:
        note(f"the daemon (pid {os_pid}) is down")
    return exits.OK


def _down(line: Line, arguments: Namespace) -> int:
    """Stop the daemon and wait for its end: its pid. ETIMEDOUT."""
    stat = line.call("stat", v.Nothing(), v.Stat)
    busy = stat.running + stat.waiting
    if busy and not arguments.now:
        note(f"waiting for calls in flight ({busy}), {limits.DRAIN_S:g} s at most")
    line.call("shutdown", v.Shutdown(drain=not arguments.now), v.Nothing)
    line.closed()
    if not is_far() and not starter.gone(stat.os_pid, 4 * limits.DRAIN_S):
        words = f"the daemon (pid {stat.os_pid}) has closed its socket and is still there"
        raise SyscallError(Errno.ETIMEDOUT, words, "`llmasos daemon logs` tells what it does")
    return stat.os_pid


def restart(arguments: Namespace) -> int:
    """Stop the daemon, if one runs, and start it with the flags that it had and those given."""
    where = paths.find()
    words: list[str] = []
    before = 0
    try:
        with connect() as line:
            if line.call("stat", v.Nothing(), v.Stat).private:
                words.append("--private")
            given = [*config.flags(config.of(line)), *arguments.extra]
            config.read(given)  # what makes no sense is refused while there is a daemon still
            before = _down(line, arguments)
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED:
            raise
        given = arguments.extra
    starter.ensure(where, *words, *given)
    with connect() as line:
        stat = line.call("stat", v.Nothing(), v.Stat)
    if arguments.json:
        document({**plain(stat), "socket": str(where.socket), "before": before or None})
    else:
        what = f"was restarted (pid {before} before)" if before else "is up"
        note(f"the daemon {what}: pid {stat.os_pid} at {where.socket}")
    return exits.OK


def status(arguments: Namespace) -> int:
    """A real probe: connect, hello, stat."""
    try:
        with connect() as line:
            stat = line.call("stat", v.Nothing(), v.Stat)
    except SyscallError as error:
        last = ""
        if error.errno is Errno.ECONNREFUSED and not is_far():
            _refuse_elsewhere(error)
            last = lastrun.previous(paths.find().state)
        if arguments.json:
            told = {"up": False, "socket": place(), "why": error.message}
            document({**told, "last_run": last})
        elif last:
            note(f"the last run {last}")
        raise
    if arguments.json:
        document({**plain(stat), "up": True, "socket": place()})
        return exits.OK
    apart = (*_MEMORY, "jobs_running", "jobs_failed", "job_failures", "waiting_since", "damages")
    told = {name: one for name, one in asdict(stat).items() if name not in apart}
    card({
        **{name: one for name, one in told.items() if one not in ("", [])},
        **({"waiting_since": iso(stat.waiting_since)} if stat.waiting_since else {}),
        "uptime_s": span(stat.uptime_s), "rss_bytes": size(stat.rss_bytes),
        "journal_bytes": size(stat.journal_bytes), **_memory(stat), "jobs": _jobs(stat),
        "damages": "; ".join(f"{one.file}: {one.error}" for one in stat.damages),
        "socket": place(),
    })  # fmt: skip
    return exits.OK


def elsewhere() -> Path | None:
    """The runtime directory where the daemon of this state answers, if it is not the one here."""
    where = paths.find()
    noted = paths.noted_runtime(where)
    if noted is None or noted == where.runtime:
        return None
    try:
        with Line(replace(where, runtime=noted).socket) as line:
            found = line.call("stat", v.Nothing(), v.Stat).os_pid
    except SyscallError:
        return None
    return noted if found == lastrun.pid(where.state) else None


def _refuse_elsewhere(error: SyscallError) -> None:
    """ECONNREFUSED that names the place where the daemon of this state answers, if it does."""
    other = elsewhere()
    if other is not None:
        words = f"{error.message}; the daemon of {paths.find().state} answers in {other}"
        hint = f"`LLMASOS_RUNTIME_DIR={quote(str(other))} llmasos daemon status`"
        raise SyscallError(error.errno, words, hint)


def _jobs(stat: v.Stat) -> str:
    """Its background jobs: how many run, and each that failed."""
    failed = [failure(job) for job in stat.jobs_failed]
    return "; ".join([f"{stat.jobs_running} running", *failed])


def failure(job: v.JobInfo) -> str:
    """What is known of a background job that failed."""
    times = "once" if job.failures == 1 else f"{job.failures} times"
    now = f"tried again in {job.retry_s:g} s" if job.state == "waiting" else f"now {job.state}"
    whose = f" of {job.owner}" if job.owner else ""
    return f"{job.name}{whose} failed {times}, {now}: {job.error}"


def _memory(stat: v.Stat) -> dict[str, str]:
    """Its counters on one line, those that count something."""
    counts = [(getattr(stat, name), *words) for name, words in _MEMORY.items()]
    said = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    return {"memory": ", ".join(said)} if said else {}


# --- its log ----------------------------------------------------------------------------------
def logs(arguments: Namespace) -> int:
    path = paths.find().log
    if not path.exists():
        hint = "a daemon that was started by `llmasos daemon run` writes to its own stderr"
        raise SyscallError(Errno.ENOENT, f"there is no {path}", hint)
    lines, end = _last(path, arguments.lines)
    _lines(lines, arguments)
    if arguments.follow:
        _follow(["tail", "-c", f"+{end + 1}", "-F", str(path)], arguments)
    return exits.OK


def _last(path: Path, count: int) -> tuple[Iterable[str], int]:
    """The last lines of a log and of the one before it, and how far the log was read."""
    lines: deque[bytes] = deque(maxlen=count)
    for one in (earlier(path), path):
        end = 0
        with suppress(FileNotFoundError), one.open("rb") as file:
            lines.extend(file)
            end = file.tell()
    return (line.decode(errors="replace") for line in lines), end


def _follow(line: Sequence[str], arguments: Namespace) -> None:
    """As tail does it, who knows how to wait for a file."""
    with subprocess.Popen(line, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as tail:
        try:
            _lines(tail.stdout or (), arguments)
        finally:
            tail.kill()


def _lines(lines: Iterable[str], arguments: Namespace) -> None:
    for line in lines:
        text = line.rstrip("\n")
        if arguments.json:
            document({"line": text})
        else:
            print(harmless(text), flush=arguments.follow)
