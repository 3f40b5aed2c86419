# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""llama.cpp's ctypes layer, its log and its build. Imported in child processes only."""

import sys
from typing import Any, cast

from llama_cpp import llama_cpp as _untyped

lib = cast("Any", _untyped)
_LOGGED = (3, 4)  # log levels of ggml: warnings and errors


def _log(level: int, text: bytes, _: object) -> None:
    if level in _LOGGED:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


def backend(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml's device registry, which the ctypes layer does not export."""
    function = lib._lib[f"ggml_backend_{name}"]
    function.restype, function.argtypes = result, arguments
    return function


# C keeps the pointer: without this reference the callback is freed and the next log line crashes.
log_callback = lib.llama_log_callback(_log)


def amx_kernels(build: str) -> bool:
    """Whether a build of llama.cpp, by its system info, has kernels for Intel AMX.

    These kernels crash on some processors: SIGSEGV where they load the tile
    configuration, at the first batch of several tokens (llama.cpp of llama-cpp-python 0.3.36,
    gcc 12, an Intel Xeon with amx_int8).
    """
    return "AMX_INT8 = 1" in build


def system_info() -> str:
    """The instruction sets and features of this build of llama.cpp."""
    info: bytes = lib.llama_print_system_info()
    return info.decode("utf-8", "replace")
