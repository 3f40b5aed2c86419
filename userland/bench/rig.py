"""A daemon on temporary directories, and a client of it, to measure.

The client is that of the command line, so that a measured time does not include the SDK. The
*tuned* model is the built-in chat model after `llmasos models tune`: requantised to Q8_0.
State is in the user's cache directory, not in /tmp, where fsync may cost nothing.
"""

import ctypes
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmasos.kernel.abi import limits, paths
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

MODEL = "smollm2"
ENGINES = {"openvino": "OpenVINO", "llama": "llama.cpp"}  # as in the option `engine` of a mount
_ENGINE: ContextVar[str] = ContextVar("engine", default="")
_USED: ContextVar[set[str]] = ContextVar("used")
READY_S = limits.READY_S
STOP_S = 2 * limits.DRAIN_S + 5
_PR_SET_PDEATHSIG = 1
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
PACKAGES = (
    "llmasos", "llama-cpp-python", "xllamacpp", "openvino", "openvino-genai", "msgpack",
    "pycasbin", "pydantic", "anyio", "uvloop",
)  # fmt: skip


class RigError(Exception):
    """The measurement could not be set up or completed."""


@contextmanager
def terminable() -> Generator[None]:
    """SIGTERM raises SystemExit, so that daemons are stopped and their files removed."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ends_with_us() -> Callable[[], None]:
    """A `preexec_fn` for a process that gets SIGTERM when the thread that starts it ends."""
    return partial(_end_with, os.getpid())


def _end_with(parent: int) -> None:
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before prctl


def machine() -> dict[str, object]:
    """The hardware for comparison: processor, cores, memory, system."""
    names = [
        line.split(":", 1)[1].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(ram / 1024**3, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True, slots=True)
class Rig:
    """A running daemon."""

    socket: Path
    environment: Mapping[str, str]  # for other programs that connect to it
    os_pid: int

    def client(self) -> BlockingClient:
        return BlockingClient(self.socket)

    def digest(self, model: str = MODEL) -> str:
        """The digest of a model's file."""
        with self.client() as client:
            return image(client, model).digest


def image(client: BlockingClient, model: str = MODEL) -> v.ImageInfo:
    """The image of a model. RigError when it is not installed."""
    for one in client.call("images", v.Nothing(), v.Images).images:
        if model in (one.name, *one.aliases):
            return one
    raise RigError(f"no model {model}: `make setup` installs it")


def environment(runtime: str, directory: str) -> dict[str, str]:
    """This process's environment with the rig's directories and without the user's settings.

    Tuned models are in the user's cache, so that they are built once and not for each daemon.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LLMASOS_")}
    return {
        **clean,
        "LLMASOS_RUNTIME_DIR": runtime,
        "LLMASOS_STATE_DIR": f"{directory}/state",
        "LLMASOS_CONFIG_DIR": f"{directory}/config",
        "LLMASOS_CACHE_DIR": str(paths.find().cache),
        "LLMASOS_AUTOSTART": "0",
    }


@contextmanager
def directories() -> Generator[str]:
    """A temporary directory on the disk of the user's cache."""
    cache = paths.find().cache
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache) as found:
        yield found


@contextmanager
def daemon(**settings: object) -> Generator[Rig]:
    """A daemon that is ready. Its engine may still be loading."""
    with directories() as directory, daemon_on(directory, **settings) as rig:
        yield rig


@contextmanager
def daemon_on(directory: str, **settings: object) -> Generator[Rig]:
    """A daemon with its state in the folder `state` of a directory, which the caller removes."""
    if _ENGINE.get():
        settings = {"engine": _ENGINE.get(), **settings}
        if settings.get("mount", True):
            _record(_ENGINE.get())
    with tempfile.TemporaryDirectory(prefix="llmasos-bench-") as runtime:
        env = environment(runtime, directory)
        child = _start(env, Path(directory, "log"), settings)
        try:
            yield Rig(Path(runtime, "kernel.sock"), env, child.pid)
        finally:
            _stop(child)


@contextmanager
def tuned(**settings: object) -> Generator[tuple[Rig, BlockingClient]]:
    """A daemon with the tuned model, which is not mounted yet, and a client of it."""
    with daemon(mount=False, **settings) as rig, rig.client() as client:
        if not image(client).tuned:
            request = v.ImageTune(MODEL, measure=False)
            for _ in client.stream("image_tune", request, v.Progress, v.Tuned):
                pass
        yield rig, client


@contextmanager
def on_engine(name: str) -> Generator[None]:
    """Let suites compute models on this engine; empty: on the one that the machine chooses."""
    token = _ENGINE.set(name)
    try:
        yield
    finally:
        _ENGINE.reset(token)


@contextmanager
def engines_used() -> Generator[set[str]]:
    """The engines that computed models in the block, as far as suites mount them or name them."""
    used = set[str]()
    token = _USED.set(used)
    try:
        yield used
    finally:
        _USED.reset(token)


def _record(engine: str) -> None:
    if (used := _USED.get(None)) is not None:
        used.add(engine)


@contextmanager
def mounted(client: BlockingClient, **options: bool | int | float | str) -> Generator[v.DeviceInfo]:
    """Mount the model with options of its driver until the block ends."""
    chosen = {"engine": _ENGINE.get(), **options} if _ENGINE.get() else options
    device = client.call("mount", v.Mount(MODEL, chosen), v.DeviceInfo)
    _record(engine_of(device))
    try:
        yield device
    finally:
        client.call("unmount", v.Unmount(MODEL), v.Nothing)


def engine_of(device: v.DeviceInfo) -> str:
    """The engine on which a device runs."""
    return "openvino" if ENGINES["openvino"] in device.placement.partition(";")[0] else "llama"


def facts(client: BlockingClient) -> dict[str, object]:
    """The measured configuration: the model's file and its quantisation."""
    found = image(client)
    return {
        "model": found.digest,
        "quantisation": found.quantisation,
        "tuned": bool(found.tuned),
    }


def _start(
    env: Mapping[str, str], log: Path, settings: Mapping[str, object]
) -> subprocess.Popen[bytes]:
    ready_reader, ready_writer = os.pipe()
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    program = [sys.executable, "-m", "llmasos.userland.daemon", "run"]
    argv = [*program, "--ready-fd", str(ready_writer), *flags]
    with log.open("wb") as out:
        child = subprocess.Popen(
            argv, env=env, stdout=out, stderr=out, pass_fds=(ready_writer,),
            preexec_fn=ends_with_us(),
        )  # fmt: skip
    os.close(ready_writer)
    readable = select.select([ready_reader], [], [], READY_S)[0]
    reported = os.read(ready_reader, 64) if readable else b""
    os.close(ready_reader)
    if not reported:
        _stop(child)
        tail = "\n".join(_lines(log)[-10:])
        raise RigError(f"the daemon did not start:\n{tail}")
    return child


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def seconds_of(argv: list[str], env: Mapping[str, str]) -> float:
    """Wall time of a program. RigError when it fails."""
    begun = time.perf_counter()
    done = subprocess.run(argv, env=env, capture_output=True, stdin=subprocess.DEVNULL)
    ended = time.perf_counter()
    if done.returncode:
        output = done.stderr.decode(errors="replace").strip()
        raise RigError(f"{' '.join(argv)} exited with {done.returncode}: {output}")
    return ended - begun


def command() -> list[str]:
    """The `llmasos` command of this installation."""
    script = Path(sys.executable).with_name("llmasos")
    return [str(script)] if script.exists() else [sys.executable, "-m", "llmasos"]
