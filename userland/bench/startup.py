"""The cost of starting: the command, the daemon, the first token.

Whole processes, as a user starts them, with warm disk caches (one start before the measurement).
The daemon counts as ready when it answers a tokenize: then its engine runs too. The one-time tuning
of the embedded model is not included.
"""

import subprocess
import time

from llmasos.kernel.abi import values as v

from .figures import Bar, Suite, Take
from .rig import MODEL, Rig, RigError, command, daemon, seconds_of

BARS = (
    Bar("startup.ps_ms", "`llmasos ps`, whole process", "ms", "lower", 100),
    Bar("startup.help_ms", "`llmasos --help`, whole process", "ms", "lower", 80),
    Bar("startup.daemon_s", "start of the daemon until the engine answers", "s", "lower", 5),
    Bar("startup.first_token_s", '`llmasos run "hi"` to the first token, warm daemon', "s",
        "lower", 1.0),
)  # fmt: skip


def up_s() -> tuple[float, str]:
    """Seconds from the start of a daemon to a tokenized word, and the model's digest."""
    begun = time.perf_counter()
    with daemon(tune=False) as rig, rig.client() as client:
        client.call("tokenize", v.Tokenize(MODEL, "ready"), v.Tokens)
        return time.perf_counter() - begun, rig.digest()


def first_token_s(rig: Rig) -> float:
    """Seconds from the start of the program to the first byte of its answer."""
    line = [*command(), "run", "hi", "--max-tokens", "8"]
    begun = time.perf_counter()
    with subprocess.Popen(
        line, env=rig.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        first = child.stdout.read(1)
        took = time.perf_counter() - begun
        _out, output = child.communicate()
    if child.returncode or not first:
        raise RigError(f"llmasos run exited with {child.returncode}: {output.decode().strip()}")
    return took


def take(tiny: bool) -> Take:
    repeats = 1 if tiny else 7
    starts = 1 if tiny else 3
    up, digests = zip(*(up_s() for _ in range(starts)), strict=True)
    values: dict[str, list[float]] = {bar.id: [] for bar in BARS}
    values["startup.daemon_s"] += [round(seconds, 3) for seconds in up]
    with daemon() as rig:
        first_token_s(rig)
        for line in ("ps", "--help"):
            seconds_of([*command(), line], rig.environment)
        for _ in range(repeats):
            ps = seconds_of([*command(), "ps"], rig.environment)
            usage = seconds_of([*command(), "--help"], rig.environment)
            values["startup.ps_ms"].append(round(1000 * ps, 1))
            values["startup.help_ms"].append(round(1000 * usage, 1))
            values["startup.first_token_s"].append(round(first_token_s(rig), 3))
    return Take(values, {"model": digests[0]})


SUITE = Suite("startup", BARS, take)
