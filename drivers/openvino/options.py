"""The options of a model that is mounted on OpenVINO, and the memory that it requires.

The pool of KV blocks has a size of its own: running calls, idle slots and saved contexts share it,
so slots times window may be more than the pool holds. Memory is taken when a block is first
written.
"""

from collections.abc import Mapping
from pathlib import Path

from llmasos.drivers.local import options as local
from llmasos.drivers.local.gguf import Header
from llmasos.drivers.local.options import NumberOption
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Option

from .blocks import BLOCK_TOKENS, SPARE_BLOCKS
from .settings import OpenVinoSettings

# `pool_bytes`: of the KV blocks. Default: what all slots and saved contexts can take, and at most
# FREE_SHARE of the free memory.
OWN: local.Allowed = {"pool_bytes": NumberOption(1, 2**50)}
OPTIONS: local.Allowed = {**local.OPTIONS, **OWN}
FREE_SHARE = 0.5
_SLOT_TOKENS = 2 * BLOCK_TOKENS  # of each slot at least: the trials at the mount use all slots
# A step has a small fixed cost, so short steps compute prompts at full speed, unlike in llama.cpp.
_CHUNK_S = 0.11
_COPIES = 2  # of the weights: the converted graph and the compiled one
_SCALE_BYTES = 8  # of each key and value: its scale and its zero point, as f32


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    local.check(options, OPTIONS)


def settings(path: Path, header: Header, options: Mapping[str, Option]) -> OpenVinoSettings:
    """All settings: the given options, and defaults for this machine.

    EINVAL for a pool that does not hold one window.
    """
    check(options)
    values = local.settings(path, header, {"chunk_s": _CHUNK_S, **options})
    least = max(_blocks(values["window"]), values["slots"] * _blocks(_SLOT_TOKENS)) + SPARE_BLOCKS
    block_bytes = BLOCK_TOKENS * cell_bytes(header)
    if "pool_bytes" in options:
        blocks = int(options["pool_bytes"]) // block_bytes
        if blocks < least:
            raise SyscallError(
                Errno.EINVAL,
                f"a pool of {int(options['pool_bytes'])} bytes holds {blocks} blocks of "
                f"{BLOCK_TOKENS} tokens; {values['slots']} slots with a window of "
                f"{values['window']} tokens need {least}",
                f"mount it with pool_bytes={least * block_bytes} or more, or a smaller window",
            )
    else:
        saved = values["parked_bytes"] + limits.KEPT_BYTES
        blocks = values["slots"] * _blocks(values["window"]) + SPARE_BLOCKS + saved // block_bytes
        free = local.available_bytes()
        if free is not None:
            room = free - _COPIES * header.facts.bytes
            blocks = max(least, min(blocks, int(FREE_SHARE * room) // block_bytes))
    return OpenVinoSettings(**values, blocks=blocks)


def cell_bytes(header: Header) -> int:
    """Of a token in the KV blocks: a byte for each number, and the scales."""
    return header.cell_bytes // 2 + _SCALE_BYTES * header.cell_vectors


def check_memory(chosen: OpenVinoSettings, header: Header) -> None:
    """ENOMEM with the numbers when the model and its pool do not fit."""
    pool = chosen.blocks * BLOCK_TOKENS * cell_bytes(header)
    what = f"a pool of {chosen.blocks * BLOCK_TOKENS} tokens"
    local.check_memory(_COPIES * header.facts.bytes, pool, what, "a smaller pool_bytes or window")


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
