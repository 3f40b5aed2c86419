"""A llama.cpp server in a child process: the prebuilt one of xllamacpp, with its defaults.

    python -m llmasos.userland.bench.llama_server FILE PORT SLOTS THREADS WINDOW

Only the file, the number and size of slots, and the number of threads are set. The settings are
printed as one JSON line. It ends when its standard input closes, so it cannot outlive its parent.
"""

import json
import re
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any, cast

import xllamacpp as _untyped

xllamacpp = cast("Any", _untyped)
TOLD = (
    "n_parallel", "n_ctx", "n_batch", "n_ubatch", "kv_unified", "flash_attn_type", "cache_type_k",
    "cache_type_v", "cont_batching", "cache_prompt", "cache_ram_mib", "slot_prompt_similarity",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    path, (port, slots, threads, window) = arguments[0], map(int, arguments[1:])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = slots * window
    for cpu in (parameters.cpuparams, parameters.cpuparams_batch):
        cpu.n_threads = threads
    settings = {name: _plain(getattr(parameters, name)) for name in TOLD}
    build = " ".join(re.findall(r"(\w+) = 1", xllamacpp.get_system_info()))
    print(json.dumps({"threads": threads, **settings, "build": build}), flush=True)
    server = xllamacpp.Server(parameters)
    print(server.listening_address, file=sys.stderr, flush=True)
    sys.stdin.read()
    return 0


def _plain(value: object) -> object:
    """The name of an enumeration value; a single-precision number as it was written."""
    if isinstance(value, Enum):
        return value.name
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
