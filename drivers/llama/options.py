"""How a model is mounted: options checked, defaults chosen for this machine, memory counted."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmasos.kernel import limits
from llmasos.kernel.driver import Option
from llmasos.kernel.errors import Errno, SyscallError

from .frames import Settings
from .gguf import Header

_BLOCK_TOKENS = 256  # llama.cpp rounds each slot's cells up to this
_SPARE_BYTES = 256 * 1024 * 1024  # buffers of a step, vocabulary, interpreter
NICE = 5
# libgomp's threads wait for each other by spinning 300,000 times, which is nothing when the cores
# are theirs and everything when one is not: beside one busy program a step took 40 times as long.
# This costs a quiet machine 1 % and makes a shared one 9 times faster.
SPIN = {"GOMP_SPINCOUNT": "1000"}


@dataclass(frozen=True, slots=True)
class Number:
    """An option that is a number from `low` to `high`."""

    low: float
    high: float
    whole: bool = True


OPTIONS: dict[str, Number | None] = {  # None: true or false
    "slots": Number(1, limits.SLOTS_MAX),  # sequences resident at once
    "width": Number(1, limits.SLOTS_MAX),  # sequences in one step; as many as slots
    "window": Number(_BLOCK_TOKENS, limits.WINDOW_MAX),  # tokens a slot
    "threads": Number(1, 512),  # as many as there are cores that others leave
    "flash": None,  # flash attention
    "unified": None,  # one pool of cells for all slots
    "deterministic": None,  # what runs beside a call changes nothing in it
    "chunk_s": Number(0, 60, whole=False),  # a step with answers takes no longer; 0: no limit
    "batch": Number(32, 8192),  # tokens of one step when nobody answers
    "gpu_layers": Number(-1, 10_000),  # -1: as many as fit a GPU, if there is one
    "hang_s": Number(0.1, 86_400, whole=False),  # work without a step for this long: killed
    "parked_bytes": Number(0, 2**50),  # saved contexts of stopped calls; more are computed again
    "nice": Number(0, 19),  # of the computing threads
}


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    for name, value in options.items():
        if name not in OPTIONS:
            known = ", ".join(sorted(OPTIONS))
            raise SyscallError(Errno.EINVAL, f"unknown option {name!r}", f"known: {known}")
        allowed = OPTIONS[name]
        if not _fits(value, allowed):
            raise SyscallError(Errno.EINVAL, f"option {name} is {value!r}", _words(allowed))
    slots, width = int(options.get("slots", limits.SLOTS)), int(options.get("width", 1))
    if width > slots:
        words = f"option width is {width}, over the {slots} slots"
        raise SyscallError(Errno.EINVAL, words, "give fewer width or more slots")
    for name in ("flash", "unified"):
        if options.get("deterministic") and name in options:
            words = f"a deterministic engine chooses {name} so that company changes nothing"
            raise SyscallError(Errno.EINVAL, words, f"leave {name} out, or deterministic")


def _fits(value: Option, allowed: Number | None) -> bool:
    if allowed is None or isinstance(value, bool):
        return allowed is None and isinstance(value, bool)
    if not isinstance(value, (int if allowed.whole else (int, float))):
        return False
    return allowed.low <= value <= allowed.high


def _words(allowed: Number | None) -> str:
    if allowed is None:
        return "true or false is allowed"
    kind = "a whole number" if allowed.whole else "a number"
    return f"{kind} from {allowed.low:g} to {allowed.high:g} is allowed"


def settings(path: Path, header: Header, options: Mapping[str, Option]) -> Settings:
    """Every option, chosen by the caller or for this machine."""
    check(options)
    slots = int(options.get("slots", limits.SLOTS))
    window = int(options.get("window", min(limits.WINDOW_TOKENS, header.facts.context)))
    if window > header.facts.context:
        words = f"a window of {window} tokens, this model was made for {header.facts.context}"
        raise SyscallError(Errno.EINVAL, words, "mount it with a smaller window")
    return Settings(
        path=str(path.resolve()),
        slots=slots,
        width=int(options.get("width", slots)),
        window=min(_cells(window), header.facts.context),
        threads=int(options.get("threads", cores())),
        adaptive="threads" not in options and not options.get("deterministic", False),
        flash=bool(options.get("flash", True)),
        unified=bool(options.get("unified", False)),
        deterministic=bool(options.get("deterministic", False)),
        chunk_s=float(options.get("chunk_s", limits.CHUNK_S)),
        batch=int(options.get("batch", limits.BATCH_TOKENS)),
        gpu_layers=int(options.get("gpu_layers", -1)),
        hang_s=float(options.get("hang_s", limits.HANG_S)),
        parked_bytes=int(options.get("parked_bytes", limits.PARKED_BYTES)),
        nice=int(options.get("nice", NICE)),
    )


def _cells(window: int) -> int:
    return -(-window // _BLOCK_TOKENS) * _BLOCK_TOKENS


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_memory(chosen: Settings, header: Header) -> None:
    """ENOMEM with the numbers when the model and its slots do not fit."""
    free = available_bytes()
    context = chosen.slots * _cells(chosen.window) * header.cell_bytes
    needed = header.facts.bytes + context + _SPARE_BYTES
    if free is not None and needed > free:
        mega = 1024 * 1024
        raise SyscallError(
            Errno.ENOMEM,
            f"{needed // mega} MB are needed ({header.facts.bytes // mega} MB of model, "
            f"{context // mega} MB for {chosen.slots} slots of {chosen.window} tokens), "
            f"{free // mega} MB are free",
            "mount it with fewer slots or a smaller window",
        )


def available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None  # not Linux: the load itself will tell
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
