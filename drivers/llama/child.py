"""The process of the llama.cpp engine.

    python -m llmasos.drivers.llama.child SOCKET_FD KERNEL_PID

A context must not be freed while a step computes, so the process exits without freeing it.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from llmasos.drivers.child_runtime import run_or_exit
from llmasos.drivers.local import frames
from llmasos.drivers.local.child import Loaded, main

from .context import LlamaContext
from .model import load
from .placement import place
from .settings import LlamaSettings
from .vectors import LlamaVectors


def load_model(values: dict[str, Any], report: Callable[[float], None]) -> Loaded:
    """Load the model of these settings. DeviceFault when llama.cpp cannot."""
    placement = place(LlamaSettings(**values))
    settings = placement.settings
    model = load(settings, report)
    return Loaded(
        settings,
        model.vocab,
        model.template,
        context=partial(LlamaContext, model, settings),
        vectors=partial(LlamaVectors, model, settings),
        facts=placement.facts(),
        library=f"llama.cpp {version('llama-cpp-python')}",
    )


if __name__ == "__main__":
    run_or_exit(frames.NAME, lambda: main(int(sys.argv[1]), int(sys.argv[2]), load_model))
