"""The weights of OpenVINO are in a file without a name: no second copy of them is in memory."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="it is not installed")
PROGRAM = '''
import hashlib, json, sys
from pathlib import Path
from llmasos.drivers.local import gguf
from llmasos.drivers.local.context import Run
from llmasos.drivers.openvino import options
from llmasos.drivers.openvino.context import PagedContext
from llmasos.drivers.openvino.graph import convert
from llmasos.drivers.openvino.model import PagedModel

def resident(kind):
    """Of the mapping of a deleted file in the cache directory, in kB."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            counts = "(deleted)" in line and sys.argv[2] in line
        elif counts and line.startswith(kind):
            total += int(line.split()[1])
    return total

path = Path(sys.argv[1])
settings = options.settings(path, gguf.read(path), {"slots": 2, "window": 256, "threads": 1})
graph = convert(path)
context = PagedContext(PagedModel(graph, settings.blocks, 1), settings, graph.vocab_size)
sums = []
for _ in range(2):  # the second time after the memory was given back
    asked = context.decode([Run(0, 0, list(range(500, 540)), True)])
    sums.append(hashlib.sha256(context.logits(asked[0]).tobytes()).hexdigest())
    context.keep(0, 0)
print(json.dumps({
    "mapped": graph.weights is not None, "sums": sums, "size_kb": resident("Size:"),
    "resident_kb": resident("Rss:"),
}))
'''


def computed(model: Path, cache: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), str(cache)],
        env={**os.environ, "LLMASOS_CACHE_DIR": str(cache)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_weights_leave_memory_after_the_first_step_and_change_nothing(
    q8: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    mapped = computed(q8, cache)
    assert mapped["mapped"]
    assert mapped["size_kb"] > 40_000
    assert mapped["resident_kb"] < mapped["size_kb"] / 10
    assert list(cache.iterdir()) == []
    blocked = tmp_path / "a file"
    blocked.touch()
    in_memory = computed(q8, blocked)
    assert not in_memory["mapped"]
    assert {*mapped["sums"], *in_memory["sums"]} == {mapped["sums"][0]}
