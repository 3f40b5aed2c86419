"""The options of a model that is mounted on OpenVINO, and the memory that it requires."""

from collections.abc import Mapping
from pathlib import Path

from llmasos.drivers.local import options as local
from llmasos.drivers.local.gguf import Header
from llmasos.kernel.abi import limits
from llmasos.kernel.driver import Option

from .blocks import BLOCK_TOKENS
from .settings import OpenVinoSettings

OPTIONS = local.OPTIONS
_SPARE_BLOCKS = 1  # for additional rows (steps.py)
# A step has a small fixed cost, so short steps compute prompts at full speed, unlike in llama.cpp.
_CHUNK_S = 0.11
_COPIES = 2  # of the weights: the converted graph and the compiled one
_SCALE_BYTES = 8  # of each key and value: its scale and its zero point, as f32


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    local.check(options, OPTIONS)


def settings(path: Path, header: Header, options: Mapping[str, Option]) -> OpenVinoSettings:
    """All settings: the given options, and defaults for this machine."""
    check(options)
    values = local.settings(path, header, {"chunk_s": _CHUNK_S, **options})
    # Saved contexts are blocks, too. Memory is taken as blocks are first written.
    saved = values["parked_bytes"] + limits.KEPT_BYTES
    blocks = values["slots"] * -(-values["window"] // BLOCK_TOKENS) + _SPARE_BLOCKS
    blocks += saved // (BLOCK_TOKENS * cell_bytes(header))
    return OpenVinoSettings(**values, blocks=blocks)


def cell_bytes(header: Header) -> int:
    """Of a token in the KV blocks: a byte for each number, and the scales."""
    return header.cell_bytes // 2 + _SCALE_BYTES * header.cell_vectors


def check_memory(chosen: OpenVinoSettings, header: Header) -> None:
    """ENOMEM with the numbers when the model and its slots do not fit."""
    context = chosen.slots * local.cells(chosen.window) * cell_bytes(header)
    local.check_memory(_COPIES * header.facts.bytes, context, chosen.slots, chosen.window)
