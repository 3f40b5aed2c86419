"""The options of a model that is mounted on llama.cpp, and the memory that it requires."""

from collections.abc import Mapping
from pathlib import Path

from llmasos.drivers.local import options as local
from llmasos.drivers.local.gguf import Header
from llmasos.drivers.local.options import NumberOption
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Option

from .settings import LlamaSettings

# libgomp threads wait for each other in a spin loop of 300,000 iterations. That is harmless on idle
# cores and very slow on shared ones: beside one busy program a step took 40 times as long. 1,000
# iterations cost 1 % on an idle machine and are 9 times faster on a shared one.
SPIN = {"GOMP_SPINCOUNT": "1000"}

OPTIONS: local.Allowed = {
    **local.OPTIONS,
    "flash": None,  # flash attention
    "unified": None,  # one KV pool for all slots
    "gpu_layers": NumberOption(-1, 10_000),  # -1: as many as fit the GPUs, if there are any
}


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    local.check(options, OPTIONS)
    for name in ("flash", "unified"):
        if options.get("deterministic") and name in options:
            message = f"options deterministic and {name} exclude each other"
            raise SyscallError(Errno.EINVAL, message, f"remove {name} or deterministic")


def settings(path: Path, header: Header, options: Mapping[str, Option]) -> LlamaSettings:
    """All settings: the given options, and defaults for this machine."""
    check(options)
    return LlamaSettings(
        **local.settings(path, header, options),
        flash=bool(options.get("flash", True)),
        unified=bool(options.get("unified", False)),
        gpu_layers=int(options.get("gpu_layers", -1)),
    )


def check_memory(chosen: LlamaSettings, header: Header) -> None:
    """ENOMEM with the numbers when the model and its slots do not fit."""
    context = chosen.slots * local.cells(chosen.window) * header.cell_bytes
    what = f"{chosen.slots} slots of {chosen.window} tokens"
    local.check_memory(header.facts.bytes, context, what, "fewer slots or a smaller window")
