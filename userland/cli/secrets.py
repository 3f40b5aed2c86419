"""`llmasos secrets`: keys of other services. No daemon is asked, and no key is ever printed.

A key is read from stdin, or typed without being shown; it is no argument, since those stand in the
list of processes and in the shell's history.
"""

import codecs
import sys
from argparse import Namespace
from getpass import getpass

from llmasos.kernel import limits, paths, secrets
from llmasos.kernel.errors import Errno, SyscallError

from . import exits
from .show import document, note


def set_(arguments: Namespace) -> int:
    secrets.check_name(arguments.name)
    where = paths.find().secrets
    url = arguments.url
    if url:
        secrets.origin(url)  # before somebody types the key
    secrets.put(where, arguments.name, _read(arguments.name), keyring=arguments.keyring, url=url)
    if arguments.json:
        document({
            "keyring": arguments.keyring, "name": arguments.name, "set": True,
            "url": secrets.bound(where, arguments.name),
        })  # fmt: skip
    else:
        note(f"{arguments.name} is kept in {'the keyring' if arguments.keyring else where}")
    return exits.OK


def _read(name: str) -> str:
    """What was typed or piped in, without the newline at its end."""
    if sys.stdin.isatty():
        return getpass(f"{name}: ")
    raw = sys.stdin.buffer.read(limits.SECRET_BYTES + 6)
    try:
        return (
            raw.removeprefix(codecs.BOM_UTF8).decode("ascii").removesuffix("\n").removesuffix("\r")
        )
    except UnicodeDecodeError as error:
        words = f"a secret is ASCII; this one is not at its byte {error.start}"
        raise SyscallError(
            Errno.EINVAL, words, "give the key alone, as its endpoint shows it"
        ) from None


def list_(arguments: Namespace) -> int:
    where = paths.find().secrets
    kept = {name: secrets.bound(where, name) for name in secrets.names(where)}
    if arguments.json:
        document({"secrets": list(kept), "urls": kept})
    else:
        for name, url in kept.items():
            print(f"{name}  {url}".rstrip())
    return exits.OK


def rm(arguments: Namespace) -> int:
    secrets.remove(paths.find().secrets, arguments.name)
    if arguments.json:
        document({"name": arguments.name, "removed": True})
    else:
        note(f"{arguments.name} is forgotten")
    return exits.OK
