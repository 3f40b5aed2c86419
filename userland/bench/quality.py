"""What OpenVINO's Q8_0 loses of the model: compared with llama.cpp on the same weights in F16.

Both compute the same windows of a fixed text, a passage and a generated conversation, in one
process (drivers/choice/loss.py). Other programs do not change the figures.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .figures import Bar, MissingFigure, Suite, Take
from .rig import RigError, ends_with_us, facts, image, tuned
from .talks import talk

PASSAGE = Path(__file__).resolve().parents[2] / "drivers" / "llama" / "passage.txt"
_SEED = 4  # of a generated conversation in English
_CHARS = 40_000
DIGEST = "2f21c02630840af288b3e723e36eb25310dc7588513cf035191250f82dbdb4ab"  # sha256 of the text
_TINY_CHARS = 2500  # one window
BARS = (
    Bar("quality.ppl_ratio", "perplexity of Q8_0 on OpenVINO over that of F16 on llama.cpp, 10,240 "
        "tokens", "x", "lower", 1.006),
    Bar("quality.kl", "mean Kullback-Leibler divergence of the same", "nats", "lower", 0.006),
)  # fmt: skip


def text() -> str:
    """The text that is computed. RigError when it is not the one of the stored figures."""
    turns = talk("people-en", _SEED).turns
    spoken = "\n".join(f"{turn.author}: {turn.text}" for turn in turns)
    found = f"{PASSAGE.read_text(encoding='utf-8')}\n{spoken}"[:_CHARS]
    if hashlib.sha256(found.encode()).hexdigest() != DIGEST:
        raise RigError("the text of this suite has changed")
    return found


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program of a driver. Its standard input stays open: some end with it."""
    line = [sys.executable, "-m", f"llmasos.drivers.{module}", *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        with subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            preexec_fn=ends_with_us(),
        ) as child:  # fmt: skip
            output = child.stdout.read() if child.stdout is not None else ""
            code = child.wait()
        errors.seek(0)
        return subprocess.CompletedProcess(line, code, output, errors.read())


def measured(model: str, source: str, passage: str) -> dict[str, Any]:
    """The report of one run."""
    with tempfile.TemporaryDirectory(prefix="llmasos-bench-") as folder:
        reference, written = Path(folder, "F16.gguf"), Path(folder, "text")
        made = run("llama.requantise", source, str(reference), "F16")
        if not reference.exists():
            raise RigError(f"no F16 file: {made.stdout}{made.stderr}")
        written.write_text(passage, encoding="utf-8")
        words = ("openvino", model, str(reference), str(written), str(len(os.sched_getaffinity(0))))
        done = run("choice.loss", *words)
    if done.returncode:
        raise RigError(f"it cannot be measured: {done.stderr.strip().splitlines()[-1]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "errno" in report:
        raise RigError(f"it cannot be measured: {report['message']}")
    return report


def take(tiny: bool) -> Take:
    with tuned() as (_, client):
        found = image(client)
        known = facts(client)
    passage = text()[:_TINY_CHARS] if tiny else text()
    try:
        report = measured(found.tuned or found.path, found.path, passage)
    except RigError as error:
        return Take({}, known, [MissingFigure(f"OpenVINO ({error})", "make peers")])
    values = {
        "quality.ppl_ratio": [report["perplexity"] / report["reference"]],
        "quality.kl": [report["kl"]],
    }
    return Take(values, {**known, "report": report})


SUITE = Suite("quality", BARS, take, timed=False)
