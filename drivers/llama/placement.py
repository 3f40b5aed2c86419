"""Lists the devices that llama.cpp finds and places a model on them. Child processes only.

    python -m llmasos.drivers.llama.placement

prints the devices as JSON. They are named cpu0, gpu0, gpu1 ... in llama.cpp's order.
"""

import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llmasos.drivers.local import gguf, options
from llmasos.kernel.abi.values import Hardware

from . import devices
from .library import amx_kernels, backend, system_info
from .settings import LlamaSettings

_CPU, _GPU, _IGPU = 0, 1, 2  # enum ggml_backend_dev_type
_NOT_GPUS = frozenset({"CPU", "BLAS", "RPC", "AMX"})  # backends
_SPARE_BYTES = 512 * 1024 * 1024  # reserved on the GPUs for the buffers of a step
_MEGA = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Placement:
    """The devices of a model, and the reason."""

    settings: LlamaSettings  # with gpu_layers resolved
    on: str  # device names
    why: str
    found: Sequence[Hardware]

    def facts(self) -> dict[str, object]:
        """Its part of the facts in UP."""
        text = f"{self.on}: llama.cpp; {self.why}; {self.settings.threads} threads"
        return {
            "placement": text, "on": self.on, "hardware": [asdict(one) for one in self.found],
        }  # fmt: skip


def backends() -> frozenset[str]:
    """The GPU backends of this build of llama.cpp: CUDA, ROCm, Vulkan, MTL ..."""
    count = backend("reg_count", ctypes.c_size_t)
    get = backend("reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = backend("reg_name", ctypes.c_char_p, ctypes.c_void_p)
    return frozenset(name(get(i)).decode() for i in range(count())) - _NOT_GPUS


def found() -> list[Hardware]:
    """All devices, including GPUs that only another build of llama.cpp can use."""
    count = backend("dev_count", ctypes.c_size_t)
    get = backend("dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind = backend("dev_type", ctypes.c_int, ctypes.c_void_p)
    every = [get(index) for index in range(count())]
    cpus = [device for device in every if kind(device) == _CPU]
    gpus = [device for device in every if kind(device) in (_GPU, _IGPU)]
    return devices.named(
        [
            *(_cpu(device, _cpu_note()) for device in cpus[:1]),
            *(_describe(device, f"gpu{number}", "gpu") for number, device in enumerate(gpus)),
        ],
        devices.seen(),
        backends(),
    )


def _cpu_note() -> str:
    """How another build of llama.cpp is faster on this CPU; empty if none is."""
    return devices.build_without_amx() if amx_kernels(system_info()) else ""


def _cpu(device: int, note: str) -> Hardware:
    plain = _describe(device, "cpu0", "cpu")
    text = f"{plain.description}, {options.cores()} of {os.cpu_count()} cores"
    free = options.available_bytes() or plain.free
    return replace(plain, description=text, free=free, note=note)


def _describe(device: int, name: str, kind: str) -> Hardware:
    description = backend("dev_description", ctypes.c_char_p, ctypes.c_void_p)
    sizes = ctypes.POINTER(ctypes.c_size_t)
    memory = backend("dev_memory", None, ctypes.c_void_p, sizes, sizes)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    memory(device, ctypes.byref(free), ctypes.byref(total))
    text = description(device).decode("utf-8", "replace").strip()
    return Hardware(name, kind, text, total.value, free.value, usable=True, note="")


def place(settings: LlamaSettings) -> Placement:
    """Choose how many layers go to the GPUs. Reads the model file's header if there is a GPU."""
    every = found()
    if not any(one.kind == "gpu" and one.usable for one in every):
        return Placement(replace(settings, gpu_layers=0), "cpu0", without(every), every)
    header = gguf.read(Path(settings.path))
    cells = settings.slots * settings.window * header.cell_bytes
    return choose(settings, every, header.blocks + 1, header.facts.bytes + cells)


def without(every: Sequence[Hardware]) -> str:
    """Why no GPU is used."""
    if any(one.kind == "gpu" for one in every):
        return "this build of llama.cpp has no GPU support"
    return "no GPU was found"


def choose(
    settings: LlamaSettings, every: Sequence[Hardware], layers: int, needed: int
) -> Placement:
    """All layers if they fit, else as many as fit; an explicit gpu_layers is used unchanged."""
    gpus = [one for one in every if one.kind == "gpu" and one.usable]
    names = ", ".join(gpu.name for gpu in gpus)
    room = sum(max(0, gpu.free - _SPARE_BYTES) for gpu in gpus)
    fitting = min(layers, room * layers // max(1, needed))
    requested = settings.gpu_layers
    count = fitting if requested < 0 else min(requested, layers)
    why = f"all {layers} layers" if count == layers else f"{count} of {layers} layers"
    if requested < 0 and fitting < layers:
        why += f": {needed // _MEGA} MB are needed, {room // _MEGA} MB are free on {names}"
    elif requested == 0:
        why = "gpu_layers is 0"
    placed = replace(settings, gpu_layers=count)
    return Placement(placed, names if count else "cpu0", why, every)


if __name__ == "__main__":
    print(json.dumps([asdict(one) for one in found()]))
