"""The OpenVINO engine as the kernel mounts it. This module and its imports load no OpenVINO."""

from collections.abc import Mapping
from pathlib import Path

from llmasos.drivers import process
from llmasos.drivers.local.driver import EngineChoice, LocalEngine, only
from llmasos.drivers.local.gguf import Header
from llmasos.drivers.local.link import Program
from llmasos.kernel.abi import paths
from llmasos.kernel.driver import Engine, Option

from . import options
from .settings import OpenVinoSettings

OPTIONS, OWN = options.OPTIONS, options.OWN
check = options.check


def choice(values: Mapping[str, Option]) -> EngineChoice:
    """This engine with these options."""
    chosen = dict(values)

    def prepare(path: Path, header: Header) -> OpenVinoSettings:
        settings = options.settings(path, header, chosen)
        options.check_memory(settings, header)
        return settings

    return EngineChoice("openvino", Program(f"{__package__}.child", environment()), prepare)


def environment() -> dict[str, str]:
    """The environment of a child, which maps a file in the cache directory."""
    return process.environment({}, LLMASOS_CACHE_DIR=str(paths.find().cache))


def engine(
    path: Path, values: Mapping[str, Option], log: Path, cache: Path | None = None
) -> Engine:
    """An engine that is not started. EINVAL for an unusable file or option."""
    return LocalEngine(path, only(choice(values)), log)
