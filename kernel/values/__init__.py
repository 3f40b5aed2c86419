"""The values that cross the socket: requests, replies, and the words they are made of.

Frozen slotted dataclasses of the standard library, one file a noun; read them as `values.NAME`. A
file is loaded when a name of it is first used: making all these classes takes longer than all else
that `llmasos ps` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bias import *  # noqa: F403
    from .generation import *  # noqa: F403
    from .mail import *  # noqa: F403
    from .models import *  # noqa: F403
    from .pages import *  # noqa: F403
    from .policy import *  # noqa: F403
    from .processes import *  # noqa: F403
    from .system import *  # noqa: F403
    from .users import *  # noqa: F403
    from .words import *  # noqa: F403

_FILES = (  # what most clients need first
    "words", "processes", "system", "mail", "users", "models", "generation", "bias", "policy",
    "pages",
)  # fmt: skip

if not TYPE_CHECKING:  # a checker knows the names from the imports above

    def __getattr__(name: str) -> object:
        """A value by its name, from the first file that has it."""
        if not name.startswith("_"):
            for file in _FILES:
                found = getattr(import_module(f"{__name__}.{file}"), name, None)
                if found is not None:
                    globals()[name] = found
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
