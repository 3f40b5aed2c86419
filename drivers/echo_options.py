"""The options of the echo engine, and their check."""

from collections.abc import Mapping

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Option

_WHOLE, _REAL, _TEXT = (int,), (int, float), (str,)
# Types, and the range of a number or of the length of a text in characters.
_OPTIONS: dict[str, tuple[tuple[type, ...], float, float]] = {
    "slots": (_WHOLE, 1, limits.SLOTS_MAX),  # sequences resident at once
    "width": (_WHOLE, 1, limits.SLOTS_MAX),  # sequences in one step
    "window": (_WHOLE, 16, limits.WINDOW_MAX),  # tokens a slot
    "rate": (_REAL, 0, 100_000),  # steps a second; 0: no limit
    "die_after": (_WHOLE, 0, 10**9),  # crashes once after so many answer tokens; 0: never
    "hang_after": (_WHOLE, 0, 10**9),  # hangs after so many answer tokens; 0: never
    "poison": (_TEXT, 1, 256),  # crashes when it begins to answer a prompt that contains this
    "parked_bytes": (_WHOLE, 0, 2**50),  # contexts of parked calls: TOKEN_BYTES a token
    "kept_bytes": (_WHOLE, 0, 2**50),  # the same, of idle processes
    "load_s": (_REAL, 0, 3600),  # duration of the load
    "memory": (_WHOLE, 0, 10**6),  # MB, simulated
    "seed": (_WHOLE, 0, limits.SEED_MAX),  # combined with the seed of each call
}


def check_options(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    for name, value in options.items():
        if name not in _OPTIONS:
            known = ", ".join(sorted(_OPTIONS))
            raise SyscallError(Errno.EINVAL, f"unknown option {name!r}", f"the options are {known}")
        kinds, low, high = _OPTIONS[name]
        size = len(value) if isinstance(value, str) else value
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= size <= high:
            kind = "a text of" if kinds == _TEXT else "a number from"
            unit = " characters" if kinds == _TEXT else ""
            hint = f"{name} takes {kind} {low:g} to {high:g}{unit}"
            raise SyscallError(Errno.EINVAL, f"invalid value {value!r} for option {name}", hint)
    slots, width = int(options.get("slots", limits.SLOTS)), int(options.get("width", 1))
    if width > slots:
        message = f"option width is {width}, more than the {slots} slots"
        raise SyscallError(Errno.EINVAL, message, "reduce width or increase slots")
