"""Describes the processor and the memory of this machine, from /proc."""

import os
from pathlib import Path

from llmasos.kernel.abi.values import Hardware

from . import options


def processor(root: Path = Path("/proc")) -> Hardware:
    """The processor as the device cpu0. Unknown values are 0, an unknown name is "processor"."""
    name = field(root / "cpuinfo", "model name") or "processor"
    sizes = [
        field(root / "meminfo", key).removesuffix("kB") for key in ("MemTotal", "MemAvailable")
    ]
    total, free = (int(size) * 1024 if size.strip().isdigit() else 0 for size in sizes)
    description = f"{name}, {options.cores()} of {os.cpu_count()} cores"
    return Hardware("cpu0", "cpu", description, total, free, usable=True, note="")


def field(path: Path, name: str) -> str:
    """The first value of this name in a file of `name: value` lines; empty: none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
