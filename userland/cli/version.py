"""`llmasos version`: what this is."""

import platform
from argparse import Namespace

from llmasos import __version__
from llmasos.kernel import limits

from . import exits
from .show import document


def version(arguments: Namespace) -> int:
    if arguments.json:
        protocol, python = limits.PROTOCOL_VERSION, platform.python_version()
        document({"llmasos": __version__, "protocol": protocol, "python": python})
    else:
        print(f"llmasos {__version__}")
    return exits.OK
