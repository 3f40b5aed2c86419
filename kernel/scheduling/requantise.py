"""Requantised files: made on request, and once for a built-in model at its first use.

Owns the jobs that make them and the notices about these jobs. The driver does the work; images.py
chooses the file to mount. One job at a time for each image. Cancelling a call that waits for the
job of a first use does not cancel that job.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import ImageTune, Progress, TuneCandidate, Tuned
from ..driver import Driver, Option, Tuning
from ..supervisor import Supervisor
from .images import Image, ImageRegistry

log = logging.getLogger(__name__)
Report = Callable[[Progress], None]
_MEGA = 1_000_000
_UNMEASURED = "Q8_0"  # the quantisation when nothing is measured: it loses next to nothing


@dataclass(frozen=True, slots=True)
class TuneSetting:
    """What a driver gets for an image that is tuned."""

    log: Path
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])  # of its next mount
    cache: Path | None = None  # directory of what the driver measures


@dataclass(slots=True)
class RequantiseJob:
    """One file that is being made."""

    first_use: bool = False  # nobody requested it
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: list[Report] = field(default_factory=list[Report])

    def report(self, progress: Progress) -> None:
        for listener in self.listeners:
            listener(progress)

    async def follow(self, report: Report | None) -> None:
        """Wait until it has ended."""
        if report is not None:
            self.listeners.append(report)
        try:
            await self.ended.wait()
        finally:
            if report is not None:
                self.listeners.remove(report)


class Requantiser:
    """Makes requantised files. `automatic`: also at the first use of built-in images."""

    def __init__(
        self,
        images: ImageRegistry,
        drivers: Mapping[str, Driver],
        jobs: Supervisor,
        *,
        automatic: bool,
    ) -> None:
        self._images, self._drivers, self._supervisor = images, drivers, jobs
        self._automatic = automatic
        self._jobs: dict[str, RequantiseJob] = {}  # by image
        self._notices: dict[str, str] = {}  # by image
        self._reported: set[str] = set()  # images whose notice was sent to a connection
        self.failures: dict[str, str] = {}  # by image: why its shipped file is used

    async def tune(
        self, image: Image, request: ImageTune, setting: TuneSetting, report: Report
    ) -> Tuned:
        """Make the file and use it from the next mount on. EBUSY while another call does.

        It waits for the job of a first use.
        """
        if not image.path.name:
            message = f"{image.name} has no file to tune"
            raise SyscallError(
                Errno.ENOTSUP, message, "`llmasos models list` lists the models with a file"
            )
        if (first := self._jobs.get(image.name)) is not None and first.first_use:
            await first.follow(report)
        if image.name in self._jobs:
            hint = f"wait until it is done: `llmasos models show {image.name}` shows the result"
            raise SyscallError(Errno.EBUSY, f"{image.name} is being tuned already", hint)
        job = self._jobs[image.name] = RequantiseJob(listeners=[report])
        try:
            return await self._make(image, request, setting, job)
        finally:
            del self._jobs[image.name]
            job.ended.set()

    async def _make(
        self, image: Image, request: ImageTune, setting: TuneSetting, job: RequantiseJob
    ) -> Tuned:
        wanted = request.quantisation or ("" if request.measure else _UNMEASURED)
        if wanted and await self._images.quantisation(image) == wanted:
            message = f"the file of {image.name} is already {wanted}: there is nothing to tune"
            raise SyscallError(
                Errno.EINVAL, message, "`--small` and `--to` choose another quantisation"
            )
        tuning = Tuning(
            image.path, self._images.cache, await self._images.stem(image), wanted,
            request.measure, setting.log, setting.options, setting.cache,
        )  # fmt: skip
        rows = list(await self._drivers[image.driver].tune(tuning, job.report))
        chosen = _chosen(rows)
        path = tuning.target(chosen.quantisation) if chosen.made_from else Path()
        await self._images.use(image, path, chosen.quantisation, rows if request.measure else ())
        self.failures.pop(image.name, None)
        return Tuned(image.name, str(path if path.name else image.path), rows)

    def is_tuning(self, name: str) -> bool:
        """Whether an image is being tuned."""
        return name in self._jobs

    async def untune(self, image: Image) -> Tuned:
        """Use the original again, and delete the requantised file. EBUSY while a job is running."""
        if image.name in self._jobs:
            hint = "wait until it is done"
            raise SyscallError(Errno.EBUSY, f"{image.name} is being tuned", hint)
        before = image.requantised
        await self._images.use(image, Path(), "")
        await self._images.discard(image, before)
        info = await self._images.info(image)
        row = TuneCandidate(info.quantisation, info.bytes, chosen=True, why="as requested")
        return Tuned(image.name, str(image.path), [row])

    # --- the first use of a built-in model --------------------------------------------------------
    def due(self, image: Image) -> bool:
        return (
            self._automatic and image.builtin and bool(image.path.name) and not image.is_decided()
        )

    async def prepare(self, image: Image, log: Path, report: Report | None) -> None:
        """Make the file before the first mount; returns at once when nothing is to be made.

        When that fails, the shipped file is used.
        """
        if not self.due(image):
            return
        if image.name not in self._jobs:
            self._jobs[image.name] = RequantiseJob(first_use=True)
            failed = partial(self._note_failure, image, "see `llmasos daemon logs`")
            self._supervisor.once("tune", self._tune_first, image, log, failed=failed)
        await self._jobs[image.name].follow(report)

    async def _tune_first(self, image: Image, log_path: Path) -> None:
        name, begin = image.name, time.monotonic()
        job = self._jobs[name]
        try:
            existed = (await self._images.target(image, _UNMEASURED)).exists()
            if existed:
                self._notices.pop(name, None)
            else:
                self._notices[name] = self._running_notice(image)
            async with asyncio.timeout(limits.READY_S):
                request, setting = ImageTune(name, measure=False), TuneSetting(log_path)
                made = await self._make(image, request, setting, job)
            if not existed:
                self._note_done(_chosen(made.candidates), image, time.monotonic() - begin)
        except (SyscallError, OSError) as error:
            self._note_failure(image, _message(error))
        finally:
            del self._jobs[name]
            job.ended.set()

    def _note_failure(self, image: Image, reason: str) -> None:
        self._notices.pop(image.name, None)
        self.failures[image.name] = f"not tuned, its shipped file is used: {reason}"
        log.warning("%s: %s", image.name, self.failures[image.name])

    def _running_notice(self, image: Image) -> str:
        return (
            f"{image.name} is being tuned for this machine, once, which takes seconds: "
            f"{_UNMEASURED} in {self._images.cache}; "
            "`llmasos models tune --help` explains it"
        )

    def _note_done(self, made: TuneCandidate, image: Image, seconds: float) -> None:
        notice = (
            f"{image.name} was tuned for this machine, once: {made.quantisation}, "
            f"{made.bytes / _MEGA:.0f} MB in {self._images.cache}, {seconds:.1f} s; "
            "`llmasos models tune --help` explains it"
        )
        log.info("%s", notice)
        if image.name in self._reported:
            del self._notices[image.name]
        else:
            self._notices[image.name] = notice

    # --- notices for connections ------------------------------------------------------------------
    def expect(self, image: Image) -> None:
        """Before the listeners open: make the notice that the first connection receives."""
        if self.due(image) and not self._images.has_any(_UNMEASURED):
            self._notices[image.name] = self._running_notice(image)

    def take_notices(self) -> list[str]:
        """The notices for a new connection: jobs that run, or have ended and were not reported."""
        notices = list(self._notices.values())
        self._reported |= self._notices.keys()
        self._notices = {n: text for n, text in self._notices.items() if n in self._jobs}
        return notices


def _chosen(rows: Sequence[TuneCandidate]) -> TuneCandidate:
    return next(row for row in rows if row.chosen)


def _message(error: SyscallError | OSError) -> str:
    if isinstance(error, SyscallError):
        return error.message
    return str(error) or f"it took longer than {limits.READY_S:g} s"
