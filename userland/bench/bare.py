"""The bare engine loop for comparison: the `bare.py` of a driver in a child process."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from .answers import Crowded
from .peers import Absent
from .rig import ENGINES, RigError


def name(engine: str) -> str:
    """Of the loop, for people."""
    return f"bare loop, {ENGINES[engine]}"


def loop(
    path: str, *flags: object, engine: str = "llama", **environment: str
) -> list[dict[str, Any]]:
    """Run it and return the report of each repeat. Absent when it cannot run."""
    threads = [] if "--threads" in flags else ["--threads", str(os.cpu_count() or 1)]
    line = [
        sys.executable,
        "-m",
        f"llmasos.drivers.{engine}.bare",
        "--model",
        path,
        *threads,
        *map(str, flags),
    ]
    done = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise Absent(name(engine), done.stderr)
    return [json.loads(one) for one in done.stdout.splitlines()]


def answered(path: str, prompts: Sequence[Sequence[int]], new: int, engine: str) -> Crowded:
    """Generate `new` tokens for each of these prompts; the time excludes loading."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(prompts, file)
        file.flush()
        counts = ("--sequences", len(prompts), "--new", new)
        report = loop(path, "--prompts", file.name, *counts, engine=engine)[-1]
    if report["tokens"] != len(prompts) * new:
        raise RigError(f"the bare loop made {report['tokens']} tokens, not {len(prompts) * new}")
    return Crowded(report["tokens"] / report["wall_s"], 0.0, 0.0, report["text_sha256"])
