"""LLMasOS: the operating system for language-model agents.

Names load when they are first used, so that `llmasos ps` pays for nothing it does not need.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmasos.kernel.abi.errors import Busy as Busy
    from llmasos.kernel.abi.errors import Denied as Denied
    from llmasos.kernel.abi.errors import EngineFailed as EngineFailed
    from llmasos.kernel.abi.errors import Errno as Errno
    from llmasos.kernel.abi.errors import NotFound as NotFound
    from llmasos.kernel.abi.errors import SyscallError as SyscallError
    from llmasos.kernel.abi.errors import Timeout as Timeout
    from llmasos.kernel.abi.errors import TooBig as TooBig
    from llmasos.kernel.abi.values import Alternative as Alternative
    from llmasos.kernel.abi.values import DeviceInfo as DeviceInfo
    from llmasos.kernel.abi.values import Event as Event
    from llmasos.kernel.abi.values import Exit as Exit
    from llmasos.kernel.abi.values import Fault as Fault
    from llmasos.kernel.abi.values import Finish as Finish
    from llmasos.kernel.abi.values import Forgotten as Forgotten
    from llmasos.kernel.abi.values import Hit as Hit
    from llmasos.kernel.abi.values import Hits as Hits
    from llmasos.kernel.abi.values import ImageInfo as ImageInfo
    from llmasos.kernel.abi.values import Kind as Kind
    from llmasos.kernel.abi.values import Logprob as Logprob
    from llmasos.kernel.abi.values import Mail as Mail
    from llmasos.kernel.abi.values import Mapped as Mapped
    from llmasos.kernel.abi.values import Message as Message
    from llmasos.kernel.abi.values import Page as Page
    from llmasos.kernel.abi.values import ProcessInfo as ProcessInfo
    from llmasos.kernel.abi.values import Profile as Profile
    from llmasos.kernel.abi.values import Role as Role
    from llmasos.kernel.abi.values import Signal as Signal
    from llmasos.kernel.abi.values import Spawned as Spawned
    from llmasos.kernel.abi.values import Stat as Stat
    from llmasos.kernel.abi.values import State as State
    from llmasos.kernel.abi.values import Trace as Trace
    from llmasos.kernel.abi.values import Usage as Usage
    from llmasos.kernel.abi.values import Where as Where
    from llmasos.userland.sdk import Answer as Answer
    from llmasos.userland.sdk import AsyncAnswer as AsyncAnswer
    from llmasos.userland.sdk import AsyncLLMasOS as AsyncLLMasOS
    from llmasos.userland.sdk import AsyncModel as AsyncModel
    from llmasos.userland.sdk import AsyncProcess as AsyncProcess
    from llmasos.userland.sdk import ForkError as ForkError
    from llmasos.userland.sdk import LLMasOS as LLMasOS
    from llmasos.userland.sdk import Model as Model
    from llmasos.userland.sdk import ModelOptions as ModelOptions
    from llmasos.userland.sdk import Options as Options
    from llmasos.userland.sdk import Process as Process
    from llmasos.userland.sdk import Prompt as Prompt
    from llmasos.userland.sdk import Reply as Reply
    from llmasos.userland.sdk import Schema as Schema

__version__ = "0.1.0"

_NAMES = {
    "llmasos.kernel.abi.errors": (
        "Busy", "Denied", "EngineFailed", "Errno", "NotFound", "SyscallError", "Timeout", "TooBig",
    ),
    "llmasos.kernel.abi.values": (
        "Alternative", "DeviceInfo", "Event", "Exit", "Fault", "Finish", "Forgotten", "Hit",
        "Hits", "ImageInfo", "Kind", "Logprob", "Mail", "Mapped", "Message", "Page", "ProcessInfo",
        "Profile", "Role", "Signal", "Spawned", "Stat", "State", "Trace", "Usage", "Where",
    ),
    "llmasos.userland.sdk": (
        "Answer", "AsyncAnswer", "AsyncLLMasOS", "AsyncModel", "AsyncProcess", "ForkError",
        "LLMasOS", "Model", "ModelOptions", "Options", "Process", "Prompt", "Reply", "Schema",
    ),
}  # fmt: skip
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
__all__ = [*sorted(_HOMES)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmasos' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
