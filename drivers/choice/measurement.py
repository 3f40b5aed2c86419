"""Comparisons of the engines by file, stored in the cache. This module loads no engine.

A comparison holds for a file, a processor, a number of threads, and the versions of both libraries
and of our graphs. It is measured before the first mount, for MEASURE_S at most. That OpenVINO ends
the process is a result that is stored, too; that it takes longer is one for a day.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmasos.drivers.llama import task_process
from llmasos.drivers.local import options
from llmasos.drivers.local.processor import field
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.fingerprint import fingerprint
from llmasos.kernel.abi.values import Progress

from . import comparison
from .comparison import EngineComparison, EngineRates

log = logging.getLogger(__name__)
_LIBRARIES = ("openvino", "llama-cpp-python")
_GRAPHS = 1  # increased when drivers/openvino converts files in another way
_CPU_INFO = Path("/proc/cpuinfo")
_COPIES = 3  # of the weights while both engines have them: OpenVINO has two
_SPARE_BYTES = 512 * 1024 * 1024
_MEGA = 1024 * 1024
_RETRY_S = 86_400.0  # after this time a failure is measured again: the machine may have been busy
LLAMA_ONLY = "llama"  # as an argument of probe.py
_OPENVINO = "OpenVINO"  # the stage of probe.py in which OpenVINO computes


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """A file to be measured with so many threads."""

    path: Path
    threads: int
    log: Path
    patient: bool = False  # for TUNE_S; what took too long before is measured again


async def compared(
    wanted: MeasuredFile, cache: Path, report: Callable[[float], None]
) -> EngineComparison:
    """The stored comparison of a file, else a new one. DeviceFault when there can be none now."""
    file = cache / f"{await asyncio.to_thread(key, wanted.path, wanted.threads)}.json"
    known = await asyncio.to_thread(_read, file)
    if known is not None and not (wanted.patient and known.failure):
        return known
    _check_memory(wanted.path)
    found = await _measure(wanted, report)
    await asyncio.to_thread(_store, file, found)
    return found


async def rates(wanted: MeasuredFile, report: Callable[[float], None]) -> EngineRates:
    """The speed of llama.cpp on a file. DeviceFault."""
    try:
        return comparison.read(await _probe(wanted, report, LLAMA_ONLY)).llama
    except TimeoutError:
        raise DeviceFault(_took_long(wanted)) from None


async def _measure(wanted: MeasuredFile, report: Callable[[float], None]) -> EngineComparison:
    stages: list[str] = []
    try:
        return comparison.read(await _probe(wanted, report, stages=stages))
    except TimeoutError:
        return EngineComparison(failure=_took_long(wanted))
    except DeviceFault as error:
        if stages[-1:] != [_OPENVINO]:
            raise
        return EngineComparison(refusal=error.message)


async def _probe(
    wanted: MeasuredFile, report: Callable[[float], None], *words: str,
    stages: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The result of probe.py; appends its stages. TimeoutError, DeviceFault."""

    def note(progress: Progress) -> None:
        if stages is not None:
            stages.append(progress.stage)
        report(progress.done)

    arguments = [str(wanted.path), str(wanted.threads), *words]
    async with asyncio.timeout(_limit_s(wanted)):
        return await task_process.run(f"{__package__}.probe", arguments, wanted.log, note)


def _limit_s(wanted: MeasuredFile) -> float:
    return limits.TUNE_S if wanted.patient else limits.MEASURE_S


def _took_long(wanted: MeasuredFile) -> str:
    return f"the comparison took longer than {_limit_s(wanted):g} s"


def _check_memory(path: Path) -> None:
    """DeviceFault when a comparison needs more memory than there is."""
    needed, free = _COPIES * path.stat().st_size + _SPARE_BYTES, options.available_bytes()
    if free is not None and needed > free:
        raise DeviceFault(f"the comparison needs {needed // _MEGA} MB, {free // _MEGA} MB are free")


def key(path: Path, threads: int) -> str:
    """Identifies what a comparison holds for. Reads the ends of the file."""
    parts = [
        fingerprint(path),
        str(threads),
        *processor(),
        str(_GRAPHS),
        *map(_version, _LIBRARIES),
    ]
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def processor() -> tuple[str, str]:
    """The name of the processor and its instruction sets; empty where the system has no list."""
    flags = field(_CPU_INFO, "flags") or field(_CPU_INFO, "Features")
    return field(_CPU_INFO, "model name"), flags


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(file: Path) -> EngineComparison | None:
    """A stored comparison; None: there is none that can be read."""
    try:
        found = comparison.read(json.loads(file.read_text(encoding="utf-8")))
        old = time.time() - file.stat().st_mtime > _RETRY_S
    except (OSError, ValueError, AttributeError):
        return None
    return None if found.failure and old else found


def _store(file: Path, found: EngineComparison) -> None:
    """Store a comparison. Without it, the next mount measures again."""
    part = file.with_name(f".{file.name}.{os.urandom(4).hex()}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(found), sort_keys=True), encoding="utf-8")
        part.rename(file)
    except OSError as error:
        log.warning("cannot store a comparison of engines in %s: %s", file.parent, error)
        with suppress(OSError):
            part.unlink()
