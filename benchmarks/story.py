"""Runs the demo of docs/story.md: a hundred turns, a document, a question.

    python benchmarks/story.py [SEED] > benchmarks/results/story.txt && make docs
    python benchmarks/story.py --files       writes the files of benchmarks/story/

The commands run in a copy of benchmarks/story/ with a daemon of their own, which ends with this
program. With the same seed the answers are the same on the same day: recalled pages carry their
date.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llmasos.userland.bench.planted import FACTS, conversation
from llmasos.userland.bench.rig import daemon, terminable

EARLY_FACTS = FACTS[:8]  # told in the first turns
ANSWERS = ("Bello", "flower pot", "Trieste", "4471", "walnut", "6:42", "Thursday", "10W-40")
SEED = 3
SHOWN = 7  # the index of the fact in the transcript
FILES = Path(__file__).with_name("story")  # hundred.txt, lighthouse.md, answer.json
HOW = "--schema answer.json --temperature 0 --repeat-penalty 1 --max-tokens 40"
CHAPTERS = 56  # of about a page each
SENTENCES = 12
THINGS = ("harbour", "lamp", "keeper", "storm", "boat", "ledger", "rope", "tower", "gull", "bell")
FATES = ("mended", "painted", "counted", "forgotten", "sold")
SIDES = ("north", "south", "old", "new", "outer")
SEASONS = ("spring", "summer", "autumn", "winter")


def hundred() -> str:
    """A hundred turns; the first ones tell the facts that the questions are about."""
    talk = [turn.text for turn in conversation(200, 5) if turn.tells is None and turn.asks is None]
    facts = [fact for fact, _ in EARLY_FACTS]
    return "".join(f"{line}\n" for line in [*facts, *talk[: 100 - len(facts)]])


def lighthouse() -> str:
    """A document of about 50 pages."""
    dice = random.Random(1)
    chapters = (
        " ".join(
            [f"Chapter {number}.", *(_sentence(dice, 1840 + number) for _ in range(SENTENCES))]
        )
        for number in range(1, CHAPTERS + 1)
    )
    return "\n\n".join(chapters) + "\n"


def _sentence(dice: random.Random, year: int) -> str:
    what, side, other = dice.choice(THINGS), dice.choice(SIDES), dice.choice(THINGS)
    fate, season = dice.choice(FATES), dice.choice(SEASONS)
    return f"The {what} of the {side} {other} was {fate} in the {season} of {year}."


def output_of(command: str, home: Path) -> str:
    """The output of a command. Exits when it fails."""
    ended = subprocess.run(
        ["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{command}: {ended.returncode}\n{ended.stderr}")
    return ended.stdout.rstrip()


def show(command: str, home: Path) -> None:
    output = output_of(command, home)
    print(f"$ {command}\n{output}\n" if output else f"$ {command}")


def run_silently(command: str, home: Path) -> None:
    """Run a command and print it without its output."""
    print(f"$ {command}")
    output_of(command, home)


def count_correct(home: Path, flags: str) -> int:
    """How many questions about the early facts are answered, each in a fork of its own."""
    count = 0
    for (_, question), answer in zip(EARLY_FACTS, ANSWERS, strict=True):
        asked = f'$HOW <<< "{question}"'
        output = output_of(f"llmasos chat --pid $(llmasos fork 1) {flags} {asked}", home)
        count += answer.lower() in output.lower()
    return count


def run(home: Path, seed: int) -> None:
    """Run and print the commands. The conversation is process 1 of a new machine."""
    talk = f"llmasos chat --max-tokens 40 --seed {seed} < hundred.txt"
    run_silently("llmasos mount smollm2 --deterministic", home)
    show("cat answer.json", home)
    run_silently(talk, home)
    show("llmasos mem map 1 lighthouse.md", home)
    show("llmasos mem 1 --map", home)
    asked = f'$HOW <<< "{EARLY_FACTS[SHOWN][1]}"'
    with_recall, without = count_correct(home, ""), count_correct(home, "--no-recall")
    print(f'$ HOW="{HOW}"')
    show(f"llmasos chat --pid $(llmasos fork 1) --no-recall {asked}", home)
    show(f"llmasos chat --pid 1 {asked}", home)
    show(f"llmasos mem why 1:{2 * SHOWN}", home)  # a turn is two pages
    questions = f"questions about the {len(EARLY_FACTS)} facts of the first turns"
    print(f"# correct answers to {questions}: {with_recall}; without recall: {without}")


def main() -> None:
    if sys.argv[1:] == ["--files"]:
        (FILES / "hundred.txt").write_text(hundred(), encoding="utf-8")
        (FILES / "lighthouse.md").write_text(lighthouse(), encoding="utf-8")
        return
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else SEED
    with (
        terminable(),
        tempfile.TemporaryDirectory(prefix="llmasos-story-") as directory,
        daemon() as rig,
    ):
        home = Path(directory, "story")
        shutil.copytree(FILES, home)
        os.environ.clear()
        os.environ.update(rig.environment)
        os.environ["HOW"] = HOW
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        run(home, seed)


if __name__ == "__main__":
    main()
