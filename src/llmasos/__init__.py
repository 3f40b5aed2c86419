"""LLMasOS: the operating system for language-model agents.

Names load when they are first used, so that `llmasos ps` pays for nothing it does not need.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmasos.kernel.errors import Errno, SyscallError
    from llmasos.userland.sdk import AsyncLLMasOS, LLMasOS

__all__ = ["AsyncLLMasOS", "Errno", "LLMasOS", "SyscallError"]
__version__ = "0.1.0"

_HOMES = {
    "AsyncLLMasOS": "llmasos.userland.sdk",
    "LLMasOS": "llmasos.userland.sdk",
    "Errno": "llmasos.kernel.errors",
    "SyscallError": "llmasos.kernel.errors",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmasos' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
