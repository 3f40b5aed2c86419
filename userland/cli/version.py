"""`llmasos version`: prints the version."""

import platform
from argparse import Namespace

from llmasos import __version__
from llmasos.kernel.abi import limits

from . import exits
from .show import print_json


def version(arguments: Namespace) -> int:
    if arguments.json:
        protocol, python = limits.PROTOCOL_VERSION, platform.python_version()
        print_json({"llmasos": __version__, "protocol": protocol, "python": python})
    else:
        print(f"llmasos {__version__}")
    return exits.OK
