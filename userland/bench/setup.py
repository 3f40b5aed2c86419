"""What the set-up without llama.cpp relies on: our vocabularies have the tokens of llama.cpp's.

Random texts of many languages, code, numbers, spaces and names of tokens, for each pre-tokenizer
for which a vocabulary of ours is used (drivers/llama/vocabulary_check.py).
"""

import json
from typing import Any

from .figures import Bar, MissingFigure, Suite, Take
from .quality import run
from .rig import image, tuned

TEXTS, TINY_TEXTS = 100_000, 50
BARS = (
    Bar("setup.tokenizer_mismatch", f"texts with other tokens than llama.cpp's, of {TEXTS:,} for "
        "each pre-tokenizer", "texts", "lower", 0),
)  # fmt: skip


def take(tiny: bool) -> Take:
    texts = TINY_TEXTS if tiny else TEXTS
    with tuned() as (_, client):
        found = image(client)
    known: dict[str, Any] = {"model": found.digest, "texts": texts}
    done = run("llama.vocabulary_check", found.path, str(texts))
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Take({}, known, [MissingFigure(f"llama.cpp ({reason})", "make setup")])
    report: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    counts = {"setup.tokenizer_mismatch": [sum(report.values())]}
    return Take(counts, {**known, "mismatches": report})


SUITE = Suite("setup", BARS, take, timed=False)
