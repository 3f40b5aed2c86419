"""The story at the README's end, told by the machine: a hundred turns, a document, questions.

    python benchmarks/story.py > benchmarks/results/story.txt && make readme

Everything stands in a temporary directory and goes with it.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from llmasos.userland.bench.planted import FACTS, conversation

TOLD = FACTS[:8]  # in the first minutes
WHY = 0  # which of them is looked at closely
ASK = """while read -r question; do
  pid=$(llmasos fork 1); echo "> $question"
  llmasos chat --pid $pid --max-tokens 24 --temperature 0 {0}<<< "$question" | head -1
done < questions.txt"""
CHAPTERS = 56  # of about a page each
SENTENCES = 12
THINGS = ("harbour", "lamp", "keeper", "storm", "boat", "ledger", "rope", "tower", "gull", "bell")
FATES = ("mended", "painted", "counted", "forgotten", "sold")
SIDES = ("north", "south", "old", "new", "outer")
SEASONS = ("spring", "summer", "autumn", "winter")


def hundred() -> str:
    """A hundred turns; the first ones tell what is asked for at the end."""
    talk = [turn.text for turn in conversation(200, 5) if turn.tells is None and turn.asks is None]
    told = [fact for fact, _ in TOLD]
    return "".join(f"{line}\n" for line in [*told, *talk[: 100 - len(told)]])


def lighthouse() -> str:
    """A document of about 50 pages."""
    dice = random.Random(1)
    return "\n\n".join(
        " ".join(
            [f"Chapter {number}.", *(_sentence(dice, 1840 + number) for _ in range(SENTENCES))]
        )
        for number in range(1, CHAPTERS + 1)
    )


def _sentence(dice: random.Random, year: int) -> str:
    what, side, other = dice.choice(THINGS), dice.choice(SIDES), dice.choice(THINGS)
    fate, season = dice.choice(FATES), dice.choice(SEASONS)
    return f"The {what} of the {side} {other} was {fate} in the {season} of {year}."


def run(command: str, home: Path, *, shown: bool = True) -> None:
    done = subprocess.run(
        ["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command}: {done.returncode}\n{done.stderr}")
    print(f"$ {command}")
    if shown:
        print(done.stdout.rstrip() + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="llmasos-story-") as directory:
        home = Path(directory)
        for name in ("RUNTIME", "STATE", "CONFIG"):
            os.environ[f"LLMASOS_{name}_DIR"] = str(home / name.lower())
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        (home / "hundred.txt").write_text(hundred(), encoding="utf-8")
        (home / "lighthouse.md").write_text(lighthouse(), encoding="utf-8")
        try:
            run("llmasos chat --max-tokens 40 --seed 1 < hundred.txt", home, shown=False)
            run("llmasos mem map 1 lighthouse.md", home)
            run("llmasos mem 1 --map", home)
            questions = "".join(f"{question}\n" for _, question in TOLD)
            (home / "questions.txt").write_text(questions, encoding="utf-8")
            run(ASK.format(""), home)
            run(ASK.format("--no-recall "), home)
            question = TOLD[WHY][1]
            run(f'llmasos chat --pid 1 --max-tokens 24 --temperature 0 <<< "{question}"', home)
            run(f"llmasos mem why 1:{2 * WHY}", home)  # each turn is two pages
        finally:
            subprocess.run(["llmasos", "daemon", "stop"], capture_output=True, check=False)


if __name__ == "__main__":
    main()
