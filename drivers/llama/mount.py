"""The llama.cpp driver as the kernel mounts it. This module and its imports load no llama.cpp."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from llmasos.drivers.local.driver import EngineChoice, LocalEngine, only
from llmasos.drivers.local.gguf import Header
from llmasos.drivers.local.link import Program
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Hardware
from llmasos.kernel.driver import Engine, Option

from . import devices, options
from .settings import LlamaSettings
from .task_process import environment

check = options.check


@cache
def hardware() -> Sequence[Hardware]:
    """The devices found by llama.cpp and the operating system; cached. Blocks for about 1 s."""
    command = [sys.executable, "-P", "-m", f"{__package__}.placement"]
    try:
        done = subprocess.run(
            command, env=environment(), cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
            timeout=limits.READY_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        note = f"cannot load llama.cpp: {error}"
        unknown = Hardware("cpu0", "cpu", "", 0, 0, usable=False, note=note)
        return devices.named([unknown], devices.seen(), frozenset())
    return [Hardware(**fields) for fields in json.loads(done.stdout)]


def choice(values: Mapping[str, Option]) -> EngineChoice:
    """This engine with these options."""
    chosen = dict(values)

    def prepare(path: Path, header: Header) -> LlamaSettings:
        settings = options.settings(path, header, chosen)
        options.check_memory(settings, header)
        return settings

    return EngineChoice("llama", Program(f"{__package__}.child", environment()), prepare)


def engine(
    path: Path, values: Mapping[str, Option], log: Path, cache: Path | None = None
) -> Engine:
    """An engine that is not started. EINVAL for an unusable file or option."""
    return LocalEngine(path, only(choice(values)), log)
