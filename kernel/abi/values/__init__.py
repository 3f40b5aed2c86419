"""The values that cross the socket: requests, replies, and the types of their fields.

Frozen slotted dataclasses of the standard library, in one file per noun, used as `values.NAME`. A
file is loaded when one of its names is first used: creating all classes would take longer than the
rest of `llmasos ps`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bias import *  # noqa: F403
    from .fields import *  # noqa: F403
    from .generation import *  # noqa: F403
    from .mail import *  # noqa: F403
    from .models import *  # noqa: F403
    from .pages import *  # noqa: F403
    from .policy import *  # noqa: F403
    from .processes import *  # noqa: F403
    from .system import *  # noqa: F403
    from .users import *  # noqa: F403

_FILES = (  # what most clients and all engines need first
    "fields", "processes", "models", "generation", "bias", "system", "mail", "users", "policy",
    "pages",
)  # fmt: skip

if not TYPE_CHECKING:  # a type checker knows the names from the imports above

    def __getattr__(name: str) -> object:
        """A value by its name, from a file that is loaded, or from the first one that has it."""
        if not name.startswith("_"):
            modules = [f"{__name__}.{file}" for file in _FILES]
            for module in sorted(modules, key=lambda module: module not in sys.modules):
                found = getattr(import_module(module), name, None)
                if found is not None:
                    globals()[name] = found
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
