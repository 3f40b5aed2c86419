"""How the last run on a state directory ended: a file that names the run until it has ended.

A run that is stopped writes why. One that is killed, crashes, or loses its power cannot, and the
next one finds its file as it was begun. Standard library only: the command line reads it, too.
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
class Run:
    """A run of the daemon, as it stands in the file."""

    pid: int
    boot: str  # of the operating system
    started: float  # Unix seconds
    ended: float = 0.0  # 0: it runs, or could not say
    why: str = ""  # it ended


def begin(state: Path) -> tuple[Run, str]:
    """Name this run in the file. It, and how the last one ended; empty when there was none."""
    before = previous(state)
    run = Run(os.getpid(), _boot(), time.time())
    _write(state, run)
    return run, before


def end(state: Path, run: Run) -> None:
    """This run ends by itself, and says why."""
    run.ended = time.time()
    _write(state, run)


def stopped_by(number: int) -> str:
    """Why a run ends that was sent a signal."""
    return f"was stopped by {signal.Signals(number).name}"


def failed(error: BaseException) -> str:
    """Why a run ends that cannot go on: the type of the error, and no text that it may quote."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return f"failed with {type(error).__name__}"


def previous(state: Path) -> str:
    """How the run that the file names ended, in words; empty: it names none."""
    run = _read(state)
    if run is None:
        return ""
    if run.ended:
        return f"{run.why} at {_stamp(run.ended)}"
    since = f"(pid {run.pid}, started at {_stamp(run.started)})"
    if run.boot != _boot():
        return f"ended with the system: a loss of power, a crash or a reboot {since}"
    return f"was killed or crashed {since}"


def pid(state: Path) -> int:
    """Of the run that the file names; 0: it names none."""
    run = _read(state)
    return run.pid if run is not None else 0


def is_clean(words: str) -> bool:
    """Whether a run that ended so was stopped."""
    return words.startswith("was stopped") or not words


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _read(state: Path) -> Run | None:
    """None: there is no file, or a loss of power took its contents."""
    try:
        fields: Mapping[str, str] = json.loads((state / NAME).read_text(encoding="utf-8"))
        return Run(
            int(fields["pid"]), str(fields["boot"]), float(fields["started"]),
            float(fields["ended"]), str(fields["why"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(state: Path, run: Run) -> None:
    """Whole or not at all. A machine on a full disk starts without it."""
    draft = state / f".{NAME}"
    try:
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(run)), encoding="utf-8")
        draft.replace(state / NAME)
    except OSError as error:
        log.warning("how this run ends will not be known: %s", error)
