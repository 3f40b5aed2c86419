"""Whether a machine under long load grows: processes of all kinds start and end continuously.

Four clients spawn, fork, write, search, map, generate, forget, send, receive and reap; a fifth
sends malformed frames. The amount of live data stays about constant, so the resident memory of the
kernel and of the recall process must not rise. A figure is the slope of a straight line through the
samples of the last half. Chroma's process is reported beside it.
"""

import random
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi import wire
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .load import greet
from .memory import resident_mb
from .rig import Rig, RigError, daemon

CLIENTS = 4
SECONDS, TINY_SECONDS = 600.0, 2.0
SAMPLE_S = 1.0
FORGETS = 8  # one life in so many forgets a page, which rewrites Chroma's files
PAUSE_S = 0.05  # between two lives
SPOIL_S = 0.5  # between two connections of malformed frames
FRAMES = 40  # malformed ones on a connection
WORDS = (
    "river", "bread", "copper", "lamp", "thunder", "garden", "winter", "letter", "window", "horse",
    "market", "silver", "bridge", "story", "doctor", "island", "kitchen", "journey", "mountain",
)  # fmt: skip
BARS = (
    Bar("soak.kernel_mb_per_h", "growth of the kernel in the second half of ten minutes under load",
        "MB/h", "lower", 6),
    Bar("soak.recall_mb_per_h", "growth of the recall process, same time", "MB/h", "lower", 6),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory at one time, in MB."""

    time_s: float  # since the load began
    kernel: float
    recall: float
    chroma: float


@dataclass(slots=True)
class SoakLoad:
    """State shared by the clients."""

    rig: Rig
    document: Path
    stop: threading.Event = field(default_factory=threading.Event)
    lives: int = 0  # processes that were reaped
    frames: int = 0  # malformed ones
    failures: list[Exception] = field(default_factory=list[Exception])


def text(dice: random.Random, words: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(words))


def life(client: BlockingClient, dice: random.Random, document: Path) -> None:
    """A process and its child, from spawn to reap."""
    pid = client.call("spawn", v.Spawn("echo", app="bench"), v.Spawned).pid
    for _ in range(10):
        client.call("write_mem", v.WriteMem(pid, text(dice, dice.randint(5, 150))), v.Written)
    (child,) = client.call("fork", v.Fork(pid), v.Forked).pids
    mapped(client, child, document)
    for number in (pid, child, pid):
        message = v.Message(v.Role.USER, text(dice, 30))
        sampling = v.Sampling(max_tokens=40)
        asked = v.Generate(number, [message], sampling=sampling)
        for _ in client.stream("generate", asked, v.Delta, v.Generated):
            pass
        client.call("search_mem", v.SearchMem(number, text(dice, 6), 5), v.Hits)
    for _ in range(3):
        client.call("send", v.Send(child, text(dice, 50), sender=pid), v.Sent)
        client.call("recv", v.Recv(child, 10.0), v.Mail)
    if dice.randrange(FORGETS) == 0:
        client.call("forget", v.Forget(pid, 0), v.Forgotten)
    for number in (child, pid):
        client.call("kill", v.Kill(number), v.Nothing)
        client.call("wait", v.Wait(number), v.Exit)


def mapped(client: BlockingClient, pid: int, document: Path) -> None:
    """Map the document; retry when its last process ended at the same moment."""
    while True:
        try:
            client.call("mmap", v.Mmap(pid, f"/files{document}"), v.Mapped)
        except SyscallError as error:
            if error.errno is not Errno.EAGAIN:
                raise
        else:
            return


def live(load: SoakLoad, seed: int) -> None:
    """One client."""
    dice = random.Random(seed)
    with load.rig.client() as client:
        while not load.stop.wait(PAUSE_S):
            life(client, dice, load.document)
            load.lives += 2


def spoil(load: SoakLoad) -> None:
    """Send malformed frames until the kernel closes the connection, then reconnect."""
    dice = random.Random(0)
    while not load.stop.wait(SPOIL_S):
        with greet(load.rig.socket) as connection:
            try:
                for _ in range(FRAMES):
                    connection.sendall(malformed(dice))
                    load.frames += 1
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass


def malformed(dice: random.Random) -> bytes:
    """Random bytes, an unknown call, or a call with fields of wrong types."""
    match dice.randrange(3):
        case 0:
            body = dice.randbytes(dice.randint(1, 200))
            return struct.pack(">I", len(body)) + body
        case 1:
            return wire.pack([wire.CALL, dice.randint(1, 1000), text(dice, 1), {}])
        case _:
            return wire.pack([wire.CALL, dice.randint(1, 1000), "spawn", {"model": [], "x": 1}])


def children(os_pid: int) -> list[int]:
    """The child processes of all its threads."""
    return [
        int(pid)
        for task in Path(f"/proc/{os_pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]


def sample(os_pid: int, begun: float) -> Sample | None:
    """The current memory; None while there is no recall process."""
    recall = next((one for one in children(os_pid) if _runs(one, b"recall.child")), 0)
    if not recall:
        return None
    # It is restarted each time that a page is forgotten.
    chroma = next((one for one in children(recall) if _runs(one, b"recall.chroma")), 0)
    time_s = time.monotonic() - begun
    return Sample(time_s, resident_mb(os_pid), resident_mb(recall), size_mb(chroma))


def size_mb(os_pid: int) -> float:
    """Resident memory; 0: the process has ended."""
    try:
        return resident_mb(os_pid) if os_pid else 0.0
    except (OSError, StopIteration):
        return 0.0


def _runs(pid: int, module: bytes) -> bool:
    try:
        return module in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def slope_mb_per_h(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through (seconds, MB)."""
    middle_s = sum(time_s for time_s, _ in points) / len(points)
    middle = sum(size for _, size in points) / len(points)
    above = sum((time_s - middle_s) * (size - middle) for time_s, size in points)
    below = sum((time_s - middle_s) ** 2 for time_s, _ in points)
    return 3600 * above / below if below else 0.0


def soaked(seconds: float) -> tuple[list[Sample], SoakLoad]:
    """Samples during the load, at least one. RigError when a client failed."""
    embedder = {"memory-embedder": "builtin"}
    with daemon(mount=False, **embedder) as rig, tempfile.TemporaryDirectory() as folder:
        document = Path(folder).resolve() / "document.txt"
        document.write_text("\n\n".join(text(random.Random(n), 100) for n in range(10)))
        load = SoakLoad(rig, document)
        works = [partial(live, load, seed) for seed in range(CLIENTS)] + [partial(spoil, load)]
        threads = [threading.Thread(target=_guarded, args=(load, work)) for work in works]
        for thread in threads:
            thread.start()
        begun, samples = time.monotonic(), list[Sample]()
        while (time.monotonic() - begun < seconds or not samples) and not load.failures:
            samples += filter(None, [sample(rig.os_pid, begun)])
            load.stop.wait(SAMPLE_S)
        load.stop.set()
        for thread in threads:
            thread.join()
    if load.failures:
        raise RigError(f"a client failed: {load.failures[0]}")
    return samples, load


def _guarded(load: SoakLoad, work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # of whatever kind: it is raised where the others can be ended
        load.failures.append(error)


def take(tiny: bool) -> Take:
    samples, load = soaked(TINY_SECONDS if tiny else SECONDS)
    half = [one for one in samples if one.time_s >= samples[-1].time_s / 2]
    slopes = {
        "soak.kernel_mb_per_h": slope_mb_per_h([(one.time_s, one.kernel) for one in half]),
        "soak.recall_mb_per_h": slope_mb_per_h([(one.time_s, one.recall) for one in half]),
    }
    first, last = half[0], samples[-1]
    facts = {
        "lives": load.lives,
        "malformed_frames": load.frames,
        "kernel_mb": [samples[0].kernel, first.kernel, last.kernel],
        "recall_mb": [samples[0].recall, first.recall, last.recall],
        "chroma_mb": [samples[0].chroma, first.chroma, last.chroma],
    }
    return Take({name: [round(slope, 2)] for name, slope in slopes.items()}, facts)


SUITE = Suite("soak", BARS, take, timed=False)
