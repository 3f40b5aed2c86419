"""`llmasos secrets`: keys of other services. It needs no daemon and never prints a key.

A key is read from stdin, or typed without echo. It is not an argument: arguments are visible in
the list of processes and in the history of the shell.
"""

import codecs
import sys
from argparse import Namespace
from getpass import getpass

from llmasos.kernel.abi import limits, paths, secrets, service_url
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits
from .show import note, print_json


def set_(arguments: Namespace) -> int:
    secrets.check_name(arguments.name)
    folder = paths.find().secrets
    url = arguments.url
    if url:
        service_url.parse(url)  # validate before reading the key
    secrets.put(folder, arguments.name, _read(arguments.name), keyring=arguments.keyring, url=url)
    if arguments.json:
        print_json({
            "keyring": arguments.keyring, "name": arguments.name, "set": True,
            "url": secrets.bound(folder, arguments.name),
        })  # fmt: skip
    else:
        note(f"stored {arguments.name} in {'the keyring' if arguments.keyring else folder}")
    return exits.OK


def _read(name: str) -> str:
    """The typed or piped key, without its final newline."""
    if sys.stdin.isatty():
        return getpass(f"{name}: ")
    raw = sys.stdin.buffer.read(limits.SECRET_BYTES + 6)
    try:
        return (
            raw.removeprefix(codecs.BOM_UTF8).decode("ascii").removesuffix("\n").removesuffix("\r")
        )
    except UnicodeDecodeError as error:
        message = f"a secret must be ASCII; byte {error.start} is not"
        raise SyscallError(
            Errno.EINVAL, message, "give only the key, as issued by the endpoint"
        ) from None


def list_(arguments: Namespace) -> int:
    folder = paths.find().secrets
    stored = {name: secrets.bound(folder, name) for name in secrets.names(folder)}
    if arguments.json:
        print_json({"secrets": list(stored), "urls": stored})
    else:
        for name, url in stored.items():
            print(f"{name}  {url}".rstrip())
    return exits.OK


def rm(arguments: Namespace) -> int:
    secrets.remove(paths.find().secrets, arguments.name)
    if arguments.json:
        print_json({"name": arguments.name, "removed": True})
    else:
        note(f"removed {arguments.name}")
    return exits.OK
