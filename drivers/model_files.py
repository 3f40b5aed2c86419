"""Model files (GGUF) as the kernel mounts them: which engine computes a file.

The option `engine` decides: `llama`, `openvino`, or `auto`. With `auto` both are compared on the
file at its first mount (drivers/choice). What was not compared is computed by OpenVINO where its
type and architecture are known to be fast and right, else by llama.cpp. An engine that cannot load
a file is replaced by the other one. `llmasos devices` shows the reason. This module and its imports
load neither library.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from llmasos.drivers.choice import measurement, tuning
from llmasos.drivers.choice.comparison import EngineComparison, verdict
from llmasos.drivers.choice.measurement import MeasuredFile
from llmasos.drivers.choice.tuning import TuneEngines
from llmasos.drivers.llama import devices
from llmasos.drivers.llama import mount as llama
from llmasos.drivers.local import gguf, options
from llmasos.drivers.local.driver import Choices, LocalEngine
from llmasos.drivers.local.gguf import Header
from llmasos.drivers.openvino import mount as openvino
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Progress, TuneCandidate
from llmasos.kernel.driver import Engine, Option, Tuning

AUTO = "auto"
_CHECKS = {"llama": llama.check, "openvino": openvino.check}
_CHOICES = {"llama": llama.choice, "openvino": openvino.choice}
_INSTRUCTIONS = "avx512_vnni"  # without them its integer kernels are missing or slow
_OLDEST = 2026, 4  # the version of OpenVINO that drivers/openvino was written for
# Without a comparison: types that it computes faster, architectures whose logits were compared.
_FAST = frozenset({"Q8_0"})
_KNOWN = frozenset({"llama", "qwen2", "qwen3"})

probe = gguf.probe
hardware = llama.hardware


async def models(options: Mapping[str, Option]) -> Sequence[str]:
    raise SyscallError(Errno.ENOTSUP, "model files have no endpoints")


async def tune(request: Tuning, report: Callable[[Progress], None]) -> Sequence[TuneCandidate]:
    """Requantise a file, for the engine that a mount with these options chooses."""
    check(request.options)
    name, rest = _divided(request.options)
    name = _engine(name, rest)
    names = [name]
    if name == AUTO:
        names = ["llama"] if _unusable(rest) or _unavailable() else ["openvino", "llama"]
    engines = TuneEngines(names, _threads(rest), _slots(rest))
    return await tuning.tune(request, engines, report)


def _threads(values: Mapping[str, Option]) -> int:
    return int(values.get("threads", options.cores()))


def _slots(values: Mapping[str, Option]) -> int:
    return int(values.get("slots", limits.SLOTS))


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, ENOTSUP for an engine that is not installed."""
    name, rest = _divided(options)
    name = _engine(name, rest)
    _CHECKS["llama" if name == AUTO else name](rest)
    if name == "openvino" and (missing := _missing()):
        hint = "`pip install --upgrade openvino`, or mount it without `--engine openvino`"
        raise SyscallError(Errno.ENOTSUP, missing, hint)


def _divided(options: Mapping[str, Option]) -> tuple[str, dict[str, Option]]:
    """The option `engine`, and the others."""
    rest = dict(options)
    name = rest.pop("engine", AUTO)
    if name not in (AUTO, *_CHECKS):
        message = f"invalid value {name!r} for option engine"
        raise SyscallError(Errno.EINVAL, message, f"engine is {', '.join((AUTO, *_CHECKS))}")
    return str(name), rest


def _engine(name: str, values: Mapping[str, Option]) -> str:
    """The engine that these options request: an option of OpenVINO's own requests it, too."""
    return "openvino" if name == AUTO and values.keys() & openvino.OWN.keys() else name


def engine(
    path: Path, options: Mapping[str, Option], log: Path, cache: Path | None = None
) -> Engine:
    """An engine that is not started. EINVAL for an unusable file or option."""
    check(options)
    name, rest = _divided(options)

    async def choose(header: Header, report: Callable[[float], None]) -> Choices:
        if (requested := _engine(name, rest)) != AUTO:
            reason = "as the option engine requests" if name != AUTO else "pool_bytes is its option"
            return Choices([_CHOICES[requested](rest)], reason)
        if reason := _unusable(rest) or _unavailable():
            return Choices([llama.choice(rest)], f"not OpenVINO: {reason}")
        found = await _compared(path, rest, cache, log, report)
        return _decided(rest, header, found)

    return LocalEngine(path, choose, log)


async def _compared(
    path: Path, values: Mapping[str, Option], cache: Path | None, log: Path,
    report: Callable[[float], None],
) -> EngineComparison:  # fmt: skip
    """The comparison of both engines on the file; with a `failure` when there is none."""
    if cache is None:
        return EngineComparison(failure="the setting tune is false")
    if find_spec("llama_cpp") is None:
        return EngineComparison(failure="llama.cpp is not installed")
    wanted = MeasuredFile(path, _threads(values), log)
    try:
        return await measurement.compared(wanted, cache, report)
    except (SyscallError, OSError) as error:
        return EngineComparison(
            failure=error.message if isinstance(error, SyscallError) else str(error)
        )


def _decided(values: Mapping[str, Option], header: Header, found: EngineComparison) -> Choices:
    """The engines to try, the better one first."""
    if found.failure:
        return _by_rule(values, header, f"not compared, {found.failure}")
    decided = verdict(found, _slots(values))
    if not decided.accepted:
        return Choices([llama.choice(values)], f"not OpenVINO: {decided.why}")
    both = [openvino.choice(values), llama.choice(values)]
    if decided.chosen:
        return Choices(both, decided.why)
    return Choices(both[::-1], f"OpenVINO was {decided.why}")


def _by_rule(values: Mapping[str, Option], header: Header, why: str) -> Choices:
    """The choice for a file on which the engines were not compared."""
    facts = header.facts
    if facts.quantisation in _FAST and facts.architecture in _KNOWN:
        return Choices([openvino.choice(values), llama.choice(values)], why)
    return Choices([llama.choice(values)], f"not OpenVINO: {why}")


def _unusable(values: Mapping[str, Option]) -> str:
    """Why a mount with these options is none for OpenVINO; empty: it can be."""
    own = sorted(values.keys() - openvino.OPTIONS.keys())
    return f"option {own[0]} is llama.cpp's" if own else ""


def _unavailable() -> str:
    """Why OpenVINO is not used on this machine; empty: it can be."""
    if missing := _missing():
        return missing
    if devices.seen():
        return "there is a GPU"
    if _INSTRUCTIONS not in measurement.processor()[1].split():
        return f"this processor has no {_INSTRUCTIONS}"
    return ""


def _missing() -> str:
    """Why OpenVINO cannot be loaded; empty: it can be."""
    if find_spec("openvino") is None:
        return "the package openvino is not installed"
    try:
        found = version("openvino")
    except PackageNotFoundError:
        return "the package openvino has no version"
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", found)[:2])
    if numbers < _OLDEST:
        return f"openvino {found} is too old: {'.'.join(map(str, _OLDEST))} or later is required"
    return ""
