"""Model files (GGUF) as the kernel mounts them: which engine computes a file.

`--set engine=llama` or `engine=openvino` at the mount decides. Otherwise OpenVINO computes the
files that it is faster for, where it is installed and the processor has the instructions; llama.cpp
computes all others, and takes over when OpenVINO cannot load a file. The reason is shown by
`llmasos devices`. This module and its imports load neither library.
"""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmasos.drivers.llama import devices
from llmasos.drivers.llama import mount as llama
from llmasos.drivers.local import gguf
from llmasos.drivers.local.driver import Choices, LocalEngine
from llmasos.drivers.local.gguf import Header
from llmasos.drivers.openvino import mount as openvino
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Engine, Option

_CHECKS = {"llama": llama.check, "openvino": openvino.check}
_CHOICES = {"llama": llama.choice, "openvino": openvino.choice}
_INSTRUCTIONS = "avx512_vnni"  # without them its integer kernels are missing or slow
_FAST = frozenset({"Q8_0"})  # file types that it computes faster than llama.cpp does
_CPU_INFO = Path("/proc/cpuinfo")

probe = gguf.probe
hardware = llama.hardware
models = llama.models
tune = llama.tune


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    name, rest = _divided(options)
    _CHECKS[name or "llama"](rest)


def _divided(options: Mapping[str, Option]) -> tuple[str, dict[str, Option]]:
    """The option `engine`, empty if it is not set, and the others."""
    rest = dict(options)
    name = rest.pop("engine", "")
    if name not in ("", *_CHOICES):
        message = f"invalid value {name!r} for option engine"
        raise SyscallError(Errno.EINVAL, message, f"engine is {' or '.join(_CHOICES)}")
    return str(name), rest


def engine(path: Path, options: Mapping[str, Option], log: Path) -> Engine:
    """An engine that is not started. EINVAL for an unusable file or option."""
    check(options)
    name, rest = _divided(options)
    return LocalEngine(path, lambda header: _choices(name, rest, header), log)


def _choices(name: str, options: dict[str, Option], header: Header) -> Choices:
    """The engines to try, the best one first, and why OpenVINO is not among them."""
    if name:
        return Choices([_CHOICES[name](options)], "")
    reason = _not_openvino(options, header) or _unavailable()
    if reason:
        return Choices([llama.choice(options)], f"not OpenVINO: {reason}")
    return Choices([openvino.choice(options), llama.choice(options)], "")


def _not_openvino(options: Mapping[str, Option], header: Header) -> str:
    """Why a file is not computed by OpenVINO; empty: it can be."""
    own = sorted(options.keys() - openvino.OPTIONS.keys())
    if own:
        return f"option {own[0]} is llama.cpp's"
    if header.facts.quantisation not in _FAST:
        return f"it is faster for {', '.join(_FAST)} only, and this is {header.facts.quantisation}"
    return ""


@cache
def _unavailable() -> str:
    """Why OpenVINO is not used on this machine; empty: it can be."""
    if find_spec("openvino") is None:
        return "it is not installed"
    if devices.seen():
        return "there is a GPU"
    if _INSTRUCTIONS not in _flags():
        return f"this processor has no {_INSTRUCTIONS}"
    return ""


def _flags() -> frozenset[str]:
    """The instruction sets of the processor; empty where the system does not list them."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
