"""Compares the vocabulary of drivers/local/bpe.py with llama.cpp's on random texts.

    python -m llmasos.drivers.llama.vocabulary_check FILE COUNT

The tokens of FILE, with each pre-tokenizer that we know; COUNT texts for each of them, where names
of special tokens are found and where they are not. Prints one JSON line: the texts with other
tokens, by pre-tokenizer.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmasos.drivers.local import vocabulary_file
from llmasos.drivers.local.bpe import BpeVocab
from llmasos.drivers.local.context import Vocab
from llmasos.drivers.local.pretokenizer import PRE_TOKENIZERS

from .model import load_vocab

_SPACES = (9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x3000)
SPACES = [chr(point) for point in _SPACES]
_WORDS = """
    the and of hello world naïve Straße café Ünïcödé don't we'll I'M they'Re It'S 'd 'Ll 've def if
    return (x == 0): self.value += 1; // TODO print(f"{a!r}") a->b </div> {"k": [1, 2]} #include
    <stdio.h> === --- ... ?! $100 50% x²+y² ½ 3.14159 1234567890 0x7fff 1e-9 12:30 2026-11-30 Ⅷ
    字符串 漢字かな交じり文 한국어 العربية עברית ไทย हिन्दी Ελληνικά Русский ٣٤٥ १२३ ①② İ ß
    🦊 🇫🇷 👍🏽 ❤️ class ====== ing ingly beginning sand Ġof entity ity
"""
# Combining, invisible, private and unassigned ones, and letters that look like others.
_SINGLE = (
    "e\u0301 n\u0303 o\u0308 \u200b \u200d \ufeff \ufffd \u00ad \0 \x7f \u017f \u212a \ue000 "
    "\U0001f468\u200d\U0001f469 \U0002ebf0 \U000e0041 \u0378 \U0010ffff"
)
WORDS = [*_WORDS.split(), *_SINGLE.split(" ")]
BLOCKS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF),
    (0xE00, 0xEFF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xFFFF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF),
)  # fmt: skip


def text(dice: random.Random, names: Sequence[str]) -> str:
    """Words of many languages, code, numbers, runs of spaces, names of tokens, any characters."""
    return "".join(_part(dice, names) for _ in range(dice.randrange(14)))


def _part(dice: random.Random, names: Sequence[str]) -> str:
    kind = dice.randrange(10)
    if kind < 4:
        return dice.choice((" ", " ", "", "\n")) + dice.choice(WORDS)
    if kind == 4:
        return "".join(dice.choices(SPACES, k=dice.randint(1, 5)))
    if kind == 5:
        return dice.choice((" ", "\n", "\t", "\r\n", "-", "!", "7", "é")) * dice.randint(1, 20)
    if kind == 6 and names:
        name = dice.choice(names)
        cut = dice.randrange(len(name) + 1)
        return dice.choice((name, name, name[:cut], name[cut:]))
    if kind == 7:
        return str(dice.randrange(10 ** dice.randint(1, 12)))
    begin, end = dice.choice(BLOCKS)
    return "".join(chr(dice.randint(begin, end)) for _ in range(dice.randint(1, 6)))


# --- the comparison -------------------------------------------------------------------------------
def mismatches(path: Path, pre: str, count: int) -> int:
    """Random texts with other tokens than llama.cpp's."""
    file = replace(vocabulary_file.read(path), pre=pre, adds_begin=None)
    ours, theirs = BpeVocab(file, PRE_TOKENIZERS[pre]), load_vocab(path, pre).vocab
    dice, names = random.Random(pre), sorted(ours.names)
    return sum(not _equal(ours, theirs, text(dice, names)) for _ in range(count))


def _equal(ours: Vocab, theirs: Vocab, content: str) -> bool:
    return all(
        ours.tokenize(content, special=special).tolist()
        == theirs.tokenize(content, special=special).tolist()
        for special in (True, False)
    )


def main() -> None:
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    named = sorted(PRE_TOKENIZERS.keys() - {""})  # no name means the default
    print(json.dumps({pre: mismatches(path, pre, count) for pre in named}))


if __name__ == "__main__":
    main()
