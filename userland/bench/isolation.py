"""What maintenance of one user costs another: a rebuild of 100,000 pages during small calls.

One user has that many pages in a process of the echo driver and rebuilds their indexes (`fsck
--rebuild`). Another user, connected over TLS with a key, calls `stat` at random times and lets the
built-in chat model answer with one token. Both are measured on the idle daemon and again during the
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
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from llmasos.userland.remote import Remote

from .fault import texts, write_all
from .figures import Bar, Suite, Take
from .recall import settle
from .rig import MODEL, Rig, RigError, facts, mounted, tuned
from .syscall import spawn
from .texts import Writer

PAGES = 100_000
SAMPLES, PAUSE_S = 2_000, 0.006  # on the idle machine; mean pause between two
PROMPT_TOKENS, ANSWERS = 100, 40
MOST_CACHED = 10  # tokens of a prompt: its beginning may be that of another one
BARS = (
    Bar("isolation.stall_p99_ms", f"no-op of another user while one user rebuilds {PAGES:,} "
        "pages: p99 divided by that on an idle machine, a ratio", "x", "lower", 5),
    Bar("isolation.generate_ttft", f"first token of a {PROMPT_TOKENS}-token prompt of another user "
        "during that rebuild: median divided by that on an idle machine", "x", "lower", 1.3),
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
        command = [
            program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=bench", "-addext",
            "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        yield file, key


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def other_user(rig: Rig, remote: Remote) -> Generator[BlockingClient]:
    """A client of another user of the machine."""
    with BlockingClient(rig.socket, app="bench", profile=v.Profile.OWNER) as owner:
        owner.call("user_add", v.UserAdd("other"), v.UserInfo)
        created = owner.call("key_create", v.KeyCreate("other"), v.KeyCreated)
    with BlockingClient(remote.connect(), app="bench", key=created.key) as client:
        yield client


def fill(rig: Rig, client: BlockingClient, pages: int) -> None:
    """Write the pages of one user and wait for their vectors."""
    write_all(rig, spawn(client), texts(pages, 1))
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


def noop_ms(client: BlockingClient, goes_on: Callable[[], bool], least: int) -> list[float]:
    """Round trips of a no-op while a condition holds, and at least `least`.

    When the condition ends before, the rest is measured on the idle daemon.
    """
    chance, times = random.Random(1), list[float]()
    while goes_on() or len(times) < least:
        time.sleep(chance.expovariate(1 / PAUSE_S))
        begun = time.perf_counter()
        client.call("stat", v.Nothing(), v.Stat)
        times.append(1000 * (time.perf_counter() - begun))
    return times


def first_tokens_ms(
    client: BlockingClient, prompts: Iterator[str], goes_on: Callable[[], bool], least: int
) -> list[float]:
    """Times to first token, each with a fresh process. RigError when a prompt was cached."""
    times = list[float]()
    sampling = v.Sampling(max_tokens=1, temperature=0, ignore_eos=True)
    while goes_on() or len(times) < least:
        pid = client.call("spawn", v.Spawn(MODEL, app="bench", keep=False), v.Spawned).pid
        message = [v.Message(v.Role.USER, next(prompts))]
        request = v.Generate(pid, message, sampling=sampling, raw=True)
        begun = time.perf_counter()
        stream = client.stream("generate", request, v.Delta, v.Generated)
        first = 0.0
        for _ in stream:
            first = first or 1000 * (time.perf_counter() - begun)
        times.append(first or 1000 * (time.perf_counter() - begun))
        cached = stream.reply.usage.cached_tokens if stream.reply is not None else 0
        if cached > MOST_CACHED:
            raise RigError(f"{cached} tokens of a prompt were computed before")
        client.call("kill", v.Kill(pid, v.Signal.KILL), v.Nothing)
        client.call("wait", v.Wait(pid), v.Exit)
    return times


def p99(times: Sequence[float]) -> float:
    return quantiles(times, n=100)[98]


def never() -> bool:
    return False


def take(tiny: bool) -> Take:
    size = IsolationSize(100, 20, 2, 8) if tiny else IsolationSize(PAGES, SAMPLES, ANSWERS, 1000)
    with certificate() as (file, key):
        port = free_port()
        remote = Remote("127.0.0.1", port, ca=str(file))
        settings: dict[str, object] = {
            "listen": f"127.0.0.1:{port}", "tls-cert": file, "tls-key": key,
            "memory-embedder": "none" if tiny else "builtin",
        }  # fmt: skip
        with tuned(**settings) as (rig, client), mounted(client), other_user(rig, remote) as other:
            fill(rig, client, size.pages)
            writer = Writer.of(client)
            private = [writer.private(n, n, PROMPT_TOKENS) for n in range(size.prompts)]
            prompts = cycle(private)  # a prompt repeats only after its context was dropped
            idle = noop_ms(other, never, size.samples)
            idle_answers = first_tokens_ms(other, prompts, never, size.answers)
            with rebuilding(client) as goes_on:
                busy = noop_ms(other, goes_on, size.samples // 4)
            settle(client)
            with rebuilding(client) as goes_on:
                busy_answers = first_tokens_ms(other, prompts, goes_on, size.answers // 4)
            measured = facts(client)
    values = {
        "isolation.stall_p99_ms": [round(p99(busy) / p99(idle), 3)],
        "isolation.generate_ttft": [round(median(busy_answers) / median(idle_answers), 3)],
    }
    measured |= {
        "pages": size.pages,
        "no_op_p50_p99_ms": {
            name: [len(times), round(median(times), 3), round(p99(times), 3)]
            for name, times in (("idle", idle), ("rebuilding", busy))
        },
        "first_token_p50_ms": {
            name: [len(times), round(median(times), 2)]
            for name, times in (("idle", idle_answers), ("rebuilding", busy_answers))
        },
    }
    return Take(values, measured)


SUITE = Suite("isolation", BARS, take)
