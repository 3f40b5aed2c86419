"""`llmasos embed`: prints the vector of each text as one JSON line, as soon as it is computed."""

import sys
from argparse import Namespace
from array import array
from collections.abc import Iterator

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits, generation
from .connection import connect
from .show import print_json

_DIGITS = 7  # significant digits of a 32-bit float


def embed(arguments: Namespace) -> int:
    model = generation.model(arguments.model)
    if not arguments.texts and sys.stdin.isatty():
        raise exits.UsageError("no text given", "give texts as arguments, or pipe in lines")
    with connect() as client:
        for text in arguments.texts or _lines():
            request = v.Embed(model, [generation.clean(text, "the text")])
            [vector] = client.call("embed", request, v.Embedded).vectors
            print_json({"text": text, "vector": _numbers(vector)})
    return exits.OK


def _lines() -> Iterator[str]:
    """The lines of stdin without empty ones."""
    try:
        for line in sys.stdin:
            if text := line.removeprefix("\ufeff").strip():
                yield text
    except UnicodeDecodeError as error:
        message = f"stdin is not valid UTF-8 at byte {error.start}"
        raise SyscallError(Errno.EINVAL, message, "give text in UTF-8") from error


def _numbers(vector: bytes) -> list[float]:
    values = array("f")
    values.frombytes(vector)
    if sys.byteorder == "big":
        values.byteswap()
    return [round(value, _DIGITS) for value in values]
