"""The bare loop as a rival: drivers/llama/bare.py in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from .answers import Crowded
from .peers import Absent
from .rig import RigError

NAME = "bare loop"
MODULE = "llmasos.drivers.llama.bare"


def loop(path: str, *flags: object, **environment: str) -> list[dict[str, Any]]:
    """Its report of each repeat. Absent when it cannot run."""
    threads = [] if "--threads" in flags else ["--threads", str(os.cpu_count() or 1)]
    line = [sys.executable, "-m", MODULE, "--model", path, *threads, *map(str, flags)]
    done = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise Absent(NAME, done.stderr)
    return [json.loads(one) for one in done.stdout.splitlines()]


def answered(path: str, prompts: Sequence[Sequence[int]], new: int) -> Crowded:
    """These prompts, `new` tokens each; timed after the load."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(prompts, file)
        file.flush()
        counts = ("--sequences", len(prompts), "--new", new)
        said = loop(path, "--prompts", file.name, *counts)[-1]
    if said["tokens"] != len(prompts) * new:
        raise RigError(f"the bare loop made {said['tokens']} tokens, not {len(prompts) * new}")
    return Crowded(said["tokens"] / said["wall_s"], 0.0, 0.0, said["text_sha256"])
