"""The bare engine loop for comparison: drivers/llama/bare.py in a child process."""

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
    """Run it and return the report of each repeat. Absent when it cannot run."""
    threads = [] if "--threads" in flags else ["--threads", str(os.cpu_count() or 1)]
    line = [sys.executable, "-m", MODULE, "--model", path, *threads, *map(str, flags)]
    done = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise Absent(NAME, done.stderr)
    return [json.loads(one) for one in done.stdout.splitlines()]


def answered(path: str, prompts: Sequence[Sequence[int]], new: int) -> Crowded:
    """Generate `new` tokens for each of these prompts; the time excludes loading."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(prompts, file)
        file.flush()
        counts = ("--sequences", len(prompts), "--new", new)
        report = loop(path, "--prompts", file.name, *counts)[-1]
    if report["tokens"] != len(prompts) * new:
        raise RigError(f"the bare loop made {report['tokens']} tokens, not {len(prompts) * new}")
    return Crowded(report["tokens"] / report["wall_s"], 0.0, 0.0, report["text_sha256"])
