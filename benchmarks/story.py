"""The story in the README, told by the machine: a hundred turns, a document, a question.

    python benchmarks/story.py [SEED] > benchmarks/results/story.txt && make readme
    python benchmarks/story.py --files       writes the files of benchmarks/story/ again

The commands run in a copy of benchmarks/story/ with a state of their own. With the same seed the
answers are the same on the same day: pages that come back carry their date.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llmasos.userland.bench.planted import FACTS, conversation

TOLD = FACTS[:8]  # in the first minutes
ANSWERS = ("Bello", "flower pot", "Trieste", "4471", "walnut", "6:42", "Thursday", "10W-40")
SEED = 3
CLOSELY = 7  # which of them the reader sees
FILES = Path(__file__).with_name("story")  # hundred.txt, lighthouse.md, answer.json
HOW = "--schema answer.json --temperature 0 --repeat-penalty 1 --max-tokens 40"
LAST = "llmasos ps -q | tail -1"
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


def done(command: str, home: Path) -> str:
    """What a command prints."""
    ended = subprocess.run(
        ["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{command}: {ended.returncode}\n{ended.stderr}")
    return ended.stdout.rstrip()


def show(command: str, home: Path) -> None:
    said = done(command, home)
    print(f"$ {command}\n{said}\n" if said else f"$ {command}")


def right(home: Path, flags: str) -> int:
    """How many of the first facts are answered, each in a fork that has heard no other question."""
    count = 0
    for (_, question), answer in zip(TOLD, ANSWERS, strict=True):
        asked = f'$HOW <<< "{question}"'
        said = done(f"llmasos chat --pid $(llmasos fork $PID) {flags} {asked}", home)
        count += answer.lower() in said.lower()
    return count


def tell(home: Path, seed: int) -> None:
    talk = f"llmasos chat --max-tokens 40 --seed {seed} < hundred.txt"
    print("$ cd benchmarks/story")
    show("llmasos mount smollm2 --deterministic", home)
    print(f"$ {talk}")
    done(talk, home)
    print(f"$ PID=$({LAST})")
    os.environ["PID"] = done(LAST, home)
    show("llmasos mem map $PID lighthouse.md", home)
    show("llmasos mem $PID --map", home)
    asked = f'$HOW <<< "{TOLD[CLOSELY][1]}"'
    found, alone = right(home, ""), right(home, "--no-recall")
    print(f'$ HOW="{HOW}"')
    show(f"llmasos chat --pid $(llmasos fork $PID) --no-recall {asked}", home)
    show(f"llmasos chat --pid $PID {asked}", home)
    show(f"llmasos mem why $PID:{2 * CLOSELY}", home)  # a turn is two pages
    print(f"# answered right of the {len(TOLD)} facts told first: {found}, without recall {alone}")


def main() -> None:
    if sys.argv[1:] == ["--files"]:
        (FILES / "hundred.txt").write_text(hundred(), encoding="utf-8")
        (FILES / "lighthouse.md").write_text(lighthouse(), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory(prefix="llmasos-story-") as directory:
        home = Path(directory, "story")
        shutil.copytree(FILES, home)
        for name in ("RUNTIME", "STATE", "CONFIG"):
            os.environ[f"LLMASOS_{name}_DIR"] = str(Path(directory, name.lower()))
        os.environ["HOW"] = HOW
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        try:
            tell(home, int(sys.argv[1]) if len(sys.argv) > 1 else SEED)
        finally:
            subprocess.run(["llmasos", "daemon", "stop"], capture_output=True, check=False)


if __name__ == "__main__":
    main()
