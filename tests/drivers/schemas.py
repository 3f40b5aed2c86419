"""Schemas walked byte by byte, without a model: what may be written, and what is drawn from one."""

import json
import random
from typing import Any

from llmasos.drivers.grammar import compiler

_END = 256
_CLOSERS = b'"]}'
_LONGEST = 20_000  # bytes: a text that is longer has no end


def matcher(schema: Any) -> compiler.LLMatcher:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return compiler.compiled("schema", text, compiler.byte_tokens())


def accepts(schema: Any, text: str) -> bool:
    """The whole text may be written, and nothing need follow."""
    found = matcher(schema)
    data = text.encode()
    return found.try_consume_tokens(list(data)) == len(data) and found.is_accepting()


def written(schema: Any, dice: random.Random) -> str:
    """A text at random. After a while it closes what is open, so that it ends."""
    found, data = matcher(schema), bytearray()
    while len(data) < _LONGEST and not found.is_stopped():
        bits = found.compute_bitmask()
        allowed = [byte for byte in range(257) if bits[byte // 8] >> byte % 8 & 1]
        if _END in allowed:
            break
        closers = [byte for byte in allowed if byte in _CLOSERS]
        choice = dice.choice(closers if closers and len(data) > 40 else allowed)
        assert found.consume_token(choice)
        data.append(choice)
    assert found.is_accepting() or found.is_stopped(), bytes(data[:200])
    return data.decode()
