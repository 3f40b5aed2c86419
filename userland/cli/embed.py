"""`llmasos embed`: texts as vectors, one JSON line each, as they come."""

import sys
from argparse import Namespace
from array import array
from collections.abc import Iterator

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError

from . import exits, talk
from .door import connect
from .show import document

_DIGITS = 7  # all that 32-bit floats hold


def embed(arguments: Namespace) -> int:
    model = talk.model(arguments.model)
    if not arguments.texts and sys.stdin.isatty():
        raise exits.Usage("there is no text", "give texts as words, or pipe in lines")
    with connect() as line:
        for text in arguments.texts or _lines():
            request = v.Embed(model, [talk.clean(text, "the text")])
            [vector] = line.call("embed", request, v.Embedded).vectors
            document({"text": text, "vector": _numbers(vector)})
    return exits.OK


def _lines() -> Iterator[str]:
    """What is piped in, without empty lines."""
    try:
        for said in sys.stdin:
            if text := said.removeprefix("\ufeff").strip():
                yield text
    except UnicodeDecodeError as error:
        words = f"stdin is not valid UTF-8 at byte {error.start}"
        raise SyscallError(Errno.EINVAL, words, "give text in UTF-8") from error


def _numbers(vector: bytes) -> list[float]:
    values = array("f")
    values.frombytes(vector)
    if sys.byteorder == "big":
        values.byteswap()
    return [round(value, _DIGITS) for value in values]
