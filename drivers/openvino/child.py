"""The process of the OpenVINO engine.

    python -m llmasos.drivers.openvino.child SOCKET_FD KERNEL_PID

The vocabulary and the sampler chains are those of llama.cpp.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from llmasos.drivers.child_runtime import run_or_exit
from llmasos.drivers.llama.chain import Candidates, Chain
from llmasos.drivers.llama.model import load_vocab
from llmasos.drivers.llama.placement import found
from llmasos.drivers.local import frames
from llmasos.drivers.local.child import Loaded, main
from llmasos.kernel.abi.errors import Errno, SyscallError

from .context import PagedContext
from .graph import PagedGraph, convert
from .model import PagedModel
from .settings import OpenVinoSettings
from .vectors import PagedVectors


def load_model(values: dict[str, Any], report: Callable[[float], None]) -> Loaded:
    """Load the model of these settings. ENOTSUP when OpenVINO cannot compute it."""
    settings = OpenVinoSettings(**values)
    path = Path(settings.path)
    model = load_vocab(path)
    graph = convert(path)
    report(0.5)
    size = model.vocab.size
    if graph.vocab_size != size:
        message = f"OpenVINO: the graph has {graph.vocab_size} logits for {size} tokens"
        raise SyscallError(Errno.ENOTSUP, message, "use the llama engine for this model")
    candidates = Candidates(size)
    return Loaded(
        settings,
        model.vocab,
        model.template,
        context=partial(_context, graph, settings, size),
        vectors=partial(PagedVectors, graph, settings, size),
        picker=lambda sampling: Chain(sampling, candidates, settings.window),
        facts={
            "placement": f"cpu0: OpenVINO; {settings.threads} threads",
            "on": "cpu0",
            "hardware": [asdict(one) for one in found()],
        },
    )


def _context(graph: PagedGraph, settings: OpenVinoSettings, vocab_size: int) -> PagedContext:
    return PagedContext(PagedModel(graph, settings.blocks, settings.threads), settings, vocab_size)


if __name__ == "__main__":
    run_or_exit(frames.NAME, lambda: main(int(sys.argv[1]), int(sys.argv[2]), load_model))
