"""How the last run of the daemon on a state directory ended, from a file written by that run.

A run that stops normally records the reason. One that is killed, crashes or loses power cannot, so
the next run finds no end in the file. Standard library only: the command line reads it, too.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

log = logging.getLogger(__name__)
NAME = "run.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class LastRun:
    """A run of the daemon, as stored in the file."""

    pid: int
    boot: str  # boot id of the operating system
    started: float  # Unix seconds
    ended: float = 0.0  # 0: it runs, or it could not record its end
    why: str = ""  # it ended


def begin(state: Path) -> tuple[LastRun, str]:
    """Record this run. Returns it, and how the last run ended; empty when there was none."""
    before = previous(state)
    run = LastRun(os.getpid(), _boot(), time.time())
    _write(state, run)
    return run, before


def end(state: Path, run: LastRun) -> None:
    """Record the normal end of this run; `run.why` is the reason."""
    run.ended = time.time()
    _write(state, run)


def stopped_by(number: int) -> str:
    """The reason of a run that ends by a signal."""
    return f"was stopped by {signal.Signals(number).name}"


def failed(error: BaseException) -> str:
    """The reason of a run that fails: the type of the error, as its text may quote user data."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return f"failed with {type(error).__name__}"


def previous(state: Path) -> str:
    """How the run in the file ended; empty when there is none."""
    run = _read(state)
    if run is None:
        return ""
    if run.ended:
        return f"{run.why} at {_stamp(run.ended)}"
    since = f"(pid {run.pid}, started at {_stamp(run.started)})"
    if run.boot != _boot():
        return f"ended with the system: a power loss, a crash or a reboot {since}"
    return f"was killed or crashed {since}"


def pid(state: Path) -> int:
    """The pid of the run in the file; 0 when there is none."""
    run = _read(state)
    return run.pid if run is not None else 0


def is_clean(reason: str) -> bool:
    """Whether the last run was stopped normally, or there was none."""
    return reason.startswith("was stopped") or not reason


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _read(state: Path) -> LastRun | None:
    """None: there is no file, or its contents were lost in a power cut."""
    try:
        fields: Mapping[str, str] = json.loads((state / NAME).read_text(encoding="utf-8"))
        return LastRun(
            int(fields["pid"]), str(fields["boot"]), float(fields["started"]),
            float(fields["ended"]), str(fields["why"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(state: Path, run: LastRun) -> None:
    """Replace the file atomically. Failure is not fatal: a machine may start on a full disk."""
    draft = state / f".{NAME}"
    try:
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(run)), encoding="utf-8")
        draft.replace(state / NAME)
    except OSError as error:
        log.warning("cannot record how this run ends: %s", error)
