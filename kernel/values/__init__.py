"""The values that cross the socket: requests, replies, and the words they are made of.

Frozen slotted dataclasses of the standard library, one file a noun; read them as `values.NAME`.
"""

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
