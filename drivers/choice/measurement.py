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
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmasos.drivers.llama import task_process
from llmasos.drivers.local import options
from llmasos.drivers.local.processor import field
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.fingerprint import fingerprint
from llmasos.kernel.abi.values import Progress

from . import comparison
from .comparison import EngineComparison

log = logging.getLogger(__name__)
_LIBRARIES = ("openvino", "llama-cpp-python")
_GRAPHS = 1  # increased when drivers/openvino converts files in another way
_CPU_INFO = Path("/proc/cpuinfo")
_COPIES = 3  # of the weights while both engines have them: OpenVINO has two
_SPARE_BYTES = 512 * 1024 * 1024
_MEGA = 1024 * 1024
_RETRY_S = 86_400.0  # after this time a failure is measured again: the machine may have been busy
_OPENVINO = "OpenVINO"  # the stage of probe.py in which OpenVINO computes


async def compared(
    path: Path, threads: int, cache: Path, log_path: Path, report: Callable[[float], None]
) -> EngineComparison:
    """The stored comparison of a file, else a new one. DeviceFault when there can be none now."""
    file = cache / f"{await asyncio.to_thread(key, path, threads)}.json"
    known = await asyncio.to_thread(_read, file)
    if known is not None:
        return known
    _check_memory(path)
    found = await _measure(path, threads, log_path, report)
    await asyncio.to_thread(_store, file, found)
    return found


async def _measure(
    path: Path, threads: int, log_path: Path, report: Callable[[float], None]
) -> EngineComparison:
    stages: list[str] = []

    def note(progress: Progress) -> None:
        stages.append(progress.stage)
        report(progress.done)

    module, words = f"{__package__}.probe", [str(path), str(threads)]
    try:
        async with asyncio.timeout(limits.MEASURE_S):
            return comparison.read(await task_process.run(module, words, log_path, note))
    except TimeoutError:
        return EngineComparison(failure=f"the comparison took longer than {limits.MEASURE_S:g} s")
    except DeviceFault as error:
        if stages[-1:] != [_OPENVINO]:
            raise
        return EngineComparison(refusal=error.message)


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
    return field(_CPU_INFO, "model name"), field(_CPU_INFO, "flags")


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
