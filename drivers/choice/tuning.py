"""Requantises a file in child processes and measures the results, on the kernel's side.

Each candidate is made in a workspace (drivers/llama/workspace.py), measured on the engine that
computes it, and removed again unless it is the best so far. Only the chosen one gets its name in
the cache, so there is a whole file or none, whichever process ends. Every candidate is made of the
original file, never of one that was requantised. This module loads no engine.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from llmasos.drivers.llama import task_process
from llmasos.drivers.llama.workspace import workspace
from llmasos.drivers.local import gguf
from llmasos.drivers.local.quantisation import OFFERED
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Progress, TuneCandidate
from llmasos.kernel.driver import Tuning

from . import candidates, measurement
from .comparison import EngineComparison, EngineRates, verdict
from .measurement import MeasuredFile

Report = Callable[[Progress], None]
LLAMA, OPENVINO = "llama", "openvino"
_TEXT = Path(task_process.__file__).with_name("passage.txt")


@dataclass(frozen=True, slots=True)
class TuneEngines:
    """The engines that may compute the file when it is mounted, and how."""

    names: Sequence[str]  # of LLAMA and OPENVINO
    threads: int
    slots: int


async def convert(path: Path, target: Path, wanted: str, log: Path, report: Report) -> None:
    """Requantise one file. EINVAL, ENOSPC, EIO; then there is no target."""
    _check(wanted)
    module = "llmasos.drivers.llama.requantise"
    await task_process.run(module, [str(path), str(target), wanted], log, report)


def _check(wanted: str) -> None:
    """EINVAL for a quantisation that files cannot be converted to."""
    if wanted not in OFFERED:
        message = f"cannot convert a file to {wanted!r}"
        raise SyscallError(Errno.EINVAL, message, f"the quantisations are {', '.join(OFFERED)}")


async def tune(request: Tuning, engines: TuneEngines, report: Report) -> Sequence[TuneCandidate]:
    """As Driver.tune. When cancelled, it ends its child and removes its files first."""
    if request.measure and find_spec("llama_cpp") is None:
        message = "llama.cpp is not installed: without it no loss is measured"
        raise SyscallError(Errno.ENOTSUP, message, "`--no-measure` makes the file only")
    facts = (await asyncio.to_thread(gguf.read, request.path)).facts
    original = TuneCandidate(facts.quantisation or "unknown", facts.bytes)
    if request.quantisation:
        _check(request.quantisation)  # before anything is measured
        names = [request.quantisation]
    else:
        names = candidates.offered(original.quantisation, measurement.processor()[1].split())
    async with workspace(request.folder) as folder:
        job = _TuneJob(request, engines, folder, report, [original, *map(TuneCandidate, names)])
        rows = await job.run()
        [best] = (row for row in rows if row.chosen)
        if best.made_from:
            keeping = asyncio.to_thread(_keep, job.path_of(best), request, best)
            await task_process.finished(keeping)
    return rows


def _keep(path: Path, request: Tuning, row: TuneCandidate) -> None:
    """Give a file its name in the cache, durably."""
    target = request.target(row.quantisation)
    if path != target:
        path.rename(target)
        fd = os.open(target.parent, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class _TuneJob:
    """The candidates of one file, made and measured one after the other."""

    def __init__(
        self,
        request: Tuning,
        engines: TuneEngines,
        folder: Path,
        report: Report,
        rows: Sequence[TuneCandidate],
    ) -> None:
        self._request, self._engines, self._folder = request, engines, folder
        self._report, self._rows = report, list(rows)
        self._paths: dict[str, Path] = {}  # of the files that exist, by quantisation
        self._failures: list[SyscallError] = []

    def path_of(self, row: TuneCandidate) -> Path:
        return self._paths[row.quantisation]

    async def run(self) -> list[TuneCandidate]:
        """The rows with figures and the choice. The error of a requested quantisation, or when
        all of them failed, the first one.
        """
        original, names = self._rows[0], [row.quantisation for row in self._rows[1:]]
        self._paths[original.quantisation] = self._request.path
        rows = [await self._original(original)]
        for number, name in enumerate(names, 1):
            place = f"{name} ({number} of {len(names)})" if len(names) > 1 else name
            try:
                rows.append(await self._made(name, rows[0], place))
            except SyscallError as error:
                if self._request.quantisation:
                    raise
                self._failures.append(error)
                rows.append(TuneCandidate(name, made_from=original.quantisation, why=error.message))
            rows = self._decided(rows)
            await asyncio.to_thread(self._remove_others, rows)
        if names and len(self._failures) == len(names):
            raise self._failures[0]
        return self._decided(rows)

    def _decided(self, rows: Sequence[TuneCandidate]) -> list[TuneCandidate]:
        if self._request.quantisation:
            return candidates.requested(rows)
        undecided = [replace(row, chosen=False, why="" if row.full else row.why) for row in rows]
        return candidates.chosen(undecided, self._engines.slots)

    def _remove_others(self, rows: Sequence[TuneCandidate]) -> None:
        """Remove what was made and is not the best so far, before more disk space is needed."""
        for row in rows:
            path = self._paths.get(row.quantisation)
            if not row.chosen and path is not None and path.parent == self._folder:
                path.unlink(missing_ok=True)

    async def _original(self, row: TuneCandidate) -> TuneCandidate:
        if not self._request.measure:
            return row
        try:
            return await self._measured(row, self._request.path, f"{row.quantisation} (original)")
        except SyscallError as error:
            return replace(row, why=f"not measured: {error.message}")

    async def _made(self, name: str, original: TuneCandidate, place: str) -> TuneCandidate:
        path = self._request.target(name)
        if not await asyncio.to_thread(_is, path, name):
            path = self._folder / f"{name}.gguf"
            report = self._noted(place)
            await convert(self._request.path, path, name, self._request.log, report)
        self._paths[name] = path
        size = (await asyncio.to_thread(path.stat)).st_size
        row = TuneCandidate(name, size, original.quantisation)
        return await self._measured(row, path, place) if self._request.measure else row

    def _noted(self, place: str) -> Report:
        return lambda progress: self._report(replace(progress, note=place))

    async def _measured(self, row: TuneCandidate, path: Path, place: str) -> TuneCandidate:
        """A row with its figures. DeviceFault when the file cannot be measured."""
        report = self._noted(place)
        wanted = MeasuredFile(path, self._engines.threads, self._request.log, patient=True)
        engine, rates = await self._rates(wanted, report)
        words = [engine, str(path), str(self._request.path), str(_TEXT), str(wanted.threads)]
        try:
            async with asyncio.timeout(limits.TUNE_S):
                loss = await task_process.run(f"{__package__}.loss", words, wanted.log, report)
        except TimeoutError:
            message = f"the measurement of its loss took longer than {limits.TUNE_S:g} s"
            raise DeviceFault(message) from None
        return replace(
            row, engine=engine, prompt=rates.prompt, single=rates.single, full=rates.full,
            perplexity=loss["perplexity"], kl=loss["kl"],
            ratio=round(loss["perplexity"] / loss["reference"], 4),
        )  # fmt: skip

    async def _rates(self, wanted: MeasuredFile, report: Report) -> tuple[str, EngineRates]:
        """The engine that computes a file when it is mounted, and its speed."""

        def compare(done: float) -> None:
            report(Progress("measure speed", done))

        if OPENVINO in self._engines.names:
            cache = self._request.cache or self._folder
            found = await measurement.compared(wanted, cache, compare)
            if found.failure:
                raise DeviceFault(found.failure)
            if self._by_openvino(found):
                return OPENVINO, found.openvino
            if not found.refusal:
                return LLAMA, found.llama
        return LLAMA, await measurement.rates(wanted, compare)

    def _by_openvino(self, found: EngineComparison) -> bool:
        if LLAMA in self._engines.names:
            return verdict(found, self._engines.slots).chosen
        if found.refusal:
            raise DeviceFault(f"OpenVINO cannot compute it: {found.refusal}")
        return True


def _is(path: Path, quantisation: str) -> bool:
    """Whether there is a file of this quantisation."""
    try:
        return gguf.read(path).facts.quantisation == quantisation
    except SyscallError:
        return False
