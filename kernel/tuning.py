"""Requantised files: made on request, and once for a model that came with the installation.

Answers what is being made, and what people are told of it. How it is done is the driver's to know,
which file is used then is `image.py`'s. One at a time of each image; what is made for everybody who
waits is nobody's to cancel.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from . import limits
from .driver import Driver, Tuning
from .errors import Errno, SyscallError
from .image import Image, Images
from .supervisor import Supervisor
from .values import ImageTune, Progress, Quality, Tuned

log = logging.getLogger(__name__)
Tell = Callable[[Progress], None]
_MEGA = 1_000_000


@dataclass(slots=True)
class Job:
    """One file that is being made."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ears: list[Tell] = field(default_factory=list[Tell])

    def tell(self, progress: Progress) -> None:
        for ear in self.ears:
            ear(progress)


class Tuner:
    """What is made of images. `automatic`: at the first use of those that are built in, too."""

    def __init__(
        self, images: Images, drivers: Mapping[str, Driver], jobs: Supervisor, *, automatic: bool
    ) -> None:
        self._images, self._drivers, self._supervisor = images, drivers, jobs
        self._automatic = automatic
        self._jobs: dict[str, Job] = {}  # by image
        self._notices: dict[str, str] = {}  # by image
        self._heard: set[str] = set()  # images whose notice a connection has had
        self.complaints: dict[str, str] = {}  # by image: why it is used as it was shipped

    async def tune(self, image: Image, request: ImageTune, log: Path, tell: Tell) -> Tuned:
        """Make the file and use it from the next mount on. EBUSY while that is being done."""
        if not image.path.name:
            words = f"{image.name} has no file that could be tuned"
            raise SyscallError(Errno.ENOTSUP, words, "`llmasos models list` shows which have one")
        if image.name in self._jobs:
            hint = "wait for it: `llmasos models show` tells when it is done"
            raise SyscallError(Errno.EBUSY, f"{image.name} is being tuned already", hint)
        job = self._jobs[image.name] = Job(ears=[tell])
        try:
            return await self._make(image, request, log, job)
        finally:
            del self._jobs[image.name]
            job.ended.set()

    async def _make(self, image: Image, request: ImageTune, log: Path, job: Job) -> Tuned:
        wanted = request.quantisation
        if await self._images.quantisation(image) == wanted:
            words = f"{image.name} is {wanted} as it came: its file is used as it is"
            raise SyscallError(Errno.EINVAL, words, "`--small` and `--to` choose another")
        target = await self._images.target(image, wanted)
        driver = self._drivers[image.driver]
        before, after = await driver.tune(
            Tuning(image.path, target, wanted, request.measure, log), job.tell
        )
        await self._images.use(image, target, wanted)
        self.complaints.pop(image.name, None)
        return Tuned(image.name, str(target), before, after)

    async def untune(self, image: Image) -> Tuned:
        """Use the original again, and delete what was made. EBUSY while something is made."""
        if image.name in self._jobs:
            raise SyscallError(Errno.EBUSY, f"{image.name} is being tuned", "wait for it")
        before = await self._images.quality(image)
        await self._images.use(image, Path(), "")
        return Tuned(image.name, str(image.path), before, await self._images.quality(image))

    # --- the first use of a model that is built in ------------------------------------------------
    def due(self, image: Image) -> bool:
        return (
            self._automatic and image.builtin and bool(image.path.name) and not image.is_decided()
        )

    async def prepare(self, image: Image, log: Path, tell: Tell | None) -> None:
        """Before a mount: what its first use makes. When that fails, the shipped file is used."""
        if not self.due(image):
            return
        if image.name not in self._jobs:
            self._jobs[image.name] = Job()
            failed = partial(self._gave_up, image, "see `llmasos daemon logs`")
            self._supervisor.once("tune", self._first, image, log, failed=failed)
        job = self._jobs[image.name]
        if tell is not None:
            job.ears.append(tell)
        try:
            await job.ended.wait()
        finally:
            if tell is not None:
                job.ears.remove(tell)

    async def _first(self, image: Image, to: Path) -> None:
        name, begin = image.name, time.monotonic()
        request = ImageTune(name, measure=False)
        job = self._jobs[name]
        try:
            target = await self._images.target(image, request.quantisation)
            there = target.exists()
            if there:
                self._notices.pop(name, None)
            else:
                self._notices[name] = self._going(image, request)
            async with asyncio.timeout(limits.READY_S):
                made = await self._make(image, request, to, job)
            if not there:
                self._done(made.after, image, time.monotonic() - begin)
        except (SyscallError, OSError) as error:
            self._gave_up(image, _words(error))
        finally:
            del self._jobs[name]
            job.ended.set()

    def _gave_up(self, image: Image, why: str) -> None:
        self._notices.pop(image.name, None)
        self.complaints[image.name] = f"used as it was shipped, tuning it failed: {why}"
        log.warning("%s is %s", image.name, self.complaints[image.name])

    def _going(self, image: Image, request: ImageTune) -> str:
        return (
            f"{image.name} is made ready for this machine, once and in seconds: "
            f"{request.quantisation} in {self._images.cache}; "
            f"`llmasos models tune {image.name}` tells more"
        )

    def _done(self, made: Quality, image: Image, seconds: float) -> None:
        words = (
            f"{image.name} was made ready for this machine, once: {made.quantisation}, "
            f"{made.bytes / _MEGA:.0f} MB in {self._images.cache}, {seconds:.1f} s; "
            f"`llmasos models tune {image.name}` tells more"
        )
        log.info("%s", words)
        if image.name in self._heard:
            del self._notices[image.name]
        else:
            self._notices[image.name] = words

    # --- what connections are told ----------------------------------------------------------------
    def expect(self, image: Image) -> None:
        """Before the door opens: whoever is first hears of it, even if nothing has begun yet."""
        request = ImageTune(image.name)
        if self.due(image) and not self._images.has_any(request.quantisation):
            self._notices[image.name] = self._going(image, request)

    def hear(self) -> list[str]:
        """What a new connection is told: what is going on, or has been and nobody heard yet."""
        told = list(self._notices.values())
        self._heard |= self._notices.keys()
        self._notices = {n: text for n, text in self._notices.items() if n in self._jobs}
        return told


def _words(error: SyscallError | OSError) -> str:
    if isinstance(error, SyscallError):
        return error.message
    return str(error) or f"it took over {limits.READY_S:g} s"
