"""What this machine has to compute with, seen from the kernel.

A short child process tells what llama.cpp found, once; the operating system shows what llama.cpp
might have found in another build. This module must not import llama_cpp.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from llmasos.kernel import limits
from llmasos.kernel.values import Hardware

from .link import environment

_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # PCI ids
_BUILDS = {  # vendor: backends of llama.cpp that drive its GPUs, and the flag of the first
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


@cache
def hardware() -> Sequence[Hardware]:
    """What llama.cpp and the operating system find. Blocks for a second, once."""
    command = [sys.executable, "-P", "-m", f"{__package__}.placement"]
    try:
        done = subprocess.run(
            command, env=environment(), cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
            timeout=limits.READY_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        note = f"llama.cpp cannot be loaded: {error}"
        unknown = Hardware("cpu0", "cpu", "", 0, 0, usable=False, note=note)
        return named([unknown], seen(), frozenset())
    return [Hardware(**fields) for fields in json.loads(done.stdout)]


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
        place = root / "sys/class/drm" / node.name / "device/vendor"
        vendor = _VENDORS.get(_read(place).strip(), "")
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
    """What llama.cpp found, then what only the operating system shows, numbered on."""
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
    """How to make a llama.cpp that can use such a GPU."""
    return _commands(f"one for {_NAMES[vendor]} is made", _BUILDS[vendor][1])


# The macro that selects llama.cpp's AMX kernels; see cpp.amx_kernels().
NO_AMX = "-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__"


def build_without_amx() -> str:
    """How to make a llama.cpp without AMX kernels."""
    words = (
        "this build of llama.cpp has AMX kernels, which crash on some processors: prompts are "
        "computed without them and without repacked weights; a build without AMX is made"
    )
    return _commands(words, NO_AMX)


def _commands(words: str, flag: str) -> str:
    # pip keeps what it built before, and does not look at the flags.
    return (
        f"{words}\n"
        f'  in a checkout by `rm -rf .venv; CMAKE_ARGS="{flag}" PIP_NO_CACHE_DIR=1 make setup`\n'
        f'  elsewhere by `CMAKE_ARGS="{flag}" pip install --force-reinstall --no-deps '
        f"--no-cache-dir --no-binary llama-cpp-python {_package()}`"
    )


def _package() -> str:
    try:
        return f"llama-cpp-python=={version('llama-cpp-python')}"
    except PackageNotFoundError:
        return "llama-cpp-python"
