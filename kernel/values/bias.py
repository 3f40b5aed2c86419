"""What a call adds to the scores of tokens, as it travels: bytes, up to a whole vocabulary.

Each entry is a token's number and the value, four bytes each: uint32 and float32, little-endian. A
map of as many entries would cost the kernel a thousand times the time to decode and check.
"""

import math
import sys
from array import array
from collections.abc import Mapping

from ..errors import Errno, SyscallError

BIAS_BYTES = 8  # of an entry
BIAS_MAX = 100.0  # and -BIAS_MAX


def pack_bias(bias: Mapping[int, float]) -> bytes:
    """EINVAL for a key that is no token's number, or a value that is no finite number."""
    try:
        tokens = array("I", map(int, bias))
        values = array("f", map(float, bias.values()))
    except (TypeError, ValueError, OverflowError) as error:
        hint = "give {token number: value}, as {11: -100.0}"
        raise SyscallError(Errno.EINVAL, f"bias: {error}", hint) from error
    pairs = array("I", bytes(BIAS_BYTES * len(tokens)))
    pairs[::2], pairs[1::2] = tokens, array("I", values.tobytes())
    if sys.byteorder == "big":
        pairs.byteswap()
    return pairs.tobytes()


def unpack_bias(data: bytes) -> "tuple[array[int], array[float]]":
    """Tokens and values, in order. EINVAL for what no mapping could have been packed into."""
    if len(data) % BIAS_BYTES:
        raise SyscallError(Errno.EINVAL, f"bias has {len(data)} bytes: want a multiple of 8")
    pairs = array("I", data)
    if sys.byteorder == "big":
        pairs.byteswap()
    return pairs[::2], array("f", pairs[1::2].tobytes())


def check_bias(data: bytes) -> None:
    """EINVAL for a value that is not from -100 to 100, or a token that is named twice."""
    if not data:
        return
    tokens, values = unpack_bias(data)
    low, high = min(values), max(values)
    if not (math.isfinite(sum(values)) and low >= -BIAS_MAX and high <= BIAS_MAX):
        words = f"bias has values from {low:g} to {high:g}: want -{BIAS_MAX:g} to {BIAS_MAX:g}"
        raise SyscallError(Errno.EINVAL, words)
    if len(set(tokens)) != len(tokens):
        raise SyscallError(Errno.EINVAL, "bias names a token twice")


def check_biased(data: bytes, vocabulary: int) -> None:
    """EINVAL for a token that a vocabulary of so many tokens does not have."""
    highest = max(unpack_bias(data)[0], default=-1)
    if highest >= vocabulary:
        words = f"bias of token {highest}: 0 to {vocabulary - 1} exist"
        raise SyscallError(Errno.EINVAL, words)
