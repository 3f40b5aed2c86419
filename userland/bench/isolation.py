"""What maintenance of one user costs another: a rebuild of 100,000 pages beside small calls.

One user has that many pages in a process of the echo driver and rebuilds their indexes (`fsck
--rebuild`). Another user, connected over TLS with a key, calls `stat` at random times and lets the
embedded model answer with one token. Both are measured on the idle daemon and again during the
rebuild, in the same run.
"""

import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from llmasos.userland.remote import Remote

from .fault import texts, write
from .figures import Bar, Suite, Take
from .recall import settle
from .rig import MODEL, Rig, RigError, facts, mounted, tuned
from .syscall import spawn
from .texts import Writer

PAGES, WRITERS = 100_000, 8
SAMPLES, PAUSE_S = 2_000, 0.006  # on the idle machine; mean pause between two
PROMPT_TOKENS, ANSWERS = 100, 40
BARS = (
    Bar("isolation.stall_p99_ms", f"no-op of another user while one user rebuilds {PAGES:,} "
        "pages: p99, over the same on an idle machine", "x", "lower", 5),
    Bar("isolation.generate_ttft", f"first token of a {PROMPT_TOKENS}-token prompt of another user "
        "during that rebuild: median, over the same on an idle machine", "x", "lower", 1.3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class IsolationSize:
    pages: int
    samples: int
    answers: int
    prompts: int


@contextmanager
def certificate() -> Generator[tuple[Path, Path]]:
    """A certificate for this machine, and its key. RigError without openssl."""
    program = shutil.which("openssl")
    if program is None:
        raise RigError("openssl, which creates the certificate for TLS, is not installed")
    with tempfile.TemporaryDirectory(prefix="llmasos-bench-tls-") as folder:
        file, key = Path(folder, "machine.pem"), Path(folder, "machine.key")
        line = [
            program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=bench", "-addext",
            "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file),
        ]  # fmt: skip
        subprocess.run(line, check=True, capture_output=True, timeout=60)
        yield file, key


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


@contextmanager
def other(rig: Rig, remote: Remote) -> Generator[BlockingClient]:
    """Another user of the machine."""
    with BlockingClient(rig.socket, app="bench", profile=v.Profile.OWNER) as owner:
        owner.call("user_add", v.UserAdd("other"), v.UserInfo)
        made = owner.call("key_create", v.KeyCreate("other"), v.KeyCreated)
    with BlockingClient(remote.connect(), app="bench", key=made.key) as line:
        yield line


def fill(rig: Rig, client: BlockingClient, pages: int) -> None:
    """Write the pages of one user and wait for their vectors."""
    pid, made = spawn(client), texts(pages, 1)
    with ThreadPoolExecutor(WRITERS) as pool:
        for index in range(WRITERS):
            pool.submit(write, rig, pid, made[index::WRITERS])
    settle(client)


@contextmanager
def rebuilding(client: BlockingClient) -> Generator[Callable[[], bool]]:
    """A rebuild in the background; yields whether it still runs. RigError when it failed."""
    failed: list[BaseException] = []
    done = threading.Event()

    def rebuild() -> None:
        try:
            client.call("fsck", v.Fsck(rebuild=True), v.Checked)
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=rebuild)
    thread.start()
    try:
        yield lambda: not done.is_set()
    finally:
        thread.join()
    if failed:
        raise RigError(f"the rebuild failed: {failed[0]}")


def stall_ms(line: BlockingClient, goes_on: Callable[[], bool], least: int) -> list[float]:
    """Round trips of a no-op while a condition holds, and at least so many."""
    chance, times = random.Random(1), list[float]()
    while goes_on() or len(times) < least:
        time.sleep(chance.expovariate(1 / PAUSE_S))
        begun = time.perf_counter()
        line.call("stat", v.Nothing(), v.Stat)
        times.append(1000 * (time.perf_counter() - begun))
    return times


def first_tokens_ms(
    line: BlockingClient, prompts: Iterator[str], goes_on: Callable[[], bool], least: int
) -> list[float]:
    """Times to first token, each with a fresh process and a new prompt."""
    times = list[float]()
    sampling = v.Sampling(max_tokens=1, temperature=0, ignore_eos=True)
    while goes_on() or len(times) < least:
        pid = line.call("spawn", v.Spawn(MODEL, app="bench", keep=False), v.Spawned).pid
        message = [v.Message(v.Role.USER, next(prompts))]
        asked = v.Generate(pid, message, sampling=sampling, raw=True)
        begun = time.perf_counter()
        stream = line.stream("generate", asked, v.Delta, v.Generated)
        first = 0.0
        for _ in stream:
            first = first or 1000 * (time.perf_counter() - begun)
        times.append(first or 1000 * (time.perf_counter() - begun))
        line.call("kill", v.Kill(pid, v.Signal.KILL), v.Nothing)
        line.call("wait", v.Wait(pid), v.Exit)
    return times


def p99(times: Sequence[float]) -> float:
    return quantiles(times, n=100)[98]


def never() -> bool:
    return False


def take(tiny: bool) -> Take:
    size = IsolationSize(400, 50, 2, 8) if tiny else IsolationSize(PAGES, SAMPLES, ANSWERS, 1000)
    with certificate() as (file, key):
        port = free_port()
        remote = Remote("127.0.0.1", port, ca=str(file))
        settings: dict[str, object] = {
            "listen": f"127.0.0.1:{port}", "tls-cert": file, "tls-key": key,
            "memory-embedder": "none" if tiny else "builtin",
        }  # fmt: skip
        with tuned(**settings) as (rig, client), mounted(client), other(rig, remote) as line:
            fill(rig, client, size.pages)
            writer = Writer.of(client)
            made = [writer.private(n, n, PROMPT_TOKENS) for n in range(size.prompts)]
            prompts = cycle(made)  # a prompt repeats only after its context was dropped
            idle = stall_ms(line, never, size.samples)
            answers = first_tokens_ms(line, prompts, never, size.answers)
            with rebuilding(client) as goes_on:
                busy = stall_ms(line, goes_on, size.samples // 4)
            settle(client)
            with rebuilding(client) as goes_on:
                late = first_tokens_ms(line, prompts, goes_on, size.answers // 4)
            measured = facts(client)
    values = {
        "isolation.stall_p99_ms": [round(p99(busy) / p99(idle), 3)],
        "isolation.generate_ttft": [round(median(late) / median(answers), 3)],
    }
    measured |= {
        "pages": size.pages,
        "no_op_p50_p99_ms": {
            name: [len(times), round(median(times), 3), round(p99(times), 3)]
            for name, times in (("idle", idle), ("rebuilding", busy))
        },
        "first_token_p50_ms": {
            name: [len(times), round(median(times), 2)]
            for name, times in (("idle", answers), ("rebuilding", late))
        },
    }
    return Take(values, measured)


SUITE = Suite("isolation", BARS, take)
