"""The compute devices of this machine: those that llama.cpp found, and other GPUs.

The operating system shows the GPUs that another build of llama.cpp could use. Imported by the
kernel's side, too: it must not import llama_cpp.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from llmasos.kernel.abi.values import Hardware

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # PCI ids
_BUILDS = {  # vendor: llama.cpp backends for its GPUs, and the build flag of the first
    "NVIDIA": (("CUDA", "Vulkan"), "-DGGML_CUDA=on"),
    "AMD": (("ROCm", "Vulkan"), "-DGGML_HIP=on"),
    "Intel": (("Vulkan", "SYCL"), "-DGGML_VULKAN=on"),
    "Apple": (("MTL", "Metal"), "-DGGML_METAL=on"),
}
_NAMES = {"NVIDIA": "CUDA", "AMD": "ROCm", "Intel": "Vulkan", "Apple": "Metal"}


class Seen(NamedTuple):
    """A GPU that the operating system shows."""

    vendor: str
    description: str


def seen(root: Path = Path("/")) -> list[Seen]:
    """GPUs as the operating system shows them."""
    if sys.platform == "darwin":
        return [Seen("Apple", "Apple GPU")]
    cards = [
        Seen("NVIDIA", _model(path)) for path in sorted(root.glob("proc/driver/nvidia/gpus/*"))
    ]
    if not cards:
        cards = [Seen("NVIDIA", "NVIDIA GPU") for _ in root.glob("dev/nvidia[0-9]*")]
    for node in sorted(root.glob("dev/dri/renderD*")):
        path = root / "sys/class/drm" / node.name / "device/vendor"
        vendor = _VENDORS.get(_read(path).strip(), "")
        if vendor and not (vendor == "NVIDIA" and cards):
            cards.append(Seen(vendor, f"{vendor} GPU"))
    if (root / "dev/kfd").exists() and not any(card.vendor == "AMD" for card in cards):
        cards.append(Seen("AMD", "AMD GPU"))
    return cards


def _model(folder: Path) -> str:
    for line in _read(folder / "information").splitlines():
        name, _, value = line.partition(":")
        if name == "Model":
            return value.strip()
    return "NVIDIA GPU"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def named(
    found: Sequence[Hardware], shown: Sequence[Seen], backends: frozenset[str]
) -> list[Hardware]:
    """The devices that llama.cpp found, then the GPUs that only the operating system shows."""
    missed = [card for card in shown if not backends & frozenset(_BUILDS[card.vendor][0])]
    first = sum(one.kind == "gpu" for one in found)
    return [
        *found,
        *(
            Hardware(
                f"gpu{number}", "gpu", card.description, 0, 0, usable=False,
                note=f"this build of llama.cpp cannot use it; {build(card.vendor)}",
            )
            for number, card in enumerate(missed, first)
        ),
    ]  # fmt: skip


def build(vendor: str) -> str:
    """How to build a llama.cpp that can use such a GPU."""
    return _commands(f"to build one for {_NAMES[vendor]}, run", _BUILDS[vendor][1])


# Without the macros of the kernels that our own build leaves out, too: those for AMX (see
# library.amx_kernels) and those for AVX512-FP16, which are slow (see userland/bootstrap.py).
_UNDEFINED = "-U__AMX_INT8__ -U__AVX512FP16__"
NO_AMX = f"-DCMAKE_C_FLAGS='{_UNDEFINED}' -DCMAKE_CXX_FLAGS='{_UNDEFINED}'"


def build_without_amx() -> str:
    """How to build a llama.cpp without AMX kernels."""
    note = (
        "this build of llama.cpp has AMX kernels, which crash on some processors: prompts are "
        "computed without them and without repacked weights; to build one without AMX, run"
    )
    return _commands(note, NO_AMX)


def _commands(note: str, flag: str) -> str:
    # pip caches earlier builds, whatever their flags: so the cache is disabled.
    return (
        f"{note}\n"
        f'  in a checkout: `rm -rf .venv; CMAKE_ARGS="{flag}" PIP_NO_CACHE_DIR=1 make setup`\n'
        f'  elsewhere: `CMAKE_ARGS="{flag}" pip install --force-reinstall --no-deps '
        f"--no-cache-dir --no-binary llama-cpp-python {_package()}`"
    )


def _package() -> str:
    try:
        return f"llama-cpp-python=={version('llama-cpp-python')}"
    except PackageNotFoundError:
        return "llama-cpp-python"
