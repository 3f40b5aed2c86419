"""The process of the OpenVINO engine.

    python -m llmasos.drivers.openvino.child SOCKET_FD KERNEL_PID

It needs llama.cpp only for a vocabulary that drivers/local/bpe.py does not know.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmasos.drivers.child_runtime import run_or_exit
from llmasos.drivers.llama import devices
from llmasos.drivers.local import frames
from llmasos.drivers.local.child import Loaded, main
from llmasos.drivers.local.processor import processor
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError

from .blocks import BLOCK_TOKENS, SPARE_BLOCKS
from .context import PagedContext
from .graph import PagedGraph, convert
from .model import PagedModel
from .settings import OpenVinoSettings
from .vectors import PagedVectors
from .vocabulary import vocabulary

# A grant that is shorter than a few steps leaves a step with its last few tokens.
_TURN_TOKENS = 2 * limits.PROMPT_QUANTUM_TOKENS


def load_model(values: dict[str, Any], report: Callable[[float], None]) -> Loaded:
    """Load the model of these settings. ENOTSUP when OpenVINO cannot compute it."""
    settings = OpenVinoSettings(**values)
    path = Path(settings.path)
    vocab, template = vocabulary(path)
    graph = convert(path)
    report(0.5)
    size = vocab.size
    if graph.vocab_size != size:
        message = f"OpenVINO: the graph has {graph.vocab_size} logits for {size} tokens"
        raise SyscallError(Errno.ENOTSUP, message, "mount it with `--engine llama`")
    return Loaded(
        settings,
        vocab,
        template,
        context=partial(_context, graph, settings, size),
        vectors=partial(PagedVectors, graph, settings, size),
        facts={
            "placement": f"cpu0: OpenVINO; {settings.threads} threads",
            "on": "cpu0",
            "hardware": _hardware(),
            "cells": (settings.blocks - SPARE_BLOCKS) * BLOCK_TOKENS,
            "block_tokens": BLOCK_TOKENS,
        },
        turn=_TURN_TOKENS,
        library=f"OpenVINO {version('openvino')}",
    )


def _hardware() -> list[dict[str, Any]]:
    """The processor; nothing where there is a GPU, which llama.cpp describes when it is asked."""
    return [] if devices.seen() else [asdict(processor())]


def _context(graph: PagedGraph, settings: OpenVinoSettings, vocab_size: int) -> PagedContext:
    return PagedContext(PagedModel(graph, settings.blocks, settings.threads), settings, vocab_size)


if __name__ == "__main__":
    run_or_exit(frames.NAME, lambda: main(int(sys.argv[1]), int(sys.argv[2]), load_model))
