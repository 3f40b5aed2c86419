"""The options that all local engines have: checks, defaults for this machine, free memory."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Option

from .gguf import Header

BLOCK_TOKENS = 256  # windows are multiples of this; llama.cpp rounds each slot's cells up to it
NICE = 5
_SPARE_BYTES = 256 * 1024 * 1024  # buffers of a step, vocabulary, interpreter
_MEGA = 1024 * 1024


@dataclass(frozen=True, slots=True)
class NumberOption:
    """An option that is a number from `low` to `high`."""

    low: float
    high: float
    whole: bool = True


Allowed = Mapping[str, NumberOption | None]  # None: true or false
OPTIONS: Allowed = {
    "slots": NumberOption(1, limits.SLOTS_MAX),  # sequences resident at once
    "width": NumberOption(1, limits.SLOTS_MAX),  # sequences in one step; default: slots
    "window": NumberOption(BLOCK_TOKENS, limits.WINDOW_MAX),  # tokens a slot
    "threads": NumberOption(1, 512),  # default: the cores that other programs leave
    "deterministic": None,  # results do not depend on other calls
    "chunk_s": NumberOption(0, 60, whole=False),  # limit of a step with decoding calls; 0: none
    "batch": NumberOption(32, 8192),  # maximum tokens of a step
    # A step that takes longer, without the time that it waits for a processor: the child is killed.
    "hang_s": NumberOption(0.1, 86_400, whole=False),
    # Saved contexts of parked calls; contexts beyond that are recomputed.
    "parked_bytes": NumberOption(0, 2**50),
    "nice": NumberOption(0, 19),  # of the computing threads
}


def check(options: Mapping[str, Option], allowed: Allowed) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    for name, value in options.items():
        if name not in allowed:
            known = ", ".join(sorted(allowed))
            raise SyscallError(Errno.EINVAL, f"unknown option {name!r}", f"the options are {known}")
        if not _fits(value, allowed[name]):
            message = f"invalid value {value!r} for option {name}"
            raise SyscallError(Errno.EINVAL, message, f"{name} takes {_range_text(allowed[name])}")
    slots, width = int(options.get("slots", limits.SLOTS)), int(options.get("width", 1))
    if width > slots:
        message = f"option width is {width}, more than the {slots} slots"
        raise SyscallError(Errno.EINVAL, message, "reduce width or increase slots")


def _fits(value: Option, allowed: NumberOption | None) -> bool:
    if allowed is None or isinstance(value, bool):
        return allowed is None and isinstance(value, bool)
    if not isinstance(value, (int if allowed.whole else (int, float))):
        return False
    return allowed.low <= value <= allowed.high


def _range_text(allowed: NumberOption | None) -> str:
    if allowed is None:
        return "true or false"
    kind = "a whole number" if allowed.whole else "a number"
    return f"{kind} from {allowed.low:g} to {allowed.high:g}"


def settings(path: Path, header: Header, options: Mapping[str, Option]) -> dict[str, Any]:
    """The fields of EngineSettings: the given options, and defaults for this machine.

    EINVAL for a window that the model was not trained for.
    """
    slots = int(options.get("slots", limits.SLOTS))
    window = int(options.get("window", min(limits.WINDOW_TOKENS, header.facts.context)))
    if window > header.facts.context:
        trained = header.facts.context
        message = f"the window is {window} tokens, this model was trained for {trained}"
        fits = trained >= BLOCK_TOKENS  # the option takes no smaller number; the default may be
        option = f"with --set window={trained}" if fits else "without the option window"
        raise SyscallError(Errno.EINVAL, message, f"mount it {option}")
    return {
        "path": str(path.resolve()),
        "slots": slots,
        "width": int(options.get("width", slots)),
        "window": min(cells(window), header.facts.context),
        "threads": int(options.get("threads", cores())),
        "adaptive": "threads" not in options and not options.get("deterministic", False),
        "deterministic": bool(options.get("deterministic", False)),
        "chunk_s": float(options.get("chunk_s", limits.CHUNK_S)),
        "batch": int(options.get("batch", limits.BATCH_TOKENS)),
        "hang_s": float(options.get("hang_s", limits.HANG_S)),
        "parked_bytes": int(options.get("parked_bytes", limits.PARKED_BYTES)),
        "nice": int(options.get("nice", NICE)),
    }


def cells(window: int) -> int:
    """The KV cells of a slot."""
    return -(-window // BLOCK_TOKENS) * BLOCK_TOKENS


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_memory(weights: int, context: int, what: str, less: str) -> None:
    """ENOMEM with the numbers when the weights and the context, in bytes, do not fit.

    `what`: the size of the context, `less`: the options that make it smaller, both for the message.
    """
    free = available_bytes()
    needed = weights + context + _SPARE_BYTES
    if free is not None and needed > free:
        raise SyscallError(
            Errno.ENOMEM,
            f"{needed // _MEGA} MB are needed ({weights // _MEGA} MB of weights, "
            f"{context // _MEGA} MB for {what}), "
            f"{free // _MEGA} MB are free",
            f"mount it with {less}",
        )


def available_bytes() -> int | None:
    """Free memory; None where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None  # not Linux: the load fails if memory is short
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
