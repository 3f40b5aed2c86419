"""The wire format of a logit bias: bytes, with up to one entry for each token of a vocabulary.

An entry is a token number and a value of four bytes each: uint32 and float32, little-endian.
Decoding and checking a map with as many entries would take the kernel a thousand times as long.
"""

import math
import sys
from array import array
from collections.abc import Mapping

from ..errors import Errno, SyscallError

BIAS_BYTES = 8  # of an entry
BIAS_MAX = 100.0  # and -BIAS_MAX


def pack_bias(bias: Mapping[int, float]) -> bytes:
    """EINVAL for a key that is not a token number, or a value that is not a number."""
    try:
        tokens = array("I", map(int, bias))
        values = array("f", map(float, bias.values()))
    except (TypeError, ValueError, OverflowError) as error:
        hint = "use {token number: value}, for example {11: -100.0}"
        raise SyscallError(Errno.EINVAL, f"bias: {error}", hint) from error
    pairs = array("I", bytes(BIAS_BYTES * len(tokens)))
    pairs[::2], pairs[1::2] = tokens, array("I", values.tobytes())
    if sys.byteorder == "big":
        pairs.byteswap()
    return pairs.tobytes()


def unpack_bias(data: bytes) -> "tuple[array[int], array[float]]":
    """Tokens and values, in order. EINVAL for incomplete entries."""
    if len(data) % BIAS_BYTES:
        message = f"bias has {len(data)} bytes, which is not a multiple of {BIAS_BYTES}"
        raise SyscallError(Errno.EINVAL, message)
    pairs = array("I", data)
    if sys.byteorder == "big":
        pairs.byteswap()
    return pairs[::2], array("f", pairs[1::2].tobytes())


def check_bias(data: bytes) -> None:
    """EINVAL for a value outside of -100 to 100, or a duplicate token."""
    if not data:
        return
    tokens, values = unpack_bias(data)
    low, high = min(values), max(values)
    if not (math.isfinite(sum(values)) and low >= -BIAS_MAX and high <= BIAS_MAX):
        allowed = f"-{BIAS_MAX:g} to {BIAS_MAX:g} are allowed"
        message = f"bias has values from {low:g} to {high:g}; {allowed}"
        raise SyscallError(Errno.EINVAL, message)
    if len(set(tokens)) != len(tokens):
        raise SyscallError(Errno.EINVAL, "bias has a duplicate token")


def check_biased(data: bytes, vocabulary: int) -> None:
    """EINVAL for a token that is not in a vocabulary of `vocabulary` tokens."""
    highest = max(unpack_bias(data)[0], default=-1)
    if highest >= vocabulary:
        message = f"bias of token {highest}: 0 to {vocabulary - 1} exist"
        raise SyscallError(Errno.EINVAL, message)
